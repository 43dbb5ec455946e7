"""Which 64-bit hashes differ in few bits: an exact index without training, in NumPy.

    index = Index(hashes)                                  (n,) uint64
    for numbers, positions in index.within(queries, 11):   pairs at a distance of 11 bits or less

Pigeonholes (Norouzi, Punjani, Fleet 2012, "Fast search in Hamming space with multi-index hashing"): two hashes that
differ in 11 bits or less differ in at most 2 of the bits of one of their four quarters. So the hashes are sorted by
each quarter, and looked up under the 137 values that are near a query's quarter (17, within 7 bits). None is missed.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

_QUARTERS = 4
_VALUES = 1 << 16
_QUERIES_AT_ONCE = 1 << 14  # what belongs to them stays in a processor's cache
_MOST_AT_ONCE = 1 << 22  # pairs whose distance is computed together


class Index:
    """Hashes, to be found by what is near them."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = hashes
        self._quarters = [_Quarter(values) for values in _quarters(hashes)]

    def within(self, queries: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pieces of pairs (number of the query, position in the index), each (k,) int64. A pair may come four times."""
        looked_at = _QUARTERS if radius else 1  # of equal hashes each quarter is equal
        for begin in range(0, len(queries), _QUERIES_AT_ONCE):
            some = queries[begin : begin + _QUERIES_AT_ONCE]
            for quarter, values in list(zip(self._quarters, _quarters(some), strict=True))[:looked_at]:
                for numbers, positions in quarter.near(values, radius // _QUARTERS):
                    near = np.bitwise_count(some[numbers] ^ self._hashes[positions]) <= radius
                    yield numbers[near] + begin, positions[near]


class _Quarter:
    """Positions of hashes, sorted by 16 of their bits."""

    def __init__(self, values: np.ndarray) -> None:
        self._order = np.argsort(values, kind="stable").astype(np.int32)
        self._starts = np.searchsorted(values[self._order], np.arange(_VALUES + 1)).astype(np.int64)

    def near(self, values: np.ndarray, num_bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        flips = [bits for count in range(num_bits + 1) for bits in combinations(range(16), count)]
        for change in [np.uint16(sum(1 << bit for bit in bits)) for bits in flips]:
            starts = self._starts[values ^ change]
            counts = self._starts[(values ^ change).astype(np.int64) + 1] - starts
            ends = np.cumsum(counts)
            begin = 0
            while begin < len(values):
                base = ends[begin - 1] if begin else 0
                end = max(begin + 1, int(np.searchsorted(ends, base + _MOST_AT_ONCE, side="right")))
                yield self._listed(begin, starts[begin:end], counts[begin:end])
                begin = end

    def _listed(self, begin: int, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.repeat(np.arange(begin, begin + len(counts)), counts)
        first = np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return numbers, self._order[first + np.arange(len(numbers))].astype(np.int64)


def _quarters(hashes: np.ndarray) -> list[np.ndarray]:
    parts = np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, _QUARTERS)
    return [np.ascontiguousarray(parts[:, quarter]) for quarter in range(_QUARTERS)]
