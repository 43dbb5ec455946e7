"""Texts that say the same: equal but for case, accents, signs and space (`files.inspect` gives them one signature)."""

from collections.abc import Sequence

import numpy as np

RADII = (0,)


def hashes_of(signatures: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """(n, 32) uint8 -> (n, number of views) uint64: a part of the digest. There is one view."""
    return np.ascontiguousarray(signatures[:, :8]).view(np.uint64)[:, list(views)]


def same(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(k,) bool: whether both have the whole digest in common."""
    return np.asarray((signatures[candidates[:, 0]] == signatures[candidates[:, 1]]).all(axis=1))
