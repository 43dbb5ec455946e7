"""Test examples that are alike for reasons that are not the model's: those of one `group`, such as a patient or a part.

clusters = numbered(groups)                 (n,) int64
effect = design_effect(right, clusters)     n examples say as much as n / effect independent ones
"""

from collections.abc import Sequence

import numpy as np


def numbered(groups: Sequence[str]) -> np.ndarray:
    """(n,) int64: the number of each one's group, in the order of their first examples; "" is a group of its own."""
    names = [name or place for place, name in enumerate(groups)]
    number = {name: count for count, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names], dtype=np.int64)


def design_effect(values: np.ndarray, clusters: np.ndarray) -> float:
    """How many times larger the variance of their mean is than it would be for independent examples (Kish 1965).

    The variance is that between clusters, as for a ratio estimate. To what was seen one cluster of mean size is added
    in which all examples are the same: where hardly any differs, nothing shows that clusters do not matter.

    Args:
        values: (n,) of examples, between -1 and 1.
        clusters: (n,) int64, as `numbered` gives them.

    Returns:
        1 or more; exactly 1 where each example is a cluster.
    """
    sizes = np.bincount(clusters)
    if len(sizes) == len(clusters):
        return 1.0
    size = float((sizes**2).sum()) / len(clusters)  # of the cluster of an example
    apart = values - values.mean()
    between, within = float((np.bincount(clusters, weights=apart) ** 2).sum()), float((apart**2).sum())
    return max(1.0, (between * _unbiased(len(sizes)) + size**2) / (within * _unbiased(len(clusters)) + size))


def _unbiased(count: int) -> float:
    return count / max(count - 1, 1)
