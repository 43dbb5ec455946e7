"""Measures of a finished classifier, as pure functions of NumPy arrays: what evaluation and comparison report.

None of them steers a training, so none of them is among its `deps`; those that do are in refit/scoring/metrics.py.
"""

import numpy as np

from .metrics import Scored, accuracy, negative_log_likelihood


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
    return float(per_class(scored)["f1"][occurring(scored)].mean())


def occurring(scored: Scored) -> np.ndarray:
    """(num_classes,) bool: the classes that occur, as label or as prediction."""
    return np.bincount(np.concatenate([scored.labels, scored.predicted]), minlength=scored.num_classes) > 0


def confidence_bins(scored: Scored, num_bins: int) -> np.ndarray:
    """(n,) int64: which of `num_bins` equal bins of confidence each prediction falls into."""
    return np.minimum((scored.confidence * num_bins).astype(np.int64), num_bins - 1)


def reliability(scored: Scored, num_bins: int) -> dict[str, np.ndarray]:
    """Confidence and accuracy in `num_bins` equal bins of confidence, each (num_bins,); 0 in an empty bin."""
    bins = confidence_bins(scored, num_bins)
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
