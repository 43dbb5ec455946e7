"""The words of the gate: what it is given about models and images, and the form of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..scoring.metrics import Scored

Verdict = Literal["pass", "hold", "reject"]
_ORDER: tuple[Verdict, ...] = ("pass", "hold", "reject")


@dataclass(frozen=True)
class Side:
    """One model as the gate sees it: its predictions, and what it costs to run."""

    classes: frozenset[str]  # those it can say
    scored: Scored
    among: np.ndarray  # (n,) int64: the most likely of the classes that `Labels.lasting` names; -1: it knows none
    milliseconds: np.ndarray  # (rounds,) of the CPU's time for an image; the two models took turns
    bytes: int

    @property
    def milliseconds_per_image(self) -> float:
        """In the middle round."""
        return float(np.median(self.milliseconds))

    @property
    def right(self) -> np.ndarray:
        """(n,) bool: which images it names rightly."""
        return self.scored.predicted == self.scored.labels


@dataclass(frozen=True)
class Labels:
    """What the classes are called, and which there must be."""

    names: tuple[str, ...]  # of the indices in labels and predictions: all classes of both models and of the images
    source: frozenset[str]  # the classes of the data source, usable images or not
    retired: frozenset[str]  # given up on purpose: these alone may be missing

    def lasting(self, champion: frozenset[str]) -> frozenset[str]:
        """The champion's classes that were not given up."""
        return champion - self.retired


@dataclass(frozen=True)
class Groups:
    """A property that splits the test images into groups: `codes` (n,) int64 are indices of `names`."""

    names: tuple[str, ...]
    codes: np.ndarray


@dataclass(frozen=True)
class Check:
    """One question and its answer. `value` is compared with `limit`; `low` and `high` are its interval, if any."""

    name: str
    verdict: Verdict
    reason: str
    value: float
    limit: float | None = None
    low: float | None = None
    high: float | None = None


def verdict_of(checks: Sequence[Check]) -> Verdict:
    """The worst of them."""
    return max((check.verdict for check in checks), key=_ORDER.index)
