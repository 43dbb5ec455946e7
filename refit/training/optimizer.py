"""AdamW with a rate for each depth, a schedule without memory, and the average of the weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..modality.contract import LayerGroup
from ..params import Finetune
from .plan import Phase


def adamw(
    network: nn.Module, groups: Sequence[LayerGroup], phase: Phase, settings: Finetune
) -> tuple[torch.optim.Optimizer, list[float]]:
    """AdamW (Loshchilov and Hutter 2019) over what learns in a phase, and the peak rate of each parameter group.

    A layer group learns `layer_decay` times as fast as the one above it (layer-wise decay, Clark et al. 2020, ELECTRA).
    The head learns `head_learning_rate_factor` times as fast as the top of the backbone, unless it learns alone. Biases
    and norms do not decay.
    """
    parameters = dict(network.named_parameters())
    rates: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for depth, group in enumerate(groups):
        if depth < len(groups) - 1:
            scale = settings.layer_decay ** (len(groups) - 2 - depth)
        else:
            scale = settings.head_learning_rate_factor if phase.first_group < depth else 1.0
        for name in group.parameters:
            parameter = parameters[name]
            parameter.requires_grad_(depth >= phase.first_group)
            if parameter.requires_grad:
                rates.setdefault((phase.learning_rate * scale, parameter.ndim > 1), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": members, "lr": rate, "weight_decay": settings.weight_decay if decays else 0.0}
            for (rate, decays), members in rates.items()
        ],
        fused=True,
    )
    return optimizer, [rate for rate, _ in rates]


def learning_rate_at(step: int, total_steps: int, warmup_fraction: float) -> float:
    """The share of the peak learning rate at a step: a linear rise, then half a cosine down to 0."""
    warmup_steps = round(total_steps * warmup_fraction)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


class Average:
    """An exponential moving average of the weights that learn; with decay 0 there is none, and it costs nothing.

    The first steps count more (decay min(d, (1 + t) / (10 + t))), so that random weights are soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.averages = {name: p.detach().clone() for name, p in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After an optimizer step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """In the block the network has the averages for weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.averages.items():
            kept = self.parameters[name].clone()
            self.parameters[name].copy_(average)
            average.copy_(kept)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's state by the names of its parameters, as `restore` takes it."""
    return {
        f"{entry}/{names[parameter]}": value
        for parameter, values in optimizer.state.items()
        for entry, value in values.items()
    }


def restore(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    for key, value in tensors.items():
        entry, _, name = key.partition("/")
        parameter = parameters[name]
        where = parameter.device if entry != "step" or parameter.device.type == "cuda" else torch.device("cpu")
        restored = value.to(where)
        if restored.shape == parameter.shape:  # the layout decides which kernels run, and so the last bits
            restored = torch.empty_like(parameter).copy_(restored)
        optimizer.state[parameter][entry] = restored
