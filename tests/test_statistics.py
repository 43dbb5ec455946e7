"""The tests behind the gate: against statsmodels, and by simulation of what they promise."""

import dataclasses

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from refit.gate import statistics
from refit.params import Gate, load_params

from .conftest import ROOT

SETTINGS = load_params(ROOT / "params.yaml").gate


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 5), (0, 5), (1, 9), (10, 2), (430, 520)])
def test_mcnemar_is_that_of_statsmodels(won: int, lost: int) -> None:
    expected = mcnemar([[7, won], [lost, 3]], exact=True).pvalue
    assert float(statistics.mcnemar(won, lost)) == pytest.approx(expected)


def test_corrected_p_values_are_never_above_those_of_holm_and_the_same_where_all_can_be_small() -> None:
    generator = np.random.default_rng(3)
    trials = generator.integers(0, 12, 60)
    hits = generator.binomial(trials, 0.4)
    plain = statistics.at_most(hits, trials, 0.5)
    found = statistics.small_shares(hits, trials, 0.5)
    assert (found <= multipletests(plain, method="holm")[1] + 1e-12).all()
    assert (found >= plain - 1e-12).all()
    fine = np.array([4_800, 4_900, 4_950, 5_000])  # of so many trials that p-values are nearly continuous
    holm = multipletests(statistics.at_most(fine, 10_000, 0.5), method="holm")[1]
    assert statistics.small_shares(fine, np.full(4, 10_000), 0.5) == pytest.approx(holm, rel=0.05)


def test_groups_that_could_never_be_significant_take_nothing_from_the_others() -> None:
    hits, trials = np.array([0, *[0] * 99]), np.array([6, *[1] * 99])
    assert statistics.small_shares(hits, trials, 0.5)[0] == pytest.approx(1 / 64)
    assert statistics.small_shares(np.zeros(100, int), np.full(100, 6), 0.5)[0] == 1.0


def test_a_false_alarm_among_many_groups_is_as_rare_as_it_says() -> None:
    generator = np.random.default_rng(4)
    alarms = 0
    for _ in range(400):
        trials = generator.poisson(4, 100)
        alarms += bool((statistics.small_shares(generator.binomial(trials, 0.5), trials, 0.5) < 0.05).any())
    assert alarms / 400 <= 0.05


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """2% won, 1% lost: the interval of the difference must hold 1% in about 95 of 100 test sets."""
    counts = np.random.default_rng(0).multinomial(500, [0.02, 0.01, 0.97], 4_000)
    low, high = statistics.paired_interval(counts[:, 0], counts[:, 1], 500, 0.95)
    assert 0.94 <= ((low <= 0.01) & (high >= 0.01)).mean() <= 0.98


def as_the_gate_decides(won: float, lost: float, num_images: int, settings: Gate, trials: int) -> float:
    """The share of simulated test sets of which the accuracy test says something."""
    counts = np.random.default_rng(8).multinomial(num_images, [won, lost, 1 - won - lost], trials)
    worse, reached = statistics.decided(counts[:, 0], counts[:, 1], num_images, settings)
    return float((worse | reached).mean())


@pytest.mark.parametrize("goal", ["better", "not_worse"])
@pytest.mark.parametrize(
    ("won", "lost", "num_images"),
    [
        (5, 1, 100), (12, 5, 300), (26, 20, 600), (60, 40, 2000), (120, 80, 600), (5, 12, 300), (20, 25, 600),
        (3, 2, 100), (300, 260, 10_000), (40, 100, 5_000), (90, 60, 300),
    ],
)  # fmt: skip
def test_with_the_number_of_images_named_the_gate_decides(won: int, lost: int, num_images: int, goal: str) -> None:
    """It did in 49% of the trials: half the width of an interval is no power."""
    settings = dataclasses.replace(SETTINGS, goal=goal)
    needed = statistics.images_needed(won, lost, num_images, settings)
    assert needed is not None
    shares = won / num_images, lost / num_images
    assert as_the_gate_decides(*shares, needed, settings, 20_000) >= 0.8
    if needed > num_images + 1:
        assert as_the_gate_decides(*shares, round(0.8 * needed), settings, 20_000) < 0.8, "nor are far too many named"


def test_where_no_number_of_images_would_decide_none_is_named() -> None:
    not_worse = dataclasses.replace(SETTINGS, goal="not_worse")
    assert statistics.images_needed(20, 20, 600, SETTINGS) is None
    assert statistics.images_needed(0, 0, 600, SETTINGS) is None
    assert statistics.images_needed(30, 36, 600, not_worse) is None, "a loss of exactly the margin"
