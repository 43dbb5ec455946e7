"""Refit's training loop on a GPU: photos a second, against the same network and optimizer on one resident batch.

The resident batch is the ceiling: no reading, no augmentation, no validation, the same step. Where there is no GPU
this says so.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from refit import modality
from refit.params import Finetune, load_params
from refit.training.examples import Examples
from refit.training.loop import feed_of, fit

MODELS = {"resnet18": 256, "resnet50": 128, "vit_b_16": 128}  # and their batch sizes
SIZE, CLASSES, STEPS = 224, 10, 60


def report(rounds: int) -> list[dict[str, object]]:
    """A row for each network and round, alternating which of the two comes first."""
    if not torch.cuda.is_available():
        print("no GPU")
        return []
    rows: list[dict[str, object]] = []
    for model, batch_size in MODELS.items():
        ways: dict[str, Callable[[str, int], float]] = {"refit": _refit, "resident": _resident}
        _resident(model, batch_size)  # kernels are chosen and loaded
        for number in range(rounds):
            order = list(ways) if number % 2 == 0 else list(reversed(ways))
            speeds = {way: ways[way](model, batch_size) for way in order}
            rows.append({"model": model, "batch_size": batch_size, "gpu": torch.cuda.get_device_name(), **speeds})
        ratio = statistics.median(float(str(row["refit"])) / float(str(row["resident"])) for row in rows[-rounds:])
        print(f"{model}: {rows[-1]['refit']:.0f} photos/s, {ratio:.3f} of the resident batch")
    return rows


def _refit(model: str, batch_size: int) -> float:
    """The difference between a long and a short training, so that what is done once does not count."""
    short, long = (_seconds_of_fit(model, batch_size, epochs) for epochs in (1, 3))
    return 2 * STEPS * batch_size / (long - short)


def _seconds_of_fit(model: str, batch_size: int, epochs: int) -> float:
    params = load_params()
    name, networks = params.data.modality, modality.networks(params.data.modality)
    settings: Finetune = replace(params.finetune, model=model, batch_size=batch_size, epochs=epochs, device="cuda")
    preprocessing = modality.weights(name).preprocessing_for(None, replace(params.of_modality.finetune, size=SIZE))
    network = networks.build_network(model, CLASSES, 0.0)
    head = networks.head_parameters(network, CLASSES)
    train, val = (_examples(count) for count in (STEPS * batch_size, 2))
    began = time.perf_counter()
    fit(network.cuda(), head, train, val, feed_of(name, preprocessing, params.of_modality.finetune), settings, seed=0)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _examples(count: int) -> Examples:
    inputs = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, device="cuda")
    return Examples(inputs, torch.arange(count, device="cuda") % CLASSES, np.arange(count, dtype=np.uint64))


def _resident(model: str, batch_size: int) -> float:
    network = modality.networks("image").build_network(model, CLASSES, 0.0).cuda().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    inputs = torch.randn(batch_size, 3, SIZE, SIZE, device="cuda").contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device="cuda") % CLASSES
    for step in range(STEPS + 10):
        if step == 10:
            torch.cuda.synchronize()
            began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.cuda.synchronize()
    return STEPS * batch_size / (time.perf_counter() - began)
