"""Which 64-bit hashes differ in few bits: an exact index without training, in NumPy.

    index = Index(hashes)                                  (n,) uint64
    for numbers, positions in index.within(queries, 11):   pairs at a distance of 11 bits or less

Pigeonholes (Norouzi, Punjani, Fleet 2012, "Fast search in Hamming space with multi-index hashing"): two hashes that
differ in 11 bits or less differ in at most 2 of the bits of one of their four quarters. So the hashes are sorted by
each quarter, and looked up under the 137 values that are near a query's quarter (17, within 7 bits). None is missed.

Queries are asked in the order of their quarter: what is looked up for those asked together then lies close together,
in a processor's cache however many hashes there are.
"""

from collections.abc import Iterator
from functools import cache
from itertools import combinations

import numpy as np

_QUARTERS = 4
_VALUES = 1 << 16
_QUERIES_AT_ONCE = 1 << 14
_MOST_AT_ONCE = 1 << 19  # pairs whose distance is computed together: what they need stays in a processor's cache


class Index:
    """Hashes, to be found by what is near them."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._quarters = [_Quarter(hashes, quarter) for quarter in range(_QUARTERS)]

    def within(self, queries: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pieces of pairs (number of the query, position in the index), each (k,) int64; every pair once."""
        num_bits = radius // _QUARTERS
        for quarter in self._quarters if radius else self._quarters[:1]:  # of equal hashes each quarter is equal
            values = _values(queries, quarter.number)
            asked = np.flatnonzero(quarter.reached(num_bits)[values])
            asked = asked[np.argsort(values[asked], kind="stable")]
            for begin in range(0, len(asked), _QUERIES_AT_ONCE):
                numbers = asked[begin : begin + _QUERIES_AT_ONCE]
                for rows, places in quarter.near(queries[numbers], radius, num_bits):
                    yield numbers[rows], quarter.order[places].astype(np.int64)


class _Quarter:
    """Hashes, sorted by 16 of their bits."""

    def __init__(self, hashes: np.ndarray, number: int) -> None:
        values = _values(hashes, number)
        self.number = number
        self.order = np.argsort(values, kind="stable").astype(np.int32)
        self._hashes = hashes[self.order]
        counts = np.bincount(values, minlength=_VALUES)
        self._occupied = np.flatnonzero(counts)
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def reached(self, num_bits: int) -> np.ndarray:
        """(65536,) bool: the values near which there is anything; of few hashes few."""
        is_reached = np.zeros(_VALUES, dtype=bool)
        for change in _changes(num_bits):
            is_reached[self._occupied ^ int(change)] = True
        return is_reached

    def near(self, queries: np.ndarray, radius: int, num_bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pieces of (number of the query, place in this order) that no quarter before this one finds."""
        values = _values(queries, self.number)
        for change in _changes(num_bits):
            starts = self._starts[values ^ change]
            ends = np.cumsum(self._starts[(values ^ change).astype(np.int64) + 1] - starts)
            begin = 0
            while begin < len(values):
                base = ends[begin - 1] if begin else 0
                end = max(begin + 1, int(np.searchsorted(ends, base + _MOST_AT_ONCE, side="right")))
                rows, places = self._within(queries[begin:end], starts[begin:end], ends[begin:end] - base, radius)
                rows += begin
                is_new = self._is_new(queries[rows] ^ self._hashes[places], num_bits)
                yield rows[is_new], places[is_new]
                begin = end

    def _within(
        self, queries: np.ndarray, starts: np.ndarray, ends: np.ndarray, radius: int
    ) -> tuple[np.ndarray, np.ndarray]:
        counts = np.diff(ends, prepend=0)
        shifts = starts - (ends - counts)
        places = np.repeat(shifts, counts)
        places += np.arange(len(places))
        differing = np.repeat(queries, counts)
        differing ^= self._hashes[places]
        found = np.flatnonzero(np.bitwise_count(differing) <= radius)
        return np.searchsorted(ends, found, side="right"), places[found]

    def _is_new(self, differing: np.ndarray, num_bits: int) -> np.ndarray:
        earlier = [np.bitwise_count(_values(differing, before)) <= num_bits for before in range(self.number)]
        return ~np.any(earlier, axis=0) if earlier else np.ones(len(differing), dtype=bool)


@cache
def _changes(num_bits: int) -> list[np.uint16]:
    """Of 16 bits, all that differ in so many or fewer."""
    flips = [bits for count in range(num_bits + 1) for bits in combinations(range(16), count)]
    return [np.uint16(sum(1 << bit for bit in bits)) for bits in flips]


def _values(hashes: np.ndarray, quarter: int) -> np.ndarray:
    """(n,) uint64 -> (n,) uint16"""
    return np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, _QUARTERS)[:, quarter].copy()
