"""Measures of a classifier, as pure functions of NumPy arrays. No torch, no files.

Shapes: `probabilities` (n, num_classes) float64, rows sum to 1; `labels` (n,) int64, indices of classes.
"""

from dataclasses import dataclass

import numpy as np

_SMALLEST_PROBABILITY = 1e-12  # keeps the log finite when a model is certain and wrong


@dataclass(frozen=True)
class Interval:
    """A value with its percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scored:
    """A test set as the measures need it, so that resampling touches small arrays only."""

    labels: np.ndarray  # (n,) int64
    predicted: np.ndarray  # (n,) int64
    confidence: np.ndarray  # (n,) float64: probability of the predicted class
    loss: np.ndarray  # (n,) float64: -log of the probability of the true class
    num_classes: int

    def take(self, rows: np.ndarray) -> "Scored":
        """The same for some of the rows (with repetition)."""
        return Scored(self.labels[rows], self.predicted[rows], self.confidence[rows], self.loss[rows], self.num_classes)


def score(probabilities: np.ndarray, labels: np.ndarray) -> Scored:
    """Predictions, confidences and losses from probabilities."""
    rows = np.arange(len(labels))
    return Scored(
        labels=labels,
        predicted=probabilities.argmax(axis=1),
        confidence=probabilities.max(axis=1),
        loss=-np.log(np.maximum(probabilities[rows, labels], _SMALLEST_PROBABILITY)),
        num_classes=probabilities.shape[1],
    )


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(n, num_classes) logits -> probabilities, in float64."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def accuracy(scored: Scored) -> float:
    """Share of correct predictions."""
    return float((scored.predicted == scored.labels).mean())


def negative_log_likelihood(scored: Scored) -> float:
    """Mean of -log p(true class), in nats."""
    return float(scored.loss.mean())


def per_class(scored: Scored) -> dict[str, np.ndarray]:
    """precision, recall, f1 and support, each (num_classes,). A measure without any case is 0."""
    hits = np.bincount(scored.labels[scored.predicted == scored.labels], minlength=scored.num_classes)
    support = np.bincount(scored.labels, minlength=scored.num_classes)
    predicted = np.bincount(scored.predicted, minlength=scored.num_classes)
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + predicted, 1),
        "support": support,
    }


def macro_f1(scored: Scored) -> float:
    """Mean F1 over the classes that occur, as label or as prediction."""
    measures = per_class(scored)
    occurs = (measures["support"] > 0) | np.isin(np.arange(scored.num_classes), scored.predicted)
    return float(measures["f1"][occurs].mean())


def reliability(scored: Scored, num_bins: int) -> dict[str, np.ndarray]:
    """Confidence and accuracy in `num_bins` equal bins of confidence, each (num_bins,); 0 in an empty bin."""
    bins = np.minimum((scored.confidence * num_bins).astype(np.int64), num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    correct = np.bincount(bins, weights=scored.predicted == scored.labels, minlength=num_bins)
    confidence = np.bincount(bins, weights=scored.confidence, minlength=num_bins)
    return {
        "count": count,
        "accuracy": correct / np.maximum(count, 1),
        "confidence": confidence / np.maximum(count, 1),
    }


def expected_calibration_error(scored: Scored, num_bins: int) -> float:
    """Mean gap between confidence and accuracy over the bins, weighted by their size (Guo et al. 2017)."""
    bins = reliability(scored, num_bins)
    gaps = np.abs(bins["accuracy"] - bins["confidence"])
    return float((bins["count"] * gaps).sum() / len(scored.labels))


def confusion_matrix(scored: Scored) -> np.ndarray:
    """(num_classes, num_classes) int64: rows are true classes, columns predicted ones."""
    cells = scored.labels * scored.num_classes + scored.predicted
    return np.bincount(cells, minlength=scored.num_classes**2).reshape(scored.num_classes, scored.num_classes)


def overall(scored: Scored, num_bins: int) -> dict[str, float]:
    """The measures of a whole test set by name."""
    return {
        "accuracy": accuracy(scored),
        "macro_f1": macro_f1(scored),
        "expected_calibration_error": expected_calibration_error(scored, num_bins),
        "negative_log_likelihood": negative_log_likelihood(scored),
    }


def with_intervals(
    scored: Scored, num_bins: int, num_resamples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """`overall` with percentile bootstrap intervals (Efron 1979) over the test examples."""
    generator = np.random.Generator(np.random.Philox(seed))
    num_examples = len(scored.labels)
    resampled = [
        overall(scored.take(generator.integers(num_examples, size=num_examples)), num_bins)
        for _ in range(num_resamples)
    ]
    tail = (1 - confidence) / 2
    intervals = {}
    for name, value in overall(scored, num_bins).items():
        low, high = np.quantile([sample[name] for sample in resampled], [tail, 1 - tail])
        intervals[name] = Interval(value, float(low), float(high))
    return intervals


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes validation probabilities most likely (Guo et al. 2017), from 0.05 to 20.

    The targets are smoothed as in Platt (1999): n examples without a mistake do not prove that there are none, so
    the true class gets 1 - 1/(n + 2). Otherwise a faultless validation would make the model infinitely certain.
    The likelihood has one peak in log T, which golden-section search closes in on.
    """
    num_examples, num_classes = logits.shape
    targets = np.full(logits.shape, 1 / (num_examples + 2) / (num_classes - 1))
    targets[np.arange(num_examples), labels] = 1 - 1 / (num_examples + 2)

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits, float(np.exp(log_temperature)))
        return float(-(targets * np.log(np.maximum(probabilities, _SMALLEST_PROBABILITY))).sum(axis=1).mean())

    ratio = (np.sqrt(5) - 1) / 2
    low, high = np.log(0.05), np.log(20.0)
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))
