"""What a reviewer reads before deciding: one page, and the same in Markdown.

Pure functions of the comparison (refit/gate/comparison.py). The page loads nothing from elsewhere, so MLflow's artifact
viewer, which allows no other origin, shows it whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ..data.shift import FEATURES, Question
from ..gate.checks import Verdict
from ..gate.comparison import Changes, ClassRow, Comparison
from ..gate.data_checks import shows_shift
from ..params import ShiftSettings
from ..scoring.intervals import Interval
from .disagreements import Disagreements
from .page import environment, table

_WORDS: dict[Verdict, str] = {
    "pass": "passed the gate",
    "hold": "is on hold: too little is known",
    "reject": "did not pass the gate",
}
_MEASURES = (
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("expected_calibration_error", "calibration error"),
    ("negative_log_likelihood", "log loss"),
)
_CHECK_OF_MEASURE = {
    "accuracy": "accuracy",
    "expected_calibration_error": "calibration error",
    "negative_log_likelihood": "log loss",
}


@dataclass(frozen=True)
class _Column:
    """A column by which a shift is told; p-values beside sizes."""

    name: str
    new: Question | None
    all: Question | None
    limit: float
    is_found: bool


@dataclass(frozen=True)
class _Group:
    """A class or a slice."""

    label: str
    images: int
    right: int
    was_right: int | None
    change: int | None  # None: no champion


def comparison_page(comparison: Comparison, pictures: Disagreements | None, model_name: str) -> str:
    """The page.

    Args:
        pictures: None without a champion.
        model_name: of the registered model.
    """
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            comparison=comparison,
            pictures=pictures,
            name=model_name,
            headline=_WORDS[comparison.verdict],
            measures=_MEASURES,
            classes=_groups(comparison.per_class),
            slices=_groups(comparison.per_slice),
            shifts=_shifts(comparison),
        )
    )


def comparison_markdown(comparison: Comparison, model_name: str) -> str:
    """The same without pictures: for the version's description, Prefect's page and a pull request."""
    lines = [
        f"## The candidate {_WORDS[comparison.verdict]}",
        *(f"- {reason}" for reason in comparison.reasons),
        "",
        *_overall(comparison),
        "",
        *_class_lines(comparison),
        *_change_lines(comparison.changes),
        *_shift_lines(comparison),
        "",
        f"A reviewer decides (`refit review`, with the candidate's number); only reviewers write `{model_name}`.",
    ]
    return "\n".join(lines)


def _shifts(comparison: Comparison) -> list[_Column]:
    """By column, what is shown to have shifted first."""
    if comparison.shift is None:
        return []
    settings = ShiftSettings(**cast(Mapping[str, Any], comparison.gate["shift"]))
    columns = []
    for name in dict.fromkeys(question.name for question in comparison.shift.questions):
        asked = {question.of: question for question in comparison.shift.questions if question.name == name}
        limit = settings.max_auc if name == FEATURES else settings.max_psi
        is_found = any(shows_shift(question, settings) for question in asked.values())
        columns.append(_Column(name, asked.get("new"), asked.get("all"), limit, is_found))
    return sorted(columns, key=lambda column: not column.is_found)


def _overall(comparison: Comparison) -> list[str]:
    sides = comparison.overall
    rows = [
        (words, *(_interval(getattr(side, measure)) for side in sides.values()), _difference(comparison, measure))
        for measure, words in _MEASURES
    ]
    costs = [comparison.costs[side] for side in sides]
    rows += [
        ("CPU time per example", *(f"{cost.milliseconds_per_image:.1f} ms" for cost in costs), ""),
        ("size", *(f"{cost.bytes / 1e6:.1f} MB" for cost in costs), ""),
    ]
    return table((f"{comparison.num_images:,} test examples", *sides, "difference"), rows)


def _interval(measure: Interval) -> str:
    return f"{measure.value:.4f} ({measure.low:.4f} to {measure.high:.4f})"


def _difference(comparison: Comparison, measure: str) -> str:
    for check in comparison.checks:
        if check.name == _CHECK_OF_MEASURE.get(measure) and check.low is not None:
            return f"{check.value:+.4f} ({check.low:+.4f} to {check.high:+.4f})"
    return ""


def _groups(found: Mapping[str, ClassRow]) -> list[_Group]:
    """Those with the largest loss first."""
    rows = [_Group(label, row.images, row.right, row.was_right, row.change) for label, row in found.items()]
    return sorted(rows, key=lambda row: (row.change or 0, row.label))


def _class_lines(comparison: Comparison) -> list[str]:
    changed = [row for found in (comparison.per_class, comparison.per_slice) for row in _groups(found) if row.change]
    if comparison.champion is None or not changed:
        return []
    rows = [(row.label, row.images, row.was_right, row.right, f"{row.change:+d}") for row in changed]
    return [*table(("class or slice", "examples", "champion right", "candidate right", "change"), rows), ""]


def _change_lines(changes: Changes | None) -> list[str]:
    if changes is None:
        return ["No champion yet, so there is nothing to compare data and settings with."]
    counted = [f"{change.count:,} {name.replace('_', ' ')}" for name, change in changes.data.items()]
    lines = ["Data since the champion: " + ", ".join(counted) + "."]
    return lines + [f"- `{key}`: {old} -> {new}" for key, (old, new) in changes.params.items()]


def _shift_lines(comparison: Comparison) -> list[str]:
    """The check in its own words, also where nothing follows from it."""
    return [f"- {check.reason}" for check in comparison.checks if check.name == "shift"]
