"""What is near what, by hashes: candidates for a second look, remembered from one search to the next.

    candidates, num_like = search(is_searched, hashes, views, kind, before)

Of each example the nearest are kept, 16 of them, whatever is in the set. A search looks only for what is new, against
all, and for the few whose list a change has made unsure; it finds, bit for bit, what a search from nothing finds
(`tests/test_neighbours.py`). For that, nothing depends on where an example stands: those at one distance are taken in
the order of their names, which are digests of their contents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..modality.contract import Duplicates
from .hamming import Index

MOST_PER_EXAMPLE = 16  # candidates for the second look, the nearest ones: a set of blank pages has all pairs
_ENOUGH = 128  # whole examples that are like one: its views would only find more of them
_MOST_HELD = 1 << 22  # candidates; beside those that are kept


@dataclass(frozen=True)
class Remembered:
    """An earlier search of some of the examples and of some that are gone."""

    now: np.ndarray  # (m,) int64: where each of its examples is now, or -1
    was_searched: np.ndarray  # (m,) bool
    hashes: np.ndarray  # (m, number of views) uint64
    num_like: np.ndarray  # (m,) int32
    candidates: np.ndarray  # (k, 4) int32


def whole_views(kind: Duplicates) -> list[int]:
    """Those that see an example whole: the ones of the largest radius."""
    return [view for view, radius in enumerate(kind.RADII) if radius == max(kind.RADII)]


def search(
    is_searched: np.ndarray, hashes: np.ndarray, views: Sequence[int], kind: Duplicates, before: Remembered
) -> tuple[np.ndarray, np.ndarray]:
    """Find candidates.

    Args:
        is_searched: (n,) bool: the examples that are compared.
        hashes: (n, number of views) uint64.
        views: of which these are, the whole ones first.
        before: what need not be looked for again, of the same views.

    Returns:
        (k, 4) int32, sorted: an example, another, the view of the first that is like the second, distance in bits; and
        (n,) int32: as many others does each resemble as a whole.
    """
    found = _Search(is_searched, hashes, views, kind, before)
    return _nearest(found.candidates(), len(hashes)), found.num_like


class _Search:
    def __init__(
        self, is_searched: np.ndarray, hashes: np.ndarray, views: Sequence[int], kind: Duplicates, before: Remembered
    ) -> None:
        self._searched, self._hashes, self._views, self._before = is_searched, hashes, views, before
        self._radii, self._is_by_view = [kind.RADII[view] for view in views], kind.IS_BY_VIEW
        self._num_whole = len(whole_views(kind))
        self.num_like = np.zeros(len(hashes), dtype=np.int32)

    def candidates(self) -> Iterator[np.ndarray]:
        """Pieces (k, 4) int32 of all that are not among those remembered, and these."""
        before, whole = self._before, range(self._num_whole)
        stays = before.was_searched & (before.now >= 0)
        stays[stays] = self._searched[before.now[stays]]
        kept = np.zeros_like(self._searched)
        kept[before.now[stays]] = True
        self.num_like[before.now[stays]] = before.num_like[stays]
        self._forget(before.hashes[before.was_searched & ~stays], np.flatnonzero(kept))
        fresh = self._searched & ~kept
        for piece in self._of(fresh, fresh, whole):
            np.add.at(self.num_like, piece[:, 0], 1)
            yield piece
        is_crowded = self.num_like >= _ENOUGH
        stays[stays] = is_crowded[before.now[stays]] == (before.num_like[stays] >= _ENOUGH)
        ends = before.candidates[:, :2]
        is_dropped = ~stays[ends].all(axis=1)
        is_full = np.bincount(ends.ravel(), minlength=len(stays)) >= MOST_PER_EXAMPLE
        lost = np.unique(ends[is_dropped])
        stays[lost[is_full[lost]]] = False  # what comes after its last one is not known
        again = self._searched.copy()
        again[before.now[stays]] = False
        rows = before.candidates[stays[ends].all(axis=1)]
        yield np.column_stack([before.now[rows[:, 0]], before.now[rows[:, 1]], rows[:, 2:]]).astype(np.int32)
        yield from self._of(again & ~fresh, again, whole)
        yield from self._of(again, again, range(self._num_whole, len(self._views)), ~is_crowded)

    def _forget(self, gone: np.ndarray, kept: np.ndarray) -> None:
        for column in range(self._num_whole) if len(gone) else ():
            index = Index(gone[:, self._target(column)])
            for numbers, _ in index.within(self._hashes[kept, column], self._radii[column]):
                np.subtract.at(self.num_like, kept[numbers], 1)

    def _of(
        self, some: np.ndarray, asked_before: np.ndarray, columns: range, may_ask: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """All in which one of `some` is: what they see like others, and what others see like them."""
        may_ask = self._searched if may_ask is None else self._searched & may_ask
        seers = np.flatnonzero(some & may_ask), np.flatnonzero(may_ask & ~asked_before)
        seen = np.flatnonzero(self._searched), np.flatnonzero(some)
        indices: list[Index] = []
        for column in columns if len(seen[1]) else ():
            target = self._target(column)
            if self._is_by_view or not indices:
                indices = [Index(self._hashes[group, target]) for group in seen]
            for whose, index, whom in zip(seers, indices, seen, strict=True):
                of_view = self._hashes[whose, column]
                for numbers, positions in index.within(of_view, self._radii[column]):
                    left, right = whose[numbers], whom[positions]
                    distance = np.bitwise_count(of_view[numbers] ^ self._hashes[right, target])
                    rows = np.column_stack([left, right, np.full(len(left), self._views[column]), distance])
                    yield rows.astype(np.int32)[left != right]

    def _target(self, column: int) -> int:
        """Of the column with which one is compared: an example as it is, or the same view of it."""
        return column if self._is_by_view else 0


def _nearest(pieces: Iterator[np.ndarray], num_examples: int) -> np.ndarray:
    """Of each pair the nearest find, and of each example the nearest pairs; reduced on the way, to hold few at once."""
    held, count = [np.empty((0, 4), dtype=np.int32)], 0
    limits = np.full(num_examples, np.iinfo(np.int64).max)  # distance and name of the last that each keeps
    for piece in pieces:
        left, right, distance = piece[:, 0], piece[:, 1], piece[:, 3].astype(np.int64) * num_examples
        is_near = (distance + right <= limits[left]) | (distance + left <= limits[right])
        held.append(piece[is_near])
        count += len(held[-1])
        if count > _MOST_HELD:
            held, count = [_reduced(np.concatenate(held), limits)], 0
    return _reduced(np.concatenate(held), limits)


def _reduced(candidates: np.ndarray, limits: np.ndarray) -> np.ndarray:
    low, high = np.sort(candidates[:, :2], axis=1).T
    order = np.lexsort((candidates[:, 0], candidates[:, 2], candidates[:, 3], high, low))
    candidates, low, high = candidates[order], low[order], high[order]
    candidates = candidates[np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])][: len(low)]]
    kept = np.zeros(len(candidates), dtype=bool)
    both = np.concatenate([candidates[:, [0, 1, 3]], candidates[:, [1, 0, 3]]])  # (2 k, 3): one, another, distance
    order = np.lexsort((both[:, 1], both[:, 2], both[:, 0]))
    owners = both[order, 0]
    rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
    last = order[rank == MOST_PER_EXAMPLE - 1]
    limits[both[last, 0]] = both[last, 2].astype(np.int64) * len(limits) + both[last, 1]
    kept[order[rank < MOST_PER_EXAMPLE] % max(len(candidates), 1)] = True
    return candidates[kept]
