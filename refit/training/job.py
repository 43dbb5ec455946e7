"""All that decides a training, in one record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modality.contract import LayerGroup
from ..params import Finetune
from .choices import Precision
from .examples import Examples
from .plan import Plan


@dataclass(frozen=True)
class Feed:
    """How prepared examples reach the network: the modality's functions, with its settings bound to them."""

    network_input: Callable[[Tensor], Tensor]  # (n, …) prepared or changed -> what the network reads
    augment: Callable[[Tensor, Tensor], Tensor]  # (n, …) and (n, num_draws) float32 in [0, 1) -> (n, …), changed
    num_draws: int
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
