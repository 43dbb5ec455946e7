"""A tiny training for tests of the core: three classes that differ in the channel that is bright. Imports torch."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from refit.modality.contract import LayerGroup
from refit.modality.image import augment as augmentation
from refit.modality.image import networks as image
from refit.modality.image import weights as published
from refit.modality.image.preprocessing import Preprocessing
from refit.modality.image.settings import Augment
from refit.params import Finetune
from refit.training.cache import Shelf
from refit.training.examples import Examples
from refit.training.job import Feed, Job
from refit.training.plan import Facts, make_plan

PREPROCESSING = Preprocessing(
    resize_size=16, crop_size=16, interpolation="bilinear", mean=published.IMAGENET_MEAN, std=published.IMAGENET_STD
)
CHANGES = Augment(policy="none", rotation=20.0, translation=0.1, scale=1.2, horizontal_flip=True)
FEED = Feed(
    network_input=partial(image.network_input, preprocessing=PREPROCESSING),
    augment=partial(
        augmentation.distort,
        settings=Augment(policy="none", rotation=20.0, translation=0.1, scale=1.2, horizontal_flip=True),
    ),
    num_draws=augmentation.NUM_DRAWS,
)
HEAD = ("6.weight", "6.bias")
GROUPS = (
    LayerGroup("0", ("0.weight", "0.bias", "1.weight", "1.bias")),
    LayerGroup("3", ("3.0.weight", "3.0.bias")),
    LayerGroup("6", HEAD),
)


def tiny_network(dropout: float = 0.0) -> nn.Module:
    """(n, 3, 16, 16) -> logits (n, 3)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Flatten(), nn.Dropout(dropout)), nn.Linear(8, 3),
    )  # fmt: skip


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3, 16, 16) uint8 and their labels (count,) int64."""
    labels = np.arange(count) % 3
    inputs = np.random.default_rng(3).integers(0, 120, (count, 3, 16, 16), dtype=np.uint8)
    inputs[np.arange(count), labels] += 80
    return inputs, labels


def examples(count: int = 90, order: Sequence[int] | None = None, decoded: Callable[[int], None] = id) -> Examples:
    """The first `count` of them. `decoded` is told of each one that is prepared."""
    inputs, labels = pictures(count)
    places = np.array(order if order is not None else range(count))

    def prepare(indices: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(indices), 7):
            piece = places[indices[start : start + 7]]
            for place in piece:
                decoded(int(place))
            yield inputs[piece]

    sha256s = tuple(f"{place:016x}" + "0" * 48 for place in places)
    return Examples(sha256s, labels[places].astype(np.int64), Shelf("decoded", "ab" * 32), prepare)


def settings(**changes: Any) -> Finetune:
    """Of a quick training."""
    values: dict[str, Any] = {
        "model": "tiny", "strategy": "full", "freeze_until": None, "views": 1, "head_dropout": 0.0, "epochs": 4,
        "max_steps": None, "max_minutes": None, "early_stopping_epochs": None, "batch_size": 16, "shards": 1,
        "learning_rate": 0.02, "head_learning_rate_factor": 1.0, "layer_decay": 1.0, "weight_decay": 0.01,
        "warmup_fraction": 0.1, "gradient_clip": None, "ema_decay": 0.0, "label_smoothing": 0.1, "mixup": 0.0,
        "cutmix": 0.0, "class_balance": "none", "device": "cpu", "precision": "fp32", "num_threads": 1,
    }  # fmt: skip
    return Finetune(**values | changes)


def job(
    train: Examples | None = None,
    network: nn.Module | None = None,
    seed: int = 1,
    groups: Sequence[LayerGroup] = GROUPS,
    precision: Any = "fp32",
    stopped_after: int | None = None,
    feed: Feed = FEED,
    val: Examples | None = None,
    **changes: Any,
) -> Job:
    """A training of the tiny network on 90 examples."""
    train = train or examples()
    chosen = settings(**changes)
    facts = Facts(num_train=len(train), num_classes=3, is_pretrained=True)
    return Job(
        network=network or tiny_network(), groups=groups, num_classes=3, train=train, val=val or examples(30),
        feed=feed, plan=make_plan(facts, groups, chosen), settings=chosen, seed=seed, device=torch.device("cpu"),
        precision=precision, stopped_after=stopped_after,
    )  # fmt: skip
