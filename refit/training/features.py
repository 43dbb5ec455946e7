"""What a phase of training reads: prepared examples, or, above frozen layers, what those made of them.

    stream = stream_for(job, phase, work)
    logits = stream.logits(stream.train(epoch, rows))

Where layers are frozen they run once per example and view; their features are kept (`cache.py`), and only the rest of
the network trains. The frozen part always sees batches of one shape, the last one padded, and examples of one extent
together, so that the features of an example are the same bits whatever its company: for a set that grew, only what is
new is computed.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..progress import say
from . import frozen
from .arithmetic import autocast
from .cache import FORMAT, Rows, Shelf
from .determinism import uniforms
from .examples import Examples
from .job import Job
from .plan import Phase

_FEATURE_BATCH = 8
_WINDOW = 1024
"""Examples among which those of one extent are looked for; their features are kept together."""
_RESIDENT_BYTES = 64 * 2**20
"""Rows that are no more than this together are held in memory (on a GPU: than a quarter of what is free there)."""


@dataclass
class Work:
    """What was computed in a training, in examples and steps. What a cache had is not counted."""

    frozen_forwards: int = 0  # of the frozen part alone
    whole_forwards: int = 0  # of the whole network, while it learns
    rest_forwards: int = 0  # of what is above the frozen part, while it learns
    val_forwards: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Stream:
    """Where the batches of a phase come from, and what makes logits of them."""

    prepare: Callable[[int], object]  # epoch: its rows are there from then on
    train: Callable[[int, np.ndarray], Tensor]  # (epoch over all phases, (k,) rows) -> (k, …) on the device
    val: Callable[[np.ndarray], Tensor]  # (k,) rows -> (k, …)
    logits: nn.Module  # (k, …) -> (k, num_classes)
    train_mode: Callable[[], None]  # `logits` learns, but for what is frozen in it
    part: Literal["whole", "rest"]


def stream_for(job: Job, phase: Phase, work: Work) -> Stream:
    """The stream of a phase. A network that cannot be cut where its frozen layers end computes them in each epoch."""
    names = job.frozen(phase.first_group)
    if names:
        found = _split(job, names)
        if found is not None:
            return _on_features(job, found, names, work)
        say(f"phase {phase.name}: this network cannot be cut where its frozen layers end; they are computed each time")
    return _on_examples(job, names)


def features_below(job: Job, first_group: int, examples: Examples) -> Iterator[Tensor] | None:
    """What the layers below a group make of some examples, before anything learns: (k, d) float32 pieces, in order.

    They are those of a training in which these layers are frozen, and are kept where that one finds them.

    Returns:
        None where the network cannot be cut there.
    """
    names = job.frozen(first_group)
    found = _split(job, names)
    if found is None:
        return None
    forward = _Forward(job, found, examples, 0, Work(), job.extents(examples))
    shelf = Shelf("features", _features_digest(job, names))
    rows = shelf.rows([bytes.fromhex(sha256) for sha256 in examples.sha256s], forward)
    places = np.arange(len(rows))
    pieces = (places[start : start + _WINDOW] for start in range(0, len(places), _WINDOW))
    return (_as_tensor(rows.gather(piece)).float() for piece in pieces)


def _split(job: Job, names: frozenset[str]) -> frozen.Split | None:
    sample = torch.from_numpy(job.train.some(2)).to(job.device)
    with autocast(job.device, job.precision):
        return frozen.split(job.network, names, job.feed.network_input(sample))


def _on_examples(job: Job, names: frozenset[str]) -> Stream:
    """The whole network on prepared examples, changed anew in each epoch."""
    train_rows, val_rows = _reader(job.train.rows, job.device), _reader(job.val.rows, job.device)

    def train(epoch: int, rows: np.ndarray) -> Tensor:
        return job.feed.network_input(_augmented(job, "augment", epoch, train_rows(rows), job.train.keys[rows]))

    return Stream(
        prepare=lambda _: None,
        train=train,
        val=lambda rows: job.feed.network_input(val_rows(rows)),
        logits=job.network,
        train_mode=lambda: frozen.set_training(job.network, names),
        part="whole",
    )


def _on_features(job: Job, split: frozen.Split, names: frozenset[str], work: Work) -> Stream:
    """The rest of the network on features. Epochs take turns in the views: the first is the example as it is."""
    shelf = Shelf("features", _features_digest(job, names))

    def reader(examples: Examples, view: int) -> Callable[[np.ndarray], Tensor]:
        extents = job.train_extents if examples is job.train else job.val_extents
        forward = _Forward(job, split, examples, view, work, extents)
        sha256s = [bytes.fromhex(sha256) for sha256 in examples.sha256s]
        if view:
            suffix = f"/{job.seed}/{view}/{job.feed.digest}".encode()
            sha256s = [hashlib.sha256(sha256 + suffix).digest() for sha256 in sha256s]
        return _reader(shelf.rows(sha256s, forward), job.device)

    @functools.cache
    def view_reader(view: int) -> Callable[[np.ndarray], Tensor]:
        return reader(job.train, view)

    def train_mode() -> None:
        job.network.eval()
        split.suffix.train()

    return Stream(
        prepare=lambda epoch: view_reader(epoch % job.plan.views),
        train=lambda epoch, rows: view_reader(epoch % job.plan.views)(rows),
        val=reader(job.val, 0),
        logits=split.suffix,
        train_mode=train_mode,
        part="rest",
    )


@dataclass(frozen=True)
class _Forward:
    """Computes features of some examples: what a shelf asks for when it does not have them."""

    job: Job
    split: frozen.Split
    examples: Examples
    view: int
    work: Work

    extents: np.ndarray | None

    def __call__(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        size = _FEATURE_BATCH if self.extents is None else _WINDOW
        for start in range(0, len(indices), size):
            window = indices[start : start + size]
            pieces = list(self._pieces(window))
            features = [self._features(window[piece]) for piece in pieces]
            yield np.concatenate(features)[np.concatenate(pieces).argsort()]

    def _pieces(self, window: np.ndarray) -> Iterator[np.ndarray]:
        """Positions in a window that go through the network together."""
        extents = np.zeros(len(window), dtype=np.int64) if self.extents is None else self.extents[window]
        for extent in np.unique(extents):
            alike = np.flatnonzero(extents == extent)
            yield from np.split(alike, range(_FEATURE_BATCH, len(alike), _FEATURE_BATCH))

    def _features(self, piece: np.ndarray) -> np.ndarray:
        job, rows = self.job, np.resize(piece, _FEATURE_BATCH)
        batch = torch.from_numpy(self.examples.rows.gather(rows)).to(job.device)
        if self.view:
            batch = _augmented(job, f"view {self.view}", 0, batch, self.examples.keys[rows])
        with autocast(job.device, job.precision):
            features = self.split.prefix(job.feed.network_input(batch))
        self.work.frozen_forwards += len(piece)
        return _as_array(features[: len(piece)].cpu())


def _augmented(job: Job, purpose: str, epoch: int, batch: Tensor, keys: np.ndarray) -> Tensor:
    draws = uniforms(job.seed, purpose, epoch, keys, job.feed.num_draws).astype(np.float32)
    return job.feed.augment(batch, torch.from_numpy(draws).to(job.device))


def _features_digest(job: Job, names: frozenset[str]) -> str:
    """Of all that decides a row of features beside the example: the frozen weights, bit by bit, and what computes."""
    digest = hashlib.sha256(f"{FORMAT}/{job.features_key}/{job.precision}/{job.train.shelf.key}".encode())
    frozen_modules = {name.rpartition(".")[0] for name in names}
    for name, tensor in sorted(job.network.state_dict().items()):
        if name in names or name.rpartition(".")[0] in frozen_modules:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _as_array(features: Tensor) -> np.ndarray:
    """NumPy has no bfloat16: its bits are kept as those of a structure of two bytes."""
    features = features.contiguous()
    return features.view(torch.int16).numpy().view(_BF16) if features.dtype == torch.bfloat16 else features.numpy()


def _as_tensor(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16) if rows.dtype == _BF16 else torch.from_numpy(rows)


_BF16 = np.dtype("V2")


def _reader(rows: Rows, device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """(k,) rows -> (k, …) on the device, from its memory where all of them fit."""
    one = rows.gather(np.zeros(1, dtype=np.int64))
    limit = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else _RESIDENT_BYTES
    if one.nbytes * len(rows) > limit:
        return lambda indices: _as_tensor(rows.gather(indices)).to(device)
    held = torch.empty((len(rows), *one.shape[1:]), dtype=_as_tensor(one).dtype, device=device)
    for start in range(0, len(rows), 256):
        piece = np.arange(start, min(start + 256, len(rows)))
        held[start : start + len(piece)] = _as_tensor(rows.gather(piece)).to(device)
    return lambda indices: held[torch.from_numpy(indices).to(device)]
