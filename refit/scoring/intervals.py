"""Intervals of the measures: what another test set of the same size might have said.

    intervals = with_intervals(scored, num_bins=10, num_resamples=2000, confidence=0.95, seed=17)

    accuracy                   Wilson's score interval (1927)
    macro F1                   its variance by the delta method (Takahashi et al. 2022), put into Wilson's interval as
                               the size of the sample that would have it (Korn and Graubard 1998)
    calibration error, loss    percentile bootstrap (Efron 1979) of a smoothed sample, see `calibration_draws`

Of accuracy and macro F1 examples of one cluster count as fewer (`clusters.py`); the bootstrap takes all as independent.
None has zero width: five of five right do not prove that the sixth will be. The cost grows with the images only in
passes over arrays of one number per image; nothing is resampled row by row.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .clusters import design_effect
from .measures import confidence_bins, macro_f1, occurring, overall, per_class
from .metrics import SMALLEST_PROBABILITY, Scored

_NUMBERS_AT_ONCE = 2_000_000
"""So many random numbers are held at a time: 16 MB."""


@dataclass(frozen=True)
class Interval:
    """A value and the bounds between which it may truly lie."""

    value: float
    low: float
    high: float


def with_intervals(
    scored: Scored, num_bins: int, num_resamples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """`measures.overall` with intervals.

    Args:
        num_bins: of the calibration error.
        num_resamples: of the bootstrap.
        confidence: level of the intervals.
        seed: of the bootstrap.
    """
    values = overall(scored, num_bins)
    draws = calibration_draws([scored], num_bins, num_resamples, seed)[:, 0]
    share, effect = values["accuracy"], effect_of(scored)
    return {
        "accuracy": wilson(share, len(scored.labels) / effect, confidence),
        "macro_f1": _macro_f1(scored, effect, confidence),
        "expected_calibration_error": percentile(values["expected_calibration_error"], draws[:, 0], confidence),
        "negative_log_likelihood": percentile(values["negative_log_likelihood"], draws[:, 1], confidence),
    }


def effect_of(scored: Scored) -> float:
    """The design effect on the accuracy."""
    if scored.clusters is None:
        return 1.0
    return design_effect((scored.predicted == scored.labels).astype(np.float64), scored.clusters)


def wilson(share: float, size: float, confidence: float) -> Interval:
    """Wilson's score interval (1927) of a share that was seen in a sample of `size`, which need not be whole."""
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    shrunk = 1 + quantile**2 / size
    middle = (share + quantile**2 / (2 * size)) / shrunk
    half = quantile / shrunk * math.sqrt(share * (1 - share) / size + quantile**2 / (4 * size**2))
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def percentile(value: float, draws: np.ndarray, confidence: float) -> Interval:
    """The middle of the draws, which always holds the value itself.

    Args:
        draws: (num_resamples,) values of resampled test sets.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _macro_f1(scored: Scored, effect: float, confidence: float) -> Interval:
    """Wilson's interval for a sample in which a plain share would vary as much as macro F1 does.

    At most that of a mean over equally difficult classes, num_classes^2 / sum(1 / support): where no image of a rare
    class is wrong, the variance that was seen knows nothing of it.
    """
    found, value = per_class(scored), macro_f1(scored)
    support = found["support"][found["support"] > 0]
    most = len(support) ** 2 / float((1 / support).sum())
    images = np.bincount(np.concatenate([scored.labels, scored.predicted]), minlength=scored.num_classes)
    slope = found["f1"] / np.maximum(images, 1)  # how much one more image lowers a class's F1
    gain = np.where(scored.predicted == scored.labels, 2 / images[scored.labels], 0.0)
    influence = gain - slope[scored.labels] - slope[scored.predicted]  # (n,) of each image; their sum is 0
    variance = float((influence**2).sum()) / int(occurring(scored).sum()) ** 2
    spread = value * (1 - value)
    size = min(spread / variance, most) if variance > 0 and spread > 0 else most
    return wilson(value, size / effect, confidence)


def calibration_draws(sides: Sequence[Scored], num_bins: int, num_resamples: int, seed: int) -> np.ndarray:
    """Calibration error and log loss of resampled test sets, the same images for all sides.

    Images are alike, and so one cell of a multinomial distribution, if every side puts them into the same bin of
    confidence and is as right or wrong about them. Within a cell the resampled sums of confidence and loss are drawn
    from the normal distribution with the cell's mean and covariance. To each combination of right and wrong half an
    image is added, spread over the bins as the images are (Jeffreys' prior for one side; for two what Agresti and
    Min 2005 add): without it, models without a mistake would never make one.

    Args:
        sides: one or more models, scored on the same images.

    Returns:
        (num_resamples, len(sides), 2) float64: calibration error and log loss, in nats.
    """
    cells = _cells(sides, num_bins)
    generator = np.random.Generator(np.random.Philox(seed))
    num_images, num_sides = len(sides[0].labels), len(sides)
    drawn = []
    for counts, sums in _resampled(cells, num_images, num_resamples, generator):
        confidence, loss = sums[..., :num_sides], sums[..., num_sides:]  # each (samples, cells, sides)
        gaps = counts[..., None] * cells.right - confidence
        errors = [np.abs(gaps[..., side] @ cells.in_bin[side]).sum(axis=1) for side in range(num_sides)]
        drawn.append(np.stack([np.stack(errors, axis=1), loss.sum(axis=1)], axis=2) / num_images)
    return np.concatenate(drawn)


@dataclass(frozen=True)
class _Cells:
    chance: np.ndarray  # (cells,) of an image to be in it
    mean: np.ndarray  # (cells, 2 * sides): confidence of each side, then loss of each side
    root: np.ndarray  # (cells, 2 * sides, 2 * sides): square root of their covariance
    right: np.ndarray  # (cells, sides) 1 where the side is right
    in_bin: np.ndarray  # (sides, cells, num_bins) 1 where the side's confidence falls into that bin


def _cells(sides: Sequence[Scored], num_bins: int) -> _Cells:
    num_sides, num_images = len(sides), len(sides[0].labels)
    codes = np.zeros(num_images, dtype=np.int64)  # of the combination of bins
    outcomes = np.zeros(num_images, dtype=np.int64)  # of the combination of right and wrong
    for place, side in enumerate(sides):
        codes = codes * num_bins + confidence_bins(side, num_bins)
        outcomes += (side.predicted == side.labels).astype(np.int64) << place
    kinds, places = np.unique(codes, return_inverse=True)
    num_kinds, num_outcomes = len(kinds), 2**num_sides
    members = places * num_outcomes + outcomes  # (n,) the image's cell
    right = np.tile((np.arange(num_outcomes)[:, None] >> np.arange(num_sides)) & 1, (num_kinds, 1))
    count = np.bincount(members, minlength=len(right))
    shares = np.repeat(np.bincount(places) / num_images, num_outcomes)
    columns = [side.confidence for side in sides] + [side.loss for side in sides]
    mean, covariance = _moments(columns, members, count)
    unseen = _unseen(sides, places, num_kinds, right)
    mean = np.where(count[:, None] > 0, mean, unseen)
    values, vectors = np.linalg.eigh(covariance)
    bins = kinds[:, None] // num_bins ** np.arange(num_sides - 1, -1, -1) % num_bins  # (kinds, sides)
    in_bin = np.repeat(bins.T, num_outcomes, axis=1)[..., None] == np.arange(num_bins)
    return _Cells(
        chance=(count + shares / 2) / (num_images + num_outcomes / 2),
        mean=mean,
        root=vectors * np.sqrt(np.maximum(values, 0))[:, None, :],
        right=right,
        in_bin=in_bin.astype(np.float64),
    )


def _moments(columns: Sequence[np.ndarray], members: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (cells, columns) and covariance (cells, columns, columns) within each cell; 0 in an empty one."""
    size = np.maximum(count, 1)

    def mean_of(values: np.ndarray) -> np.ndarray:
        return np.bincount(members, weights=values, minlength=len(count)) / size

    mean = np.stack([mean_of(column) for column in columns], axis=1)
    covariance = np.empty((len(count), len(columns), len(columns)))
    for first, one in enumerate(columns):
        distance = one - mean[members, first]
        for second, other in enumerate(columns[: first + 1]):
            value = mean_of(distance * (other - mean[members, second]))
            covariance[:, first, second] = covariance[:, second, first] = value
    return mean, covariance


def _unseen(sides: Sequence[Scored], places: np.ndarray, num_kinds: int, right: np.ndarray) -> np.ndarray:
    """(cells, 2 * sides) confidence and loss that an image would have in a cell in which none is.

    Being wrong costs at least -log(1 - confidence): the true class has no more than what is left.
    """
    size = np.bincount(places, minlength=num_kinds)
    repeats = len(right) // num_kinds

    def by_cell(values: np.ndarray) -> np.ndarray:
        return np.repeat(np.bincount(places, weights=values, minlength=num_kinds) / size, repeats)

    confidence = [by_cell(side.confidence) for side in sides]
    loss = []
    for place, side in enumerate(sides):
        if_right = by_cell(-np.log(np.maximum(side.confidence, SMALLEST_PROBABILITY)))
        if_wrong = by_cell(-np.log(np.maximum(1 - side.confidence, SMALLEST_PROBABILITY)))
        loss.append(np.where(right[:, place] == 1, if_right, if_wrong))
    return np.stack(confidence + loss, axis=1)


def _resampled(
    cells: _Cells, num_images: int, num_resamples: int, generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Portions of the resamples: counts (samples, cells) and sums (samples, cells, 2 * sides)."""
    num_columns = cells.mean.shape[1]
    portion = max(1, _NUMBERS_AT_ONCE // cells.mean.size)
    for start in range(0, num_resamples, portion):
        samples = min(portion, num_resamples - start)
        counts = generator.multinomial(num_images, cells.chance, samples)
        noise = generator.standard_normal((samples, len(cells.chance), num_columns))
        noise = np.einsum("scj,cij->sci", noise, cells.root)
        yield counts, counts[..., None] * cells.mean + np.sqrt(counts)[..., None] * noise
