"""Numbers have no near-duplicates: no file has a signature."""

from collections.abc import Sequence

import numpy as np

RADII = (0,)
IS_BY_VIEW = False


def hashes_of(signatures: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """One view."""
    return np.zeros((len(signatures), len(views)), dtype=np.uint64)


def same(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Never."""
    return np.zeros(len(candidates), dtype=bool)


closer = same
