"""The measures against scikit-learn and by hand, and the randomness without state."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

from refit.reports.evaluation import evaluation_markdown, evaluation_page
from refit.scoring import measures, metrics
from refit.scoring.evaluation import evaluate
from refit.training.determinism import example_keys, step_seed, uniforms

GENERATOR = np.random.default_rng(5)
LOGITS = GENERATOR.normal(size=(400, 4)) * 2
LABELS = np.where(GENERATOR.random(400) < 0.6, LOGITS.argmax(axis=1), GENERATOR.integers(0, 4, 400))
PROBABILITIES = metrics.softmax(LOGITS)
SCORED = metrics.score(PROBABILITIES, LABELS)


def test_the_measures_are_those_of_scikit_learn() -> None:
    predicted = PROBABILITIES.argmax(axis=1)
    assert metrics.accuracy(SCORED) == pytest.approx(accuracy_score(LABELS, predicted))
    assert measures.macro_f1(SCORED) == pytest.approx(f1_score(LABELS, predicted, average="macro"))
    assert metrics.negative_log_likelihood(SCORED) == pytest.approx(log_loss(LABELS, PROBABILITIES))
    assert measures.confusion_matrix(SCORED).tolist() == confusion_matrix(LABELS, predicted).tolist()
    expected = precision_recall_fscore_support(LABELS, predicted)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert measures.per_class(SCORED)[name] == pytest.approx(values)


def test_each_slice_has_an_accuracy_with_an_interval() -> None:
    half = np.where(np.arange(400) < 300, "first", "last")
    found = evaluate(SCORED, "abcd", 10, 100, 0.95, 3, "", {"half": half, "all": np.full(400, "same")})
    assert {name: list(rows) for name, rows in found.slices.items()} == {"half": ["first", "last"], "all": ["same"]}
    right = SCORED.predicted == LABELS
    for name, which in (("first", half == "first"), ("last", half == "last")):
        row = found.slices["half"][name]
        assert (row.accuracy.value, row.support) == (pytest.approx(right[which].mean()), which.sum())
        assert row.accuracy.low < row.accuracy.value < row.accuracy.high
    assert found.slices["all"]["same"].accuracy == found.overall["accuracy"]
    page, summary = evaluation_page(found, []), evaluation_markdown(found)
    assert "half: first" in page
    assert f"| half: last | {right[300:].mean():.4f} |" in summary


def test_calibration_error_by_hand() -> None:
    scored = metrics.Scored(
        labels=np.array([0, 0, 1, 1]),
        predicted=np.array([0, 1, 1, 1]),
        confidence=np.array([0.62, 0.68, 0.91, 1.0]),
        loss=np.zeros(4),
        num_classes=2,
    )
    # Bin 0.6 to 0.7: confidence 0.65, accuracy 0.5. Bin 0.9 to 1: confidence 0.955, accuracy 1.
    assert measures.expected_calibration_error(scored, 10) == pytest.approx((2 * 0.15 + 2 * 0.045) / 4)
    assert measures.reliability(scored, 10)["count"].tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 2]


def test_a_certain_mistake_has_a_finite_loss() -> None:
    scored = metrics.score(np.array([[1.0, 0.0]]), np.array([1]))
    assert np.isfinite(metrics.negative_log_likelihood(scored))


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_the_fitted_temperature_is_the_true_one(true_temperature: float) -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(20_000, 5)) * 2
    draws = generator.random((20_000, 1))
    labels = (metrics.softmax(logits).cumsum(axis=1) < draws).sum(axis=1).clip(max=4)
    assert metrics.fit_temperature(logits * true_temperature, labels) == pytest.approx(true_temperature, rel=0.05)


@pytest.mark.parametrize("num_examples", [10, 200])
def test_a_faultless_validation_does_not_make_the_model_certain(num_examples: int) -> None:
    labels = np.arange(num_examples) % 2
    logits = np.where(labels[:, None] == np.arange(2), 3.0, 0.0)
    probabilities = metrics.softmax(logits, metrics.fit_temperature(logits, labels))
    assert probabilities.max() == pytest.approx(1 - 1 / (num_examples + 2), abs=1e-3)


KEYS = example_keys([f"{number:064x}"[::-1] for number in range(1, 2001)])


def test_a_random_number_depends_on_its_example_only() -> None:
    all_at_once = uniforms(7, "augment", 3, KEYS, 5)
    assert (uniforms(7, "augment", 3, KEYS[::-1], 5)[::-1] == all_at_once).all()
    assert (uniforms(7, "augment", 3, KEYS[100:103], 5) == all_at_once[100:103]).all()
    assert (uniforms(7, "augment", 3, KEYS, 2) == all_at_once[:, :2]).all()


def test_random_numbers_are_uniform_and_independent() -> None:
    numbers = uniforms(7, "augment", 3, KEYS, 5)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi-square with 19 degrees of freedom, p = 0.001
    others = [uniforms(8, "augment", 3, KEYS, 5), uniforms(7, "order", 3, KEYS, 5), uniforms(7, "augment", 4, KEYS, 5)]
    for other in (*others, np.roll(numbers, 1, axis=1), np.roll(numbers, 1, axis=0)):
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 0.04
    assert len(np.unique(numbers)) == numbers.size


def test_random_numbers_never_change() -> None:
    """A stored result: a change here would change every model."""
    assert uniforms(17, "order", 0, example_keys(["ab" * 32]), 2)[0].tolist() == [
        0.9236189956352064,
        0.31600299567674817,
    ]
    assert step_seed(17, 0) == 1701382468034316030
