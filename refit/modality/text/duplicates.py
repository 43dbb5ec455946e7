"""Texts that are nearly the same: most of their runs of letters are (`files.signature_of`).

A candidate has four neighbouring hashes of 128 in common with another, at one place at least: so are found, of pairs
that share 0.7 of their runs, 999 in 1,000, and of those that share 0.3, a fifth (Leskovec, Rajaraman, Ullman 2014,
"Mining of massive datasets", 3.4). The whole signatures then say how much they share.
"""

from collections.abc import Sequence

import numpy as np

from .files import NUM_HASHES

_IN_A_BAND = 4

RADII = (0,) * (NUM_HASHES // _IN_A_BAND)
IS_BY_VIEW = True

LEAST_SHARED = 0.7
"""Of the runs of letters that either text has. A sentence with one other word of ten shares about 0.65: it may say the
opposite. One with another letter, ending or a word more of twenty shares 0.75 to 0.9."""


def hashes_of(signatures: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """(n, 256) uint8 -> (n, number of views) uint64: of 32 views, each of four hashes side by side."""
    return np.ascontiguousarray(signatures).view(np.uint64)[:, list(views)]


def same(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(k,) bool: whether both share enough."""
    hashes = np.ascontiguousarray(signatures).view(np.uint16)  # (n, 128)
    shared = (hashes[candidates[:, 0]] == hashes[candidates[:, 1]]).mean(axis=1)
    return np.asarray(shared >= LEAST_SHARED)


closer = same  # a signature says no more
