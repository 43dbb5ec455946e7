"""Golden examples: a few test examples with what the trained model said of them.

They travel with a version (reports/golden.json), so that whoever loads it can see whether it still says the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUM_GOLDEN = 24


@dataclass(frozen=True)
class GoldenExample:
    """One example and its answer."""

    content: bytes  # the encoded file; base64 in JSON
    label: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Golden:
    """The content of reports/golden.json."""

    classes: tuple[str, ...]
    images: tuple[GoldenExample, ...]

    @property
    def probabilities(self) -> np.ndarray:
        """(n, num_classes) float64."""
        return np.array([example.probabilities for example in self.images])


def golden(files: Sequence[Path], labels: Sequence[str], classes: Sequence[str], probabilities: np.ndarray) -> Golden:
    """The golden examples of a model that gave (n, num_classes) `probabilities` for the files."""
    rows = zip(files, labels, probabilities, strict=True)
    return Golden(
        classes=tuple(classes),
        images=tuple(GoldenExample(file.read_bytes(), label, tuple(map(float, row))) for file, label, row in rows),
    )


def disagreement(examples: Golden, answers: Sequence[Mapping[str, float]], tolerance: float) -> str | None:
    """How answers (label -> probability, one for each golden example) differ from those of the trained model.

    Args:
        tolerance: how far a probability may be off.

    Returns:
        None where they agree.
    """
    if len(answers) != len(examples.images):
        return f"{len(answers)} answers to {len(examples.images)} golden examples"
    for number, (example, answer) in enumerate(zip(examples.images, answers, strict=True)):
        if set(answer) != set(examples.classes):
            return f"it knows the labels {', '.join(sorted(answer))} instead of {', '.join(sorted(examples.classes))}"
        right = dict(zip(examples.classes, example.probabilities, strict=True))
        for label, probability in right.items():
            if not abs(answer[label] - probability) <= tolerance:  # written so that no number is none of the right ones
                return (
                    f"golden example {number} has {label!r} with probability {answer[label]:.4f} instead of "
                    f"{probability:.4f}: another version answers"
                )
    return None
