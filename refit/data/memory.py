"""What a search for near-duplicates found and saw, kept by content for the next one.

    memory = recall(store, kind, views)          nothing, if there is nothing that this code wrote, or it is damaged
    remember(store, kind, memory)

An example has the name of its signature, so that nothing here can be said of another one. The file's name is the digest
of the code that decides; zip's checksums tell a damaged file. Whatever is remembered, a search finds the same.
"""

import hashlib
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ..files import publishing, sha256_of_file, sha256_of_json
from ..modality.contract import Duplicates

_CODE = ("duplicates.py", "hamming.py", "memory.py", "neighbours.py")


@dataclass(frozen=True)
class Memory:
    """Of a set of examples, in the order of their names."""

    names: np.ndarray  # (n,) S16
    hashes: np.ndarray  # (n, number of views) uint64
    was_searched: np.ndarray  # (n,) bool; the others have one that stands for them
    num_like: np.ndarray  # (n,) int32, as `neighbours.search` gives them
    candidates: np.ndarray  # (k, 4) int32, likewise
    same: np.ndarray  # (k, 4) int32: an example, another, the view, and whether they show the same
    closer: np.ndarray  # (k, 4) int32: whether they do at a closer look


def nothing(num_views: int) -> Memory:
    """That of the first search."""
    rows = np.empty((0, 4), dtype=np.int32)
    hashes, none = np.empty((0, num_views), dtype=np.uint64), np.empty(0, dtype=np.int32)
    return Memory(np.empty(0, dtype="S16"), hashes, none.astype(bool), none, rows, rows, rows)


def names_of(signatures: np.ndarray, sides: np.ndarray | None) -> np.ndarray:
    """(n,) S16: the side, then 15 bytes of a digest of the signature; sorted, they are in the order of the sides."""
    sides = np.zeros(len(signatures), dtype=np.uint8) if sides is None else sides.astype(np.uint8)
    digests = (hashlib.blake2b(one, digest_size=15).digest() for one in np.ascontiguousarray(signatures))
    return np.array([bytes([side]) + digest for side, digest in zip(sides, digests, strict=True)], dtype="S16")


class Look:
    """Sees whether examples show the same, and what it has seen once it remembers."""

    def __init__(self, see: Callable[[np.ndarray], np.ndarray], seen: np.ndarray, now: np.ndarray, count: int) -> None:
        """
        Args:
            see: (k, 3) int rows of an example, another and a view -> (k,) bool.
            seen: (k, 4) of an earlier search, whose examples are `now` at these places of `count`, or gone (-1).
        """
        seen = seen[(now[seen[:, :2]] >= 0).all(axis=1)]
        self._see, self._count = see, count
        self._seen = np.column_stack([now[seen[:, :2]], seen[:, 2:]])
        keys = self._keys(self._seen)
        self._order, self._known = np.argsort(keys), np.sort(keys)
        self._said = [np.empty((0, 4), dtype=np.int32)]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(k, 3 or more) -> (k,) bool"""
        keys = self._keys(rows)
        places = np.minimum(np.searchsorted(self._known, keys), max(len(self._known) - 1, 0))
        is_known = self._known[places] == keys if len(self._known) else np.zeros(len(keys), dtype=bool)
        answers = np.zeros(len(rows), dtype=bool)
        answers[is_known] = self._seen[self._order[places[is_known]], 3]
        answers[~is_known] = self._see(rows[~is_known])
        self._said.append(np.column_stack([rows[:, :3], answers]).astype(np.int32))
        return answers

    def said(self) -> np.ndarray:
        """(k, 4) int32: all answers that it gave."""
        return np.concatenate(self._said)

    def _keys(self, rows: np.ndarray) -> np.ndarray:
        left, right, view = rows[:, :3].astype(np.int64).T
        return np.asarray((view * self._count + left) * self._count + right)


def recall(store: Path | None, kind: Duplicates, views: Sequence[int]) -> Memory:
    """What the last search in this folder left, by this code and of these views."""
    if store is None:
        return nothing(len(views))
    try:
        with np.load(_file(store, kind, views), allow_pickle=False) as kept:
            return Memory(*(kept[field.name] for field in fields(Memory)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return nothing(len(views))


def remember(store: Path, kind: Duplicates, views: Sequence[int], memory: Memory) -> None:
    """Keep it, in place of what was there, which may be what other code has left."""
    target = _file(store, kind, views)
    with publishing(target) as partial, partial.open("wb") as file:
        np.savez(file, **{field.name: getattr(memory, field.name) for field in fields(Memory)})
    for other in store.glob("*.npz"):
        if other != target:
            other.unlink(missing_ok=True)


def _file(store: Path, kind: Duplicates, views: Sequence[int]) -> Path:
    of_kind = sys.modules[kind.hashes_of.__module__].__file__
    assert of_kind is not None
    code = [sha256_of_file(path) for path in (Path(of_kind), *(Path(__file__).with_name(name) for name in _CODE))]
    return store / f"{sha256_of_json([*code, list(views), np.__version__])[:16]}.npz"
