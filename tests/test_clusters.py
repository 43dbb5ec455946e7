"""Examples of one group are alike: what they prove, by simulation of test sets of patients."""

from dataclasses import replace

import numpy as np
import pytest

from refit.gate.checks import Labels, Side
from refit.gate.decide import decide
from refit.params import load_params
from refit.scoring import intervals, metrics
from refit.scoring.clusters import design_effect, numbered
from refit.scoring.evaluation import evaluate

from .conftest import ROOT

GATE = load_params(ROOT / "params.yaml").gate
NUM_GROUPS, SIZE = 60, 5
CLUSTERS = np.repeat(np.arange(NUM_GROUPS), SIZE)


def drawn(generator: np.random.Generator, chances: tuple[float, ...], share: float = 1.0) -> np.ndarray:
    """(n,) int64 outcomes; in this share of the groups all examples have the same one."""
    own, of_group = (generator.choice(len(chances), count, p=chances) for count in (len(CLUSTERS), NUM_GROUPS))
    return np.asarray(np.where((generator.random(NUM_GROUPS) < share)[CLUSTERS], of_group[CLUSTERS], own))


def test_an_example_without_a_group_is_one_of_its_own() -> None:
    assert numbered(["b", "", "a", "b", ""]).tolist() == [0, 1, 2, 0, 3]


def test_the_effect_is_that_of_the_variance_between_groups() -> None:
    generator = np.random.default_rng(0)
    assert design_effect(generator.random(20), np.arange(20)) == 1.0
    alike, independent = (
        np.mean([design_effect(drawn(generator, (0.5, 0.5), share), CLUSTERS) for _ in range(200)])
        for share in (1.0, 0.0)
    )
    assert alike == pytest.approx(SIZE, rel=0.02)
    assert 1.0 <= independent < 1.4


def test_where_no_example_differs_a_group_proves_as_much_as_one() -> None:
    assert design_effect(np.ones(len(CLUSTERS)), CLUSTERS) == SIZE


def side(right: np.ndarray, clusters: np.ndarray | None) -> Side:
    labels = np.arange(len(right)) % 3
    predicted = np.where(right, labels, (labels + 1) % 3)
    scored = metrics.Scored(labels, predicted, np.full(len(right), 0.8), np.full(len(right), 0.3), 3, clusters)
    return Side(frozenset("abc"), scored, predicted, np.full(24, 5.0), 1000)


def verdict(outcomes: np.ndarray, clusters: np.ndarray | None) -> str:
    """Of the first check, where only the candidate is right on outcome 0, and only the champion on 1."""
    settings = replace(GATE, bootstrap_samples=100)
    sides = (side(outcomes != 1, clusters), side(outcomes != 0, clusters))
    return decide(*sides, Labels(tuple("abc"), frozenset("abc"), frozenset()), [], settings, 10, 17).checks[0].verdict


def test_a_lucky_patient_promotes_no_model() -> None:
    """Of two models that are equally good one was taken for the better or worse in a third of the comparisons."""
    generator = np.random.default_rng(1)
    ties = [drawn(generator, (0.05, 0.05, 0.9)) for _ in range(100)]
    as_independent, as_alike = (
        np.mean([verdict(outcomes, clusters) != "hold" for outcomes in ties]) for clusters in (None, CLUSTERS)
    )
    assert as_independent > 0.2
    assert as_alike < 0.05


def test_a_gain_in_many_groups_is_shown() -> None:
    outcomes = np.where(np.arange(len(CLUSTERS)) % (2 * SIZE) == 0, 0, 2)  # one example in every other group
    assert verdict(outcomes, CLUSTERS) == "pass"
    assert verdict(np.where(CLUSTERS < NUM_GROUPS // 10, 0, 2), CLUSTERS) == "hold", "as many examples, of six groups"


def test_the_reason_says_how_many_examples_count() -> None:
    outcomes = np.where(CLUSTERS < 3, 0, 2)
    sides = (side(outcomes != 1, CLUSTERS), side(outcomes != 0, CLUSTERS))
    labels = Labels(tuple("abc"), frozenset("abc"), frozenset())
    check = decide(*sides, labels, [], GATE, 10, 17).checks[0]
    assert check.verdict == "hold"
    assert "those of one group are alike, so that 300 count as 59" in check.reason
    assert "about 824 labelled test examples would decide (now 300)" in check.reason
    as_alone = (replace(one, scored=replace(one.scored, clusters=None)) for one in sides)
    alone = decide(*as_alone, labels, [], GATE, 10, 17).checks[0]
    assert alone.verdict == "pass"
    assert "of one group" not in alone.reason


def accuracy_of(right: np.ndarray, clusters: np.ndarray | None) -> intervals.Interval:
    return intervals.with_intervals(side(right, clusters).scored, 10, 100, 0.95, seed=1)["accuracy"]


def test_the_interval_of_the_accuracy_is_right_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    rights = [drawn(generator, (0.15, 0.85), 0.7) == 1 for _ in range(300)]
    as_alike, as_independent = (
        np.mean([found.low <= 0.85 <= found.high for found in (accuracy_of(right, clusters) for right in rights)])
        for clusters in (CLUSTERS, None)
    )
    assert as_alike > 0.9
    assert as_independent < 0.75


def test_slices_have_wider_intervals_too() -> None:
    outcomes = drawn(np.random.default_rng(3), (0.3, 0.7)) == 1
    halves = np.where(CLUSTERS % 2 == 0, "even", "odd")
    alike, alone = (
        evaluate(side(outcomes, clusters).scored, "abc", 10, 100, 0.95, 17, "", {"half": halves}).slices["half"]["odd"]
        for clusters in (CLUSTERS, None)
    )
    assert alike.support == alone.support == len(CLUSTERS) // 2
    assert alike.accuracy.value == alone.accuracy.value
    assert alike.accuracy.high - alike.accuracy.low > 1.7 * (alone.accuracy.high - alone.accuracy.low)
