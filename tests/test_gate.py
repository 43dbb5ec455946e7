"""The gate, as a pure function: what passes, what is held, what is rejected, and that nothing fails open."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from refit.errors import EvidenceError
from refit.gate import decide as gate
from refit.gate.decide import Decision, Side, decide
from refit.params import Gate, load_params
from refit.scoring.metrics import Interval, Scored

from .conftest import ROOT

SETTINGS = load_params(ROOT / "params.yaml").gate


def settings(**changes: Any) -> Gate:
    return dataclasses.replace(SETTINGS, **changes)


def side(labels: np.ndarray, wrong: Any, confidence: float = 0.95, milliseconds: float = 5.0, size: int = 1000) -> Side:
    """A model of three classes that is wrong on the rows `wrong`."""
    predicted = labels.copy()
    predicted[wrong] = (predicted[wrong] + 1) % 3
    right = predicted == labels
    loss = np.where(right, -math.log(confidence), -math.log((1 - confidence) / 2))
    return Side(Scored(labels, predicted, np.full(len(labels), confidence), loss, 3), milliseconds, size)


def judge(new: Any, old: Any, num_images: int = 600, how: Gate = SETTINGS, **costs: Any) -> Decision:
    """Candidate wrong on the rows `new`, champion on the rows `old`."""
    labels = np.arange(num_images) % 3
    groups = {f"class {label}": labels == label for label in range(3)}
    return decide(side(labels, new, **costs), None if old is None else side(labels, old), groups, how, 10, seed=17)


def names(decision: Decision, verdict: str) -> set[str]:
    return {check.name for check in decision.checks if check.verdict == verdict}


@pytest.mark.parametrize(
    ("new", "old", "goal", "verdict"),
    [
        (range(10), range(60), "better", "pass"),
        (range(60), range(60), "better", "hold"),  # a tie is not a win
        (range(0), range(0), "better", "hold"),  # nor is it one between faultless models
        (range(20), range(24), "better", "hold"),  # better, but by luck as well
        (range(60), range(10), "better", "reject"),
        (range(60), range(60), "not_worse", "pass"),
        (range(26), range(20), "not_worse", "hold"),  # 1% worse on 600 images: nobody knows
        (range(60), range(10), "not_worse", "reject"),
    ],
)
def test_the_verdict_on_accuracy(new: range, old: range, goal: str, verdict: str) -> None:
    decision = judge(new, old, how=settings(goal=goal, max_class_drop=0.9))
    assert decision.checks[0].verdict == verdict, decision.checks[0].reason


def test_a_tie_says_so_and_names_no_number_of_images() -> None:
    decision = judge(range(60), range(60))
    assert (decision.verdict, decision.images_needed) == ("hold", None)
    assert "a tie is not a win" in decision.reasons[0]
    assert "no number of images would show it" in decision.reasons[0]


def test_too_little_data_is_said_with_about_how_many_images_would_decide() -> None:
    decision = judge(range(0, 20), range(10, 36), how=settings(max_class_drop=0.9))
    assert decision.verdict == "hold"
    assert decision.images_needed == pytest.approx(1.96**2 * 26 / 600 / (6 / 600) ** 2, rel=0.01)
    assert f"about {decision.images_needed:,} labelled test images would decide (now 600)" in decision.reasons[0]


def test_the_number_of_images_named_does_decide() -> None:
    """Ten times the images with the same shares of wins and losses: the answer is no longer `hold`."""
    few, many = judge(range(20), range(10, 36), 600), judge(range(200), range(100, 360), 6000)
    assert few.images_needed is not None
    assert few.images_needed < 6000
    assert many.checks[0].verdict == "pass"


def test_few_images_without_a_disagreement_prove_nothing() -> None:
    """A plain bootstrap would give the interval 0 to 0, and so a proof of not being worse."""
    decision = judge(range(0), range(0), num_images=12, how=settings(goal="not_worse"))
    assert decision.checks[0].verdict == "hold"
    assert decision.checks[0].low is not None
    assert decision.checks[0].low < -0.1


def test_a_class_that_gets_much_worse_is_not_bought_by_the_others() -> None:
    labels = np.arange(600) % 3
    lost = np.flatnonzero(labels == 1)[:30]
    won = np.flatnonzero(labels != 1)[:120]
    decision = judge(lost, won)
    assert decision.checks[0].verdict == "pass"
    assert decision.verdict == "reject"
    assert names(decision, "reject") == {"drop of class 1"}
    assert "class 1: 15.0% fewer of 200 images right, allowed are 5.0%" in decision.reasons[0]


def test_a_drop_that_chance_explains_is_held_and_not_rejected() -> None:
    labels = np.arange(60) % 3
    lost = np.flatnonzero(labels == 1)[:2]  # two of twenty
    decision = judge(lost, range(0), num_images=60, how=settings(goal="not_worse", margin=0.2))
    assert "drop of class 1" in names(decision, "hold")
    assert names(decision, "reject") == set()


def test_many_classes_do_not_raise_false_alarms() -> None:
    """One of 100 groups at p = 0.03 is what chance gives; alone it would be an alarm."""
    assert gate.holm({"one": 0.03})["one"] == pytest.approx(0.03)
    many = gate.holm({"one": 0.03} | {f"group {index}": 1.0 for index in range(99)})
    assert many["one"] == 1.0
    assert gate.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_floors_hold_with_a_champion_that_is_worse_still() -> None:
    decision = judge(range(300), range(500))
    assert decision.verdict == "reject"
    assert {"accuracy floor"} <= names(decision, "reject")


def test_a_class_without_test_images_is_never_a_pass() -> None:
    labels = np.zeros(300, dtype=np.int64)
    groups = {"class 0": labels == 0, "class 1": labels == 1}
    decision = decide(side(labels, range(0)), side(labels, range(100)), groups, SETTINGS, 10, 17)
    assert names(decision, "hold") == {"floor of class 1"}
    assert decision.verdict == "hold"


def test_calibration_is_judged() -> None:
    decision = judge(range(10), range(60), confidence=0.6)
    assert decision.verdict == "reject"
    assert names(decision, "reject") == {"calibration error"}


@pytest.mark.parametrize(("costs", "name"), [({"milliseconds": 11.0}, "latency"), ({"size": 2001}, "size")])
def test_a_model_that_is_too_slow_or_too_large_is_rejected(costs: dict[str, Any], name: str) -> None:
    decision = judge(range(10), range(60), **costs)
    assert names(decision, "reject") == {name}


def test_the_first_champion_must_beat_guessing_and_the_floors() -> None:
    assert judge(range(30), None).verdict == "pass"
    assert judge(range(200), None).verdict == "reject", "accuracy 67% is below the floor"
    assert judge(range(1), None, num_images=6).verdict == "hold", "six images prove nothing"
    assert judge(range(450), None, how=settings(min_accuracy=0.0, min_class_recall=0.0)).verdict == "reject"


def test_missing_evidence_is_an_error_and_never_a_verdict() -> None:
    with pytest.raises(EvidenceError, match="no test image"):
        judge([], [], num_images=0)
    labels = np.arange(60) % 3
    good = side(labels, range(0))
    other = side((labels + 1) % 3, range(0))
    with pytest.raises(EvidenceError, match="not scored on the same images"):
        decide(good, other, {}, SETTINGS, 10, 17)
    for broken in (
        dataclasses.replace(good, milliseconds_per_image=math.nan),
        dataclasses.replace(good, bytes=0),
        dataclasses.replace(good, scored=dataclasses.replace(good.scored, loss=np.full(60, np.nan))),
    ):
        with pytest.raises(EvidenceError):
            decide(good, broken, {}, SETTINGS, 10, 17)
        with pytest.raises(EvidenceError):
            decide(broken, good, {}, SETTINGS, 10, 17)


@pytest.mark.parametrize(
    ("won", "lost", "p_value"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (10, 2, 0.03857421875)],
)
def test_mcnemar_is_exact(won: int, lost: int, p_value: float) -> None:
    assert gate.mcnemar(won, lost) == pytest.approx(p_value)


def test_the_binomial_tail_stands_thousands_of_trials() -> None:
    from scipy.stats import binom

    for most, trials, chance in [(3, 10, 0.3), (480, 1000, 0.5), (9_900, 10_000, 0.99), (4, 4, 0.2), (0, 9, 0.0)]:
        assert gate.binomial_tail(most, trials, chance) == pytest.approx(binom.cdf(most, trials, chance))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """2% won, 1% lost: the interval of the difference must hold 1% in about 95 of 100 test sets."""
    generator = np.random.default_rng(0)
    hits, how = 0, settings(bootstrap_samples=300)
    for _ in range(300):
        draw = generator.random(500)
        interval = gate.accuracy_difference(draw < 0.02, draw > 0.99, how, seed=1)
        hits += interval.low <= 0.01 <= interval.high
    assert 0.93 <= hits / 300 <= 1.0


def test_the_same_evidence_gives_the_same_decision() -> None:
    assert judge(range(20), range(26)) == judge(range(20), range(26))
    assert isinstance(gate.accuracy_difference(np.ones(5) > 0, np.ones(5) < 0, SETTINGS, 1), Interval)
