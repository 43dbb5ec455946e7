"""The same bits on any number of processes.

    parts = cut(len(batch), shards)               each is computed alone, with batch norm statistics of its own
    total = ranks.tree_sum(tree_sum(vectors))     added in one fixed binary tree, wherever its leaves were computed

A rank computes neighbouring shards and adds them pairwise; recursive doubling (exchange with rank xor 1, 2, 4 …, always
lower + higher) goes on with the same tree across ranks. Floating-point addition is not associative, but this order
never changes, so 1, 2, 4 … `shards` processes end with the same weights. `torchrun` starts them, or `started`.
"""

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ParamsError, TrainingError
from .choices import available_cores


def cut(count: int, shards: int) -> list[slice]:
    """`shards` slices of a batch of `count` examples, as equal as can be; the first ones where there are too few.

    A shard has at least two examples, since batch norm needs two: of a small last batch, some shards are empty.
    """
    filled = shards
    while filled > 1 and count < 2 * filled:
        filled //= 2
    edges = [count * shard // filled for shard in range(filled + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)] + [slice(count, count)] * (shards - filled)


def tree_sum(parts: Iterable[Tensor]) -> Tensor:
    """Add 2ⁿ tensors of one shape as a balanced binary tree, holding no more than n + 1 of them at a time."""
    pending: list[tuple[int, Tensor]] = []  # (level, sum), levels fall
    for part in parts:
        level, total = 0, part
        while pending and pending[-1][0] == level:
            total = pending.pop()[1] + total
            level += 1
        pending.append((level, total))
    ((_, total),) = pending
    return total


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, and which of them this is. One alone is the plain case."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes what is written once."""
        return self.index == 0

    def own(self, shards: int) -> range:
        """The shards that are computed here."""
        each = shards // self.count
        return range(self.index * each, (self.index + 1) * each)

    def tree_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each: recursive doubling."""
        distance = 1
        while distance < self.count:
            partner = self.index ^ distance
            other = torch.empty_like(tensor)
            works = dist.batch_isend_irecv(
                [dist.P2POp(dist.isend, tensor, partner), dist.P2POp(dist.irecv, other, partner)]
            )
            for work in works:
                work.wait()
            tensor = tensor + other if self.index < partner else other + tensor
            distance *= 2
        return tensor

    def from_first(self, data: bytes | None) -> bytes | None:
        """What the first rank holds, on all."""
        if self.count == 1:
            return data
        holder: list[bytes | None] = [data]
        dist.broadcast_object_list(holder)
        return holder[0]


@contextlib.contextmanager
def started(module: str, shards: int, device: torch.device) -> Iterator[Ranks]:
    """The processes that train: as torchrun says, or as many as there is use for, which are started here.

    Without torchrun the number is REFIT_PROCESSES, or one for each GPU, or each core of a CPU, and no more than shards.
    This process is the first; the others run the same `python -m module` and end with it.

    Raises:
        ParamsError: torchrun started another number than `finetune.shards` can use.
        TrainingError: one of the others died.
    """
    is_launched, place = "WORLD_SIZE" in os.environ, int(os.environ.get("LOCAL_RANK", "0"))
    count = int(os.environ["WORLD_SIZE"]) if is_launched else _useful_processes(shards, device)
    _check(count, place + 1 if is_launched else count, shards, device)
    if count == 1:
        yield Ranks()
        return
    others: list[subprocess.Popen[bytes]] = []
    ready = -1
    with tempfile.TemporaryFile() as errors:
        try:
            if not is_launched:
                others, ready = _start_others(module, count, errors)
            if device.type == "cuda":
                torch.cuda.set_device(place)
            _wait_until_all_are_there(others, ready)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            yield Ranks(dist.get_rank(), count)
        except (RuntimeError, dist.DistError) as error:
            codes = [code for other in others if (code := other.poll()) not in (None, 0)]
            if not codes and "onnection" not in str(error):
                raise
            errors.seek(0)
            said = errors.read().decode(errors="replace").split("\n") if others else []
            reason = next((line for line in reversed(said) if line.strip()), " ".join(str(error).split())[:120])
            raise TrainingError(
                f"one of the {count} processes that train together is gone ({reason.strip()}); run again: the training "
                "goes on from its last state, on any number of processes"
            ) from None
        finally:
            for other in others:  # they have nothing to save, and may wait for this one where no signal is heard
                other.kill()
                other.wait()
            with contextlib.suppress(Exception):  # it may never have been there
                dist.destroy_process_group()
            if others:
                for name in _VARIABLES:
                    del os.environ[name]


_READY = "REFIT_READY"
_SECONDS_TO_DIE = 5.0
_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")


def _check(count: int, on_this_machine: int, shards: int, device: torch.device) -> None:
    if count & (count - 1) or shards % count:
        raise ParamsError(
            f"{count} processes cannot share `finetune.shards: {shards}`; both must be powers of two, and no more "
            "processes than shards"
        )
    if device.type == "cuda" and count > 1 and on_this_machine > torch.cuda.device_count():
        raise ParamsError(
            f"this machine has {torch.cuda.device_count()} GPUs, one for each process; start no more on it"
        )


def _useful_processes(shards: int, device: torch.device) -> int:
    if wanted := os.environ.get("REFIT_PROCESSES"):
        if not wanted.isdecimal():
            raise ParamsError(f"the environment variable REFIT_PROCESSES is {wanted!r}; it should be a number")
        return min(shards, int(wanted))
    places = torch.cuda.device_count() if device.type == "cuda" else available_cores() // torch.get_num_threads()
    return min(shards, 1 << max(0, places.bit_length() - 1))


def _start_others(module: str, count: int, errors: IO[bytes]) -> tuple[list["subprocess.Popen[bytes]"], int]:
    """The processes, and the end of a pipe to which each writes once it is about to meet the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = ("127.0.0.1", str(port), str(count), "0", "0")
    os.environ.update(zip(_VARIABLES, values, strict=True))
    ready, theirs = os.pipe()
    others = [
        subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), _READY: str(theirs)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(theirs,),
        )
        for rank in range(1, count)
    ]
    os.close(theirs)
    return others, ready


def _wait_until_all_are_there(others: Sequence["subprocess.Popen[bytes]"], ready: int) -> None:
    """torch waits for half an hour for a process that died before it came.

    Raises:
        RuntimeError: one died.
    """
    if theirs := os.environ.pop(_READY, None):
        os.write(int(theirs), b".")
        os.close(int(theirs))
    if others:
        with open(ready, "rb") as pipe:
            told = pipe.read()  # until all have closed it, by writing or by dying
        if len(told) < len(others):
            until = time.monotonic() + _SECONDS_TO_DIE
            while time.monotonic() < until and not any(other.poll() for other in others):
                time.sleep(0.05)
            raise RuntimeError("no connection")


class Statistics:
    """The running statistics of batch norms over the shards of a step: each shard starts from those before the step,
    and what they become is averaged."""

    def __init__(self, network: nn.Module) -> None:
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
        learning = [norm for norm in norms if norm.training and norm.track_running_stats]
        self.running = [b for norm in learning for b in (norm.running_mean, norm.running_var) if b is not None]
        self.counters = [norm.num_batches_tracked for norm in learning if norm.num_batches_tracked is not None]
        self.before = [tensor.clone() for tensor in (*self.running, *self.counters)]

    def rewind(self) -> None:
        """Back to what they were before the step."""
        for tensor, before in zip((*self.running, *self.counters), self.before, strict=True):
            tensor.copy_(before)

    def average(self, sums: list[Tensor], filled: int) -> None:
        """Take the mean over `filled` shards. A step counts as one batch, however many shards a rank computed."""
        for tensor, total in zip(self.running, sums, strict=True):
            tensor.copy_(total / filled)
        for counter, before in zip(self.counters, self.before[len(self.running) :], strict=True):
            counter.copy_(before + 1)
