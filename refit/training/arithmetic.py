"""How a training computes here: the number format of the big products, and the threads.

bf16 halves a step of a network of wide convolutions and doubles one of small depthwise ones; a second thread halves a
step on an idle machine and makes it many times longer on a busy one. No list of networks says so beforehand: a probe
of a second or two does, per network, input and machine. Another answer would be another result, so it is kept for all
projects of this user (~/.cache/refit/probes); `refit reproduce` uses what the card says instead.
"""

import ctypes
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import WorkspaceError
from ..files import sha256_of_json
from ..params import Finetune
from ..records import publish_record, read_record
from .choices import Precision, available_cores, pinned

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

_ROWS = (4, 16)
_ROUNDS = 3
_SHORT_SECONDS = 0.05
_CLEAR_AT_ONCE = (0.65, 1.1)
"""A share of the plain step's time below or above these needs no further rounds."""
_CLEARLY_FASTER = 0.8
"""More threads, or bf16, are taken where a step takes less than this share of the plain one: the noise of a short probe
must not decide, and bf16's rounding must buy something."""


class _Times(NamedTuple):
    """Of a step. What other processes do to a step shows on the clock: threads are judged by it, since they take turns
    with those processes. Work shows in CPU time: a number format is judged by that, and a busy machine does not matter.
    """

    clock: float  # seconds
    work: float  # seconds of all threads


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What is used, and why."""

    precision: Precision
    num_threads: int  # of the CPU
    reason: str


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which the network computes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def keep_memory() -> None:
    """Let the C library keep large blocks that are freed. It gives them back to the system, which must clear them anew
    in each step: 5 % of one of ResNet-18. Elsewhere than with glibc nothing changes."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def choose_arithmetic(
    network: nn.Module, inputs: Tensor, settings: Finetune, learns: bool, machine: object
) -> Arithmetic:
    """What `finetune.precision` and `finetune.num_threads` mean here, for a network on inputs (n, …).

    With shards there is one thread a process, so that the number of processes changes nothing. The network's weights
    and running statistics stay as they are; torch's number of threads does not.

    Args:
        learns: whether the whole network learns; otherwise most of it only looks, and a forward pass is what counts.
        machine: the environment class, as plain values: part of the key under which the answer of a probe is kept.
    """
    fixed = pinned()
    precision = fixed.precision or (None if settings.precision == "auto" else settings.precision)
    num_threads = fixed.num_threads or (None if settings.num_threads == "auto" else settings.num_threads)
    if inputs.device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = precision or ("bf16" if has_bf16 else "fp32")
        return Arithmetic(precision=precision, num_threads=num_threads or available_cores(), reason="on a GPU")
    if settings.shards > 1:
        num_threads = num_threads or 1
    if precision and num_threads:
        return Arithmetic(precision=precision, num_threads=num_threads, reason="as params.yaml or the card says")
    asked = [settings.model, list(inputs.shape), precision, num_threads, learns, available_cores(), machine]
    answer = _probes() / f"{sha256_of_json(asked)}.json"
    if not answer.exists():
        publish_record(answer, _probe(network, inputs, precision, num_threads, learns))
    return read_record(answer, Arithmetic, WorkspaceError, "; remove it")


def _probe(
    network: nn.Module, inputs: Tensor, precision: Precision | None, num_threads: int | None, learns: bool
) -> Arithmetic:
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()} if learns else {}
    was_training = network.training
    network.train(learns)
    rows = inputs[: _ROWS[0]]
    if _times(network, rows, "fp32", 1, learns).clock < _SHORT_SECONDS:
        rows = inputs[: _ROWS[1]]
    threads = [num_threads] if num_threads else sorted({1, available_cores()})
    formats: list[Precision] = [precision] if precision else ["fp32", "bf16"]
    best = {(each, format_): _Times(inf, inf) for each in threads for format_ in formats}
    for way in best:  # the first time chooses kernels
        _times(network, rows, way[1], way[0], learns)
    for _ in range(_ROUNDS):
        for way, least in best.items():
            best[way] = _Times(*map(min, _times(network, rows, way[1], way[0], learns), least))
        plain = best[(threads[0], formats[0])]
        shares = [
            least.work / plain.work if count == threads[0] else least.clock / plain.clock
            for (count, _), least in list(best.items())[1:]
        ]
        if all(not _CLEAR_AT_ONCE[0] < share < _CLEAR_AT_ONCE[1] for share in shares):
            break
    network.zero_grad(set_to_none=True)
    network.train(was_training)
    for name, tensor in state.items():
        network.state_dict()[name].copy_(tensor)
    (count, _), threads_say = _faster(best, [(each, formats[0]) for each in threads])
    chosen, format_says = _faster(best, [(count, each) for each in formats])
    return Arithmetic(
        precision=chosen[1], num_threads=chosen[0], reason="; ".join(filter(None, (threads_say, format_says)))
    )


def _faster(
    best: dict[tuple[int, Precision], _Times], ways: list[tuple[int, Precision]]
) -> tuple[tuple[int, Precision], str]:
    """The last of one or two ways if it is clearly faster than the first, and the reason."""
    plain, other = ways[0], ways[-1]
    if plain == other:
        return plain, ""
    is_format = plain[0] == other[0]
    share = best[other].work / best[plain].work if is_format else best[other].clock / best[plain].clock
    said = f"a step with {other[1] if is_format else f'{other[0]} threads'} took {share:.2f} of one with "
    said += plain[1] if is_format else f"{plain[0]}"
    return (other if share < _CLEARLY_FASTER else plain), said


def _times(network: nn.Module, inputs: Tensor, precision: Precision, num_threads: int, learns: bool) -> _Times:
    """Of a forward pass and, where the network learns, a backward pass."""
    torch.set_num_threads(num_threads)
    clock, work = time.perf_counter(), time.process_time()
    with autocast(inputs.device, precision), torch.set_grad_enabled(learns):
        logits = network(inputs)
    if learns:
        logits.float().sum().backward()
    return _Times(time.perf_counter() - clock, time.process_time() - work)


def _probes() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refit" / "probes"
