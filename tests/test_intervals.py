"""Intervals: against statsmodels, never of zero width, right as often as they say, and bounded in what they take."""

import tracemalloc

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from refit.gate.checks import Groups, Labels, Side
from refit.gate.decide import decide
from refit.params import load_params
from refit.scoring import intervals, measures
from refit.scoring.metrics import Scored, score, softmax

from .conftest import ROOT

GATE = load_params(ROOT / "params.yaml").gate


def scored(right: np.ndarray, labels: np.ndarray, confidence: np.ndarray, num_classes: int) -> Scored:
    """A model that is wrong where `right` is false, by calling a class the next one."""
    predicted = np.where(right, labels, (labels + 1) % num_classes)
    loss = np.where(right, -np.log(confidence), -np.log((1 - confidence) / num_classes))
    return Scored(labels, predicted, confidence, loss, num_classes)


@pytest.mark.parametrize(("hits", "size"), [(0, 5), (5, 5), (1, 30), (450, 454), (900_000, 1_000_000)])
def test_wilson_is_that_of_statsmodels(hits: int, size: int) -> None:
    found = intervals.wilson(hits / size, size, 0.95)
    assert (found.low, found.high) == pytest.approx(proportion_confint(hits, size, 0.05, "wilson"), abs=1e-12)


@pytest.mark.parametrize("num_images", [1, 5, 60])
@pytest.mark.parametrize(("is_right", "num_classes"), [(True, 3), (False, 3), (True, 2)])
@pytest.mark.parametrize("num_labels", [1, 2])
def test_no_interval_has_zero_width(num_images: int, is_right: bool, num_classes: int, num_labels: int) -> None:
    """All right or all wrong, one class or two, always with the same confidence: 5 of 5 right gave 1 to 1."""
    case = scored(
        np.full(num_images, is_right), np.arange(num_images) % num_labels, np.full(num_images, 0.95), num_classes
    )
    for name, interval in intervals.with_intervals(case, 10, 2000, 0.95, seed=1).items():
        assert interval.low <= interval.value <= interval.high, name
        assert interval.high - interval.low > 0.2 / num_images, name


def test_five_of_five_right_say_little() -> None:
    case = scored(np.full(5, True), np.arange(5) % 2, np.full(5, 0.99), 2)
    found = intervals.with_intervals(case, 10, 2000, 0.95, seed=1)
    assert found["accuracy"].low == pytest.approx(0.566, abs=0.001)
    assert found["macro_f1"].low == pytest.approx(0.56, abs=0.02)
    assert found["expected_calibration_error"].high > 0.3
    assert found["negative_log_likelihood"].high > 1.5, "two mistakes that cost -log(0.01) each"


def test_intervals_hold_the_value_and_shrink_with_the_data() -> None:
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(400, 4)) * 2
    labels = np.where(generator.random(400) < 0.6, logits.argmax(axis=1), generator.integers(0, 4, 400))
    small, large = (
        intervals.with_intervals(score(softmax(logits[:count]), labels[:count]), 10, 500, 0.95, seed=1)
        for count in (100, 400)
    )
    for name in ("accuracy", "macro_f1", "negative_log_likelihood"):
        assert large[name].low <= large[name].value <= large[name].high
        assert large[name].high - large[name].low < small[name].high - small[name].low
    assert large == intervals.with_intervals(score(softmax(logits), labels), 10, 500, 0.95, seed=1)


def test_the_bootstrap_by_cells_is_the_bootstrap_by_rows() -> None:
    """The same quantiles as when test sets are drawn anew image by image, for one model and for the difference."""
    generator = np.random.default_rng(6)
    labels = generator.integers(0, 3, 600)
    luck, confidence = generator.random(600), generator.uniform(0.5, 0.99, 600)
    sides = [
        scored(luck < confidence - 0.1, labels, confidence, 3),
        scored(luck < confidence**2, labels, np.clip(confidence + generator.normal(0, 0.05, 600), 0.4, 0.99), 3),
    ]
    draws = intervals.calibration_draws(sides, 10, 4000, seed=1)
    rows = []
    for _ in range(2000):
        picked = generator.integers(600, size=600)
        taken = [
            Scored(side.labels[picked], side.predicted[picked], side.confidence[picked], side.loss[picked], 3)
            for side in sides
        ]
        rows.append([[measures.overall(side, 10)[name] for name in _CALIBRATION] for side in taken])
    by_rows = np.array(rows)  # (resamples, sides, 2)
    for found, expected in ((draws, by_rows), (draws[:, 0] - draws[:, 1], by_rows[:, 0] - by_rows[:, 1])):
        spread = expected.std(axis=0)
        assert np.abs(found.mean(axis=0) - expected.mean(axis=0)) == pytest.approx(0, abs=0.15 * spread.max())
        assert found.std(axis=0) == pytest.approx(spread, rel=0.1)


_CALIBRATION = ("expected_calibration_error", "negative_log_likelihood")


@pytest.mark.parametrize("shares", [(0.25, 0.25, 0.25, 0.25), (0.7, 0.2, 0.07, 0.03)])
def test_the_interval_of_macro_f1_is_right_as_often_as_it_says(shares: tuple[float, ...]) -> None:
    """Also with a rare class, of which a plain bootstrap often sees no mistake."""
    generator = np.random.default_rng(7)

    def drawn(count: int) -> Scored:
        labels = generator.choice(4, count, p=shares)
        return scored(generator.random(count) < 0.85, labels, np.full(count, 0.9), 4)

    truth = measures.macro_f1(drawn(1_000_000))
    found = [intervals._macro_f1(drawn(300), 1.0, 0.95) for _ in range(400)]
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) >= 0.93


def large_test_set(num_images: int, num_classes: int, generator: np.random.Generator) -> tuple[Side, Side]:
    labels = generator.integers(0, num_classes, num_images)
    names = frozenset(f"{index:04d}" for index in range(num_classes))
    sides = []
    for least in (0.32, 0.3):
        confidence = generator.uniform(least, 0.999, num_images)
        case = scored(generator.random(num_images) < confidence, labels, confidence, num_classes)
        sides.append(Side(names, case, case.predicted, np.full(24, 5.0), 1000))
    return sides[0], sides[1]


def test_a_million_images_of_a_thousand_classes_take_little_memory() -> None:
    """A mask per class would be 1 GB, and the 2000 resamples of the calibration, drawn by rows, 16 GB."""
    candidate, champion = large_test_set(1_000_000, 1_000, np.random.default_rng(1))
    labels = Labels(tuple(sorted(candidate.classes)), candidate.classes, frozenset())
    slices = [Groups(("even", "odd"), np.arange(1_000_000) % 2)]
    tracemalloc.start()
    try:
        decide(candidate, champion, labels, slices, GATE, 10, 17)
        intervals.with_intervals(candidate.scored, 10, GATE.bootstrap_samples, 0.95, 17)
        assert tracemalloc.get_traced_memory()[1] < 150e6, "beyond the predictions themselves"
    finally:
        tracemalloc.stop()
