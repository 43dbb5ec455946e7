"""What training and a served model need to know of predictions, as pure functions of NumPy arrays. No torch, no files.

What is only reported is in measures.py and intervals.py beside this: an edit there trains nothing again.

Shapes: `probabilities` (n, num_classes) float64, rows sum to 1; `labels` (n,) int64, indices of classes.
"""

from dataclasses import dataclass

import numpy as np

SMALLEST_PROBABILITY = 1e-12  # keeps the log finite when a model is certain and wrong


@dataclass(frozen=True)
class Scored:
    """A test set as the measures need it: a few numbers per example, whatever the number of classes."""

    labels: np.ndarray  # (n,) int64
    predicted: np.ndarray  # (n,) int64
    confidence: np.ndarray  # (n,) float64: probability of the predicted class
    loss: np.ndarray  # (n,) float64: -log of the probability of the true class
    num_classes: int
    clusters: np.ndarray | None = None  # (n,) int64: those of one number are alike (clusters.py); None: none are

    def of(self, rows: np.ndarray) -> "Scored":
        """Of some examples, (n,) bool."""
        clusters = None if self.clusters is None else np.unique(self.clusters[rows], return_inverse=True)[1]
        confidence, loss = self.confidence[rows], self.loss[rows]
        return Scored(self.labels[rows], self.predicted[rows], confidence, loss, self.num_classes, clusters)


def score(probabilities: np.ndarray, labels: np.ndarray, clusters: np.ndarray | None = None) -> Scored:
    """Predictions, confidences and losses from probabilities."""
    rows = np.arange(len(labels))
    return Scored(
        labels=labels,
        predicted=probabilities.argmax(axis=1),
        confidence=probabilities.max(axis=1),
        loss=-np.log(np.maximum(probabilities[rows, labels], SMALLEST_PROBABILITY)),
        num_classes=probabilities.shape[1],
        clusters=clusters,
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


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes validation probabilities most likely (Guo et al. 2017), from 0.05 to 20.

    The targets are smoothed as in Platt (1999): n examples without a mistake do not prove that there are none, so
    the true class gets 1 - 1/(n + 2). Otherwise a faultless validation would make the model infinitely certain.
    The likelihood has one peak in log T, which golden-section search closes in on. It stays our own: SciPy's ends in
    other last digits, and models that are to be reproduced bit for bit carry this number.
    """
    num_examples, num_classes = logits.shape
    targets = np.full(logits.shape, 1 / (num_examples + 2) / (num_classes - 1))
    targets[np.arange(num_examples), labels] = 1 - 1 / (num_examples + 2)

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits, float(np.exp(log_temperature)))
        return float(-(targets * np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))).sum(axis=1).mean())

    ratio = (np.sqrt(5) - 1) / 2
    low, high = np.log(0.05), np.log(20.0)
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))
