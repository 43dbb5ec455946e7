"""All that decides a training, in one record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ..modality.contract import LayerGroup
from ..params import Finetune
from .choices import Precision
from .examples import Examples
from .plan import Plan

_PIECE = 1024
"""Examples that are looked at together."""


@dataclass(frozen=True)
class Feed:
    """How prepared examples reach the network: the modality's functions, with its settings bound to them."""

    network_input: Callable[[Tensor], Tensor]  # (n, …) prepared or changed -> what the network reads
    augment: Callable[[Tensor, Tensor], Tensor]  # (n, …) and (n, num_draws) float32 in [0, 1) -> (n, …), changed
    num_draws: int
    extents: Callable[[np.ndarray], np.ndarray] | None = None
    """(n, …) prepared -> (n,) int64: examples of one extent make batches of one shape. None: all are alike."""
    digest: str = ""  # of the settings of `augment`


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, and how; but not how many processes do it, which changes nothing."""

    network: nn.Module  # on the device
    groups: Sequence[LayerGroup]  # from the input to the output layer
    num_classes: int
    train: Examples
    val: Examples
    feed: Feed
    plan: Plan
    settings: Finetune
    seed: int
    device: torch.device
    precision: Precision = "fp32"
    features_key: str = ""  # the digest of what decides the features of frozen layers
    stopped_after: int | None = None  # epochs that a recorded training made before its time was over

    def frozen(self, first_group: int) -> frozenset[str]:
        """Names of the parameters below a layer group."""
        return frozenset(name for group in self.groups[:first_group] for name in group.parameters)

    @cached_property
    def train_extents(self) -> np.ndarray | None:
        """(n,) int64 of the training examples; None: all are alike."""
        return self.extents(self.train)

    @cached_property
    def val_extents(self) -> np.ndarray | None:
        """(n,) int64 of the validation examples; None: all are alike."""
        return self.extents(self.val)

    def extents(self, examples: Examples) -> np.ndarray | None:
        """(n,) int64 of some examples; None: all are alike."""
        if self.feed.extents is None:
            return None
        pieces = np.array_split(np.arange(len(examples)), max(1, len(examples) // _PIECE))
        return np.concatenate([self.feed.extents(examples.rows.gather(piece)) for piece in pieces])
