"""The state of a training that is going on, so that it can go on after any kill and end with the same bits.

    keeper = Keeper(fingerprint)
    saved = keeper.load()                    None: from the start
    if keeper.is_due(): keeper.save(position, tensors, best)
    keeper.clear()                           when all outputs are written

The folder .refit/state/<fingerprint>/ has `state.safetensors`: the tensors, and in its metadata the position. The
weights of the best epoch so far, which change seldom, are a file of their own that the position names. Each appears
whole. The fingerprint names data, params, code and environment, so that a stale state is never picked up.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ..files import publish_table, publishing
from ..paths import LIVE_HISTORY, STATES
from ..progress import say
from .choices import number_in_environment

_SECONDS_BETWEEN_SAVES = 60.0
_MAX_SHARE = 0.03
"""Of the time, that saving may take: a save that takes long is made less often."""
_OTHERS_KEPT = 2
"""States of other fingerprints that stay: somebody may go back to the params of before."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of the history. Losses are in nats; accuracies in [0, 1]."""

    epoch: int
    learning_rate: float  # at the end of the epoch
    train_loss: float  # with label smoothing and augmentation, as optimised
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a training stands: the next step to make, and what has been seen."""

    phase: int = 0
    epoch: int = 0  # of the phase
    step: int = 0  # of the epoch
    loss_sum: float = 0.0  # over the examples of the epoch so far
    num_correct: int = 0
    seconds: float = 0.0  # of training so far
    history: tuple[Epoch, ...] = ()
    best_epoch: int = 0  # counted over all phases from 1; 0: none yet
    steps_done: int = 0  # over all phases


class Keeper:
    """Saves once a minute, or every REFIT_STATE_SECONDS. `fingerprint` None: never."""

    def __init__(self, fingerprint: str | None) -> None:
        self.folder = STATES / fingerprint if fingerprint else None
        fixed = number_in_environment("REFIT_STATE_SECONDS")
        self.least_seconds = self.seconds_between = _SECONDS_BETWEEN_SAVES if fixed is None else fixed
        self.max_share = _MAX_SHARE if fixed is None else math.inf
        self.last = time.monotonic()
        self.seconds_saving = 0.0

    def load(self) -> bytes | None:
        """The file's bytes, for `parse` on every rank; None where there is no state, or it is damaged."""
        if self.folder is None:
            return None
        _remove_others(self.folder)
        for left_by_a_kill in self.folder.glob(".*.partial"):
            left_by_a_kill.unlink(missing_ok=True)
        try:
            data = (self.folder / "state.safetensors").read_bytes()
        except FileNotFoundError:
            return None
        try:
            position, _ = parse(data)
            if (best := self.load_best(position.best_epoch)) is not None:
                load(best)
        except (SafetensorError, ValueError, KeyError, TypeError, FileNotFoundError):
            say(f"{self.folder} holds a damaged state; training starts anew")
            shutil.rmtree(self.folder, ignore_errors=True)  # its best weights too, which `save` would leave as they are
            return None
        return data

    def load_best(self, epoch: int) -> bytes | None:
        """The weights of the best epoch that a position names; None: there is none yet."""
        return self._best(epoch).read_bytes() if self.folder is not None and epoch else None

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return self.folder is not None and time.monotonic() - self.last >= self.seconds_between

    def save(self, position: Position, tensors: Mapping[str, Tensor], best: Mapping[str, Tensor]) -> None:
        """Write all of it; the last state is there until the new one is whole."""
        if self.folder is None:
            return
        start = time.monotonic()
        best_file = self._best(position.best_epoch)
        if position.best_epoch and not best_file.exists():
            with publishing(best_file) as partial:
                save_file(plain(best), partial)
        with publishing(self.folder / "state.safetensors") as partial:
            save_file(plain(tensors), partial, {"position": msgspec.json.encode(position).decode()})
        for old in self.folder.glob("best-*.safetensors"):
            if old != best_file:
                old.unlink()
        self.last = time.monotonic()
        self.seconds_saving += self.last - start
        self.seconds_between = max(self.least_seconds, (self.last - start) / self.max_share)

    def publish(self, history: tuple[Epoch, ...]) -> None:
        """The history so far, for whoever shows it while the training goes on: the columns of plots/history.csv."""
        if self.folder is not None:
            publish_table(LIVE_HISTORY, as_table(history))

    def clear(self) -> None:
        """The training is over, and its outputs are written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _best(self, epoch: int) -> Path:
        assert self.folder is not None
        return self.folder / f"best-{epoch}.safetensors"


def as_table(history: tuple[Epoch, ...]) -> pd.DataFrame:
    """A row per epoch."""
    return pd.DataFrame([dataclasses.asdict(row) for row in history])


def parse(data: bytes) -> tuple[Position, dict[str, Tensor]]:
    """The position and the tensors of a state's bytes."""
    length = int.from_bytes(data[:8], "little")
    metadata = msgspec.json.decode(data[8 : 8 + length])["__metadata__"]
    return msgspec.json.decode(metadata["position"], type=Position), load(data)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a file takes them: on the CPU, contiguous, and each on its own, tied weights too."""
    seen, found = set[int](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        found[name] = tensor.detach().cpu().contiguous()
        if found[name].numel() and found[name].data_ptr() in seen:
            found[name] = found[name].clone()
        seen.add(found[name].data_ptr())
    return found


def _remove_others(folder: Path) -> None:
    others = sorted(
        (other for other in STATES.glob("*") if other != folder and other.is_dir()),
        key=lambda other: other.stat().st_mtime,
    )
    for old in others[: max(0, len(others) - _OTHERS_KEPT)]:
        shutil.rmtree(old, ignore_errors=True)
