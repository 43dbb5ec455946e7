"""How good a model is on the test examples: reports/evaluation.json as a record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import measures, metrics
from .intervals import Interval, effect_of, wilson, with_intervals
from .metrics import Scored


@dataclass(frozen=True)
class ClassMeasures:
    """Of one class; 0 where there is no case to measure."""

    precision: float
    recall: float
    f1: float
    support: int  # test examples


@dataclass(frozen=True)
class SliceMeasures:
    """Of the test examples that have something in common."""

    accuracy: Interval
    support: int


@dataclass(frozen=True)
class Confusion:
    """How often each true class (rows) was taken for each class (columns)."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence, and how often they were right."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Evaluation:
    """All measures of one model."""

    num_examples: int
    confidence: float  # level of the intervals
    overall: Mapping[str, Interval]  # by measure
    per_class: Mapping[str, ClassMeasures]
    confusion: Confusion
    reliability: tuple[Bin, ...]  # bins that hold any prediction
    weights_sha256: str  # of the model
    slices: Mapping[str, Mapping[str, SliceMeasures]] = field(default_factory=dict)  # by property and value of it


def evaluate(
    scored: Scored,
    classes: Sequence[str],
    num_bins: int,
    num_resamples: int,
    confidence: float,
    seed: int,
    weights_sha256: str,
    slices: Mapping[str, np.ndarray],
) -> Evaluation:
    """Measure what was scored.

    Args:
        num_bins: of confidence, for the calibration.
        num_resamples: of the bootstrap.
        confidence: level of the intervals.
        seed: of the bootstrap.
        slices: (n,) words, by the name of the property that they say something of.
    """
    return Evaluation(
        num_examples=len(scored.labels),
        confidence=confidence,
        overall=with_intervals(scored, num_bins, num_resamples, confidence, seed),
        per_class=_per_class(scored, classes),
        confusion=Confusion(tuple(classes), tuple(map(tuple, measures.confusion_matrix(scored).tolist()))),
        reliability=reliability_bins(scored, num_bins),
        weights_sha256=weights_sha256,
        slices={name: _per_slice(scored, words, confidence) for name, words in slices.items()},
    )


def reliability_bins(scored: Scored, num_bins: int) -> tuple[Bin, ...]:
    """The bins that hold any prediction."""
    table = measures.reliability(scored, num_bins)
    return tuple(
        Bin(float(confidence), float(accuracy), int(count))
        for confidence, accuracy, count in zip(table["confidence"], table["accuracy"], table["count"], strict=True)
        if count
    )


def _per_slice(scored: Scored, words: np.ndarray, confidence: float) -> dict[str, SliceMeasures]:
    """By word, the most frequent one first."""
    values, of_value, counts = np.unique(words.astype(str), return_inverse=True, return_counts=True)
    measured = {}
    for number in np.argsort(-counts, kind="stable"):
        some, count = scored.of(of_value == number), int(counts[number])
        interval = wilson(metrics.accuracy(some), count / effect_of(some), confidence)
        measured[str(values[number])] = SliceMeasures(interval, count)
    return measured


def _per_class(scored: Scored, classes: Sequence[str]) -> dict[str, ClassMeasures]:
    found = measures.per_class(scored)
    columns = (found[name].tolist() for name in ("precision", "recall", "f1", "support"))
    return {label: ClassMeasures(*row) for label, row in zip(classes, zip(*columns, strict=True), strict=True)}
