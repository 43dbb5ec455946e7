"""The tests behind the gate, as pure functions of counts. All take arrays, so that a rule can be tried on many at once.

`won` are the images that only the candidate gets right, `lost` those that only the champion gets right. Where images of
one group are alike, counts are of independent ones: divided by the design effect (Rao and Scott 1992), so not whole.
"""

from bisect import bisect_left
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from ..params import Gate

_MOST_IMAGES = 10_000_000
"""Beyond this many images the answer to "how many would decide?" is that no number would."""
_POWER = 0.82
"""Aimed at, so that 0.8 is kept: the power of exact tests moves up and down by a point or two."""
_GRID = (np.arange(32) + 0.5) / 32


def at_most(hits: ArrayLike, trials: ArrayLike, chances: ArrayLike) -> np.ndarray:
    """P(X <= hits) for a binomial X."""
    from scipy.stats import binom  # here: importing it takes half a second, which a run without a comparison need not

    return np.asarray(binom.cdf(hits, trials, chances))


def quantiles(levels: ArrayLike, trials: ArrayLike, chances: ArrayLike) -> np.ndarray:
    """The fewest hits of a binomial X with P(X <= hits) >= levels."""
    from scipy.stats import binom

    return np.asarray(binom.ppf(levels, trials, chances))


def mcnemar(won: ArrayLike, lost: ArrayLike) -> np.ndarray:
    """Exact two-sided p-value of McNemar's test (1947): are wins and losses equally likely?"""
    won, lost = np.asarray(won), np.asarray(lost)
    more, both = np.floor(np.maximum(won, lost)), np.floor(won + lost)  # rounded against evidence
    return np.minimum(1.0, 2 * at_most(np.minimum(both - more, more), both, 0.5))


def paired_interval(
    won: ArrayLike, lost: ArrayLike, num_images: float, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted Wald interval of Agresti and Min (2005) for the difference of two accuracies on the same images.

    Half an image is added to each of the four cells, so that few or no disagreements prove little.
    """
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    more, less, total = np.asarray(won) + 0.5, np.asarray(lost) + 0.5, num_images + 2
    middle = (more - less) / total
    half = quantile * np.sqrt(more + less - (more - less) ** 2 / total) / total
    return np.maximum(middle - half, -1.0), np.minimum(middle + half, 1.0)


def median_interval(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """The median and its interval, (median, low, high), by the sign test: of whatever distribution, however noisy.

    The order statistics between which the true median lies with at least this confidence (Thompson 1936); all there is
    where the values are too few for it.
    """
    ordered = np.sort(values)
    skipped = max(int(quantiles((1 - confidence) / 2, len(ordered), 0.5)) - 1, 0)
    return float(np.median(ordered)), float(ordered[skipped]), float(ordered[-1 - skipped])


def decided(won: ArrayLike, lost: ArrayLike, num_images: float, settings: Gate) -> tuple[np.ndarray, np.ndarray]:
    """The rule of the accuracy test: (shown to be worse, shown to reach `gate.goal`). Neither: nothing is shown."""
    won, lost = np.asarray(won), np.asarray(lost)
    low, high = paired_interval(won, lost, num_images, settings.confidence)
    if settings.goal == "not_worse":
        worse = high < -settings.margin
        return worse, ~worse & (low > -settings.margin)
    is_significant = mcnemar(won, lost) < 1 - settings.confidence
    return (high < -settings.margin) | (is_significant & (won < lost)), is_significant & (low > 0)


def images_needed(num_won: float, num_lost: float, num_images: float, settings: Gate) -> int | None:
    """The fewest test images with which `decided` says something in 80% of the test sets; None: no number would.

    The shares of won and lost images are taken to be truly those that were seen. The power for a number of images is
    the mean of the rule itself over a grid of quantiles of (disagreements, won among them).
    """
    disagreeing = num_won + num_lost
    chances = disagreeing / num_images, num_won / disagreeing if disagreeing else 0.0

    def power(size: int) -> float:
        disagreements = quantiles(_GRID, size, chances[0])
        won = quantiles(_GRID[:, None], disagreements, chances[1])
        worse, reached = decided(won, disagreements - won, size, settings)
        return float((worse | reached).mean())

    sizes = range(int(num_images) + 1, _MOST_IMAGES + 1)
    found = bisect_left(sizes, _POWER, key=power)
    return sizes[found] if found < len(sizes) else None


def small_shares(hits: np.ndarray, trials: np.ndarray, chances: ArrayLike) -> np.ndarray:
    """Exact one-sided tests of many groups: are hits rarer than `chances` says? Corrected together.

    Holm's steps (1979) with what each test can reach at all instead of its nominal level, as p-values of few images
    are coarse (Tarone 1990; Westfall and Wolfinger 1997): a group whose few disagreements could never be significant
    takes nothing from the others. Groups may overlap. The chance of any false alarm stays below the level.

    Args:
        hits: (groups,) in `trials`, (groups,); `chances` is one number or (groups,).

    Returns:
        (groups,) adjusted p-values.
    """
    chances = np.broadcast_to(chances, hits.shape)
    p_values = at_most(hits, trials, chances)
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = np.ones(len(hits)), 0.0
    for rank, group in enumerate(order):
        rest = order[rank:]
        highest = max(highest, float(_reachable(p_values[group], trials[rest], chances[rest]).sum()))
        if highest >= 1:
            break
        adjusted[group] = highest
    return adjusted


def _reachable(level: float, trials: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """The largest p-value up to `level` that each test can have; 0 if it has none."""
    level = min(1.0, level * (1 + 1e-9))  # the same p-value, computed twice
    hits = quantiles(level, trials, chances)
    hits -= at_most(hits, trials, chances) > level
    return at_most(hits, trials, chances)
