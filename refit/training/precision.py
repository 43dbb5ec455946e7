"""The number format of the big products: fp32, or bf16 by torch's autocast where it is clearly faster.

bf16 halves a step of a network of wide convolutions and doubles one of small depthwise ones, and no list of networks
says which is which on the next processor: a probe of about a second decides, per network, input and machine. Its answer
is kept in .refit/probes, since another answer would be another result.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import WorkspaceError
from ..files import sha256_of_json
from ..model.card import Environment
from ..params import Finetune
from ..records import as_plain, publish_record, read_record
from .choices import Precision, pinned

_PROBES = Path(".refit/probes")
_ROUNDS = 3
_PROBE_BATCH = 4
_CLEARLY_FASTER = 0.85
"""bf16 is taken where a step takes less than this share of one in fp32: its rounding must buy something, and the noise
of a short probe must not decide."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """The answer of a probe."""

    precision: Precision
    reason: str


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which the network computes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def choose_precision(
    network: nn.Module, inputs: Tensor, settings: Finetune, made_in: Environment
) -> tuple[Precision, str]:
    """What `finetune.precision` means here for a network on inputs (n, …), and why.

    The network's weights and running statistics stay as they are.
    """
    if (fixed := pinned().precision) is not None:
        return fixed, "as it was trained before"
    if settings.precision != "auto":
        return settings.precision, "`finetune.precision`"
    if inputs.device.type == "cuda":
        return ("bf16", "the GPU has it") if torch.cuda.is_bf16_supported() else ("fp32", "the GPU has no bf16")
    key = sha256_of_json([settings.model, settings.strategy, list(inputs.shape[1:]), as_plain(made_in)])
    answer = _PROBES / f"{key}.json"
    if not answer.exists():
        publish_record(answer, _probe(network, inputs[:_PROBE_BATCH]))
    found = read_record(answer, Probed, WorkspaceError, "; remove it")
    return found.precision, found.reason


def _probe(network: nn.Module, inputs: Tensor) -> Probed:
    seconds = _seconds_of_a_step(network, inputs)
    ratio = seconds["bf16"] / seconds["fp32"]
    return Probed(
        precision="bf16" if ratio < _CLEARLY_FASTER else "fp32",
        reason=f"a step in bf16 took {ratio:.2f} of one in fp32",
    )


def _seconds_of_a_step(network: nn.Module, inputs: Tensor) -> dict[Precision, float]:
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    was_training = network.training
    network.train()
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    best: dict[Precision, float] = {}
    for round_ in range(_ROUNDS):
        for precision in precisions:
            start = time.perf_counter()
            with autocast(inputs.device, precision):
                logits = network(inputs)
            logits.float().sum().backward()
            seconds = time.perf_counter() - start
            if round_:  # the first one chooses kernels
                best[precision] = min(seconds, best.get(precision, seconds))
    network.zero_grad(set_to_none=True)
    network.train(was_training)
    for name, tensor in network.state_dict().items():
        tensor.copy_(state[name])
    return best
