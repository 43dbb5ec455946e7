"""Candidate and champion on the same test examples: reports/comparison.json as a record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..data.changes import Change
from ..data.shift import Shift
from ..scoring.evaluation import Bin, reliability_bins
from ..scoring.intervals import Interval, with_intervals
from ..scoring.metrics import Scored
from .checks import Check, Groups, Side, Verdict, verdict_of

FORMAT: Literal[1] = 1
SideName = Literal["candidate", "champion"]


@dataclass(frozen=True)
class Compared:
    """Digests of the files that name the candidate."""

    weights_sha256: str
    evaluation_sha256: str


@dataclass(frozen=True)
class Identity:
    """What names a registered version: where it is, and what it is."""

    uri: str
    version: str
    content_digest: str
    weights_sha256: str


@dataclass(frozen=True)
class SideMeasures:
    """The measures of one model on all test examples."""

    accuracy: Interval
    macro_f1: Interval
    expected_calibration_error: Interval
    negative_log_likelihood: Interval
    reliability: tuple[Bin, ...]


@dataclass(frozen=True)
class ClassRow:
    """Test examples of one class or slice, and how many of them the candidate, and the champion, got right."""

    images: int
    right: int
    was_right: int | None  # None: no champion

    @property
    def change(self) -> int | None:
        """How many more the candidate gets right."""
        return None if self.was_right is None else self.right - self.was_right


@dataclass(frozen=True)
class Costs:
    """What a model costs to run."""

    milliseconds_per_image: float
    bytes: int


@dataclass(frozen=True)
class Changes:
    """What is different since the champion."""

    data: Mapping[str, Change]  # by kind of change
    params: Mapping[str, tuple[object, object]]  # by setting: the champion's, the candidate's


@dataclass(frozen=True)
class Comparison:
    """The gate's verdict, and what led to it."""

    format: Literal[1]
    verdict: Verdict
    reasons: tuple[str, ...]
    images_needed: int | None  # about so many test examples would decide
    checks: tuple[Check, ...]
    candidate: Compared
    champion: Identity | None  # None: none yet
    num_images: int
    overall: Mapping[SideName, SideMeasures]
    per_class: Mapping[str, ClassRow]
    costs: Mapping[SideName, Costs]
    changes: Changes | None  # None: no champion to compare with
    gate: Mapping[str, object]  # the settings used
    seed: int
    shift: Shift | None = None  # None: no champion to compare with, or not looked at, or of before it was
    per_slice: Mapping[str, ClassRow] = field(default_factory=dict)  # of `gate.slices`

    def __post_init__(self) -> None:
        """A verdict that somebody wrote over the checks' is read nowhere."""
        if not self.checks or self.verdict != verdict_of(self.checks):
            raise ValueError(f"the verdict {self.verdict!r} does not follow from the checks")
        if not set(self.reasons) <= {check.reason for check in self.checks}:
            raise ValueError("its reasons are not those of the checks")


def side_measures(scored: Scored, num_bins: int, num_resamples: int, confidence: float, seed: int) -> SideMeasures:
    """The measures of one side; the arguments as in `with_intervals`."""
    found = with_intervals(scored, num_bins, num_resamples, confidence, seed)
    return SideMeasures(**found, reliability=reliability_bins(scored, num_bins))


def class_rows(new: Side, old: Side | None, classes: tuple[str, ...]) -> dict[str, ClassRow]:
    """How many of each class each side got right."""
    return _rows(new, old, Groups(classes, new.scored.labels))


def slice_rows(new: Side, old: Side | None, slices: Sequence[Groups]) -> dict[str, ClassRow]:
    """How many of each slice each side got right."""
    return {name: row for groups in slices for name, row in _rows(new, old, groups).items()}


def _rows(new: Side, old: Side | None, groups: Groups) -> dict[str, ClassRow]:
    def count(codes: np.ndarray) -> list[int]:
        return [int(number) for number in np.bincount(codes, minlength=len(groups.names))]

    was_right = [None] * len(groups.names) if old is None else count(groups.codes[old.right])
    rows = zip(count(groups.codes), count(groups.codes[new.right]), was_right, strict=True)
    return {name: ClassRow(*row) for name, row in zip(groups.names, rows, strict=True)}
