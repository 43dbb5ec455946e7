"""Refit's training on a GPU: photos a second, against the same network, optimizer and precision on one resident batch.

The resident batch is the ceiling: no reading, no augmentation, no validation, the same step. Where there is no GPU
this says so.

NEVER RUN on a GPU yet: written and typed on machines that have none. Judge its first figures with that in mind.
"""

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from refit import modality
from refit.params import Finetune, load_params
from refit.training.arithmetic import autocast
from refit.training.cache import Shelf
from refit.training.determinism import be_deterministic
from refit.training.examples import Examples
from refit.training.loop import fit

from .refit_job import feed_of, job_of

MODELS = {"resnet18": 256, "resnet50": 128, "vit_b_16": 128}  # and their batch sizes
SIZE, CLASSES, STEPS = 224, 10, 60


def report(folder: Path, rounds: int) -> list[dict[str, object]]:
    """A row for each network and round, alternating which of the two comes first. `folder` gets Refit's cache."""
    if not torch.cuda.is_available():
        print("no GPU")
        return []
    os.environ["REFIT_CACHE"] = str(folder / "cache")
    device = be_deterministic(num_threads=1, device="cuda")
    ways: dict[str, Callable[[str, int, torch.device], float]] = {"refit": _refit, "resident": _resident}
    rows: list[dict[str, object]] = []
    for model, batch_size in MODELS.items():
        _resident(model, batch_size, device)  # kernels are chosen and loaded
        ratios = []
        for number in range(rounds):
            order = list(ways) if number % 2 == 0 else list(reversed(ways))
            speeds = {way: ways[way](model, batch_size, device) for way in order}
            rows.append({"model": model, "batch_size": batch_size, "gpu": torch.cuda.get_device_name(), **speeds})
            ratios.append(speeds["refit"] / speeds["resident"])
        print(f"{model}: {speeds['refit']:.0f} photos/s, {statistics.median(ratios):.3f} of the resident batch")
    return rows


def _refit(model: str, batch_size: int, device: torch.device) -> float:
    """The difference between a long and a short training, so that what is done once does not count."""
    _seconds_of_fit(model, batch_size, 1, device)  # fills the cache
    short, long = (_seconds_of_fit(model, batch_size, epochs, device) for epochs in (1, 3))
    return 2 * STEPS * batch_size / (long - short)


def _seconds_of_fit(model: str, batch_size: int, epochs: int, device: torch.device) -> float:
    """Of a training of so many epochs, as `finetune` does it, in bf16."""
    params = load_params()
    name = params.data.modality
    settings: Finetune = replace(
        params.finetune, model=model, strategy="full", batch_size=batch_size, epochs=epochs, learning_rate=0.001
    )
    preprocessing = modality.weights(name).preprocessing_for(None, replace(params.of_modality.finetune, size=SIZE))
    splits = (_examples(STEPS * batch_size), _examples(2))
    job = job_of(name, settings, splits, feed_of(params, preprocessing), CLASSES, seed=0)
    job = replace(job, network=job.network.to(device), device=device, precision="bf16")
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # its own progress would bury the figures
        fit(job)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _examples(count: int) -> Examples:
    """Noise; which of it belongs to which example does not matter, so that a piece is drawn once."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 3, SIZE, SIZE), dtype=np.uint8)

    def prepare(indices: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(indices), len(noise)):
            yield noise[indices[start : start + len(noise)] % len(noise)]

    names = tuple(f"{index:016x}".ljust(64, "0") for index in range(count))
    return Examples(
        names, np.arange(count, dtype=np.int64) % CLASSES, Shelf("decoded", "noise".ljust(64, "0")), prepare
    )


def _resident(model: str, batch_size: int, device: torch.device) -> float:
    network = modality.networks("image").build_network(model, CLASSES, 0.0).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    inputs = torch.randn(batch_size, 3, SIZE, SIZE, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % CLASSES
    for step in range(STEPS + 10):
        if step == 10:
            torch.cuda.synchronize()
            began = time.perf_counter()
        with autocast(device, "bf16"):
            logits = network(inputs).float()
        functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    return STEPS * batch_size / (time.perf_counter() - began)
