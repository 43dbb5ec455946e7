"""Golden examples: a few test examples with what the trained model said of them.

They travel with a version (reports/golden.json), so that whoever loads it can see whether it still says the same.
"""

from collections.abc import Sequence
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
