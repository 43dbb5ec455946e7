"""What a reviewer reads before deciding: one page, and the same in Markdown.

Pure functions of the comparison (tasks/compare.py describes it). The page loads nothing from elsewhere, so MLflow's
artifact viewer, which allows no other origin, shows it whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .page import environment, table

_WORDS = {"pass": "passed the gate", "hold": "is on hold: too little is known", "reject": "did not pass the gate"}
_MEASURES = (
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("expected_calibration_error", "calibration error"),
    ("negative_log_likelihood", "log loss"),
)


def comparison_page(
    comparison: Mapping[str, Any], pictures: Mapping[str, Sequence[Mapping[str, Any]]] | None, model_name: str
) -> str:
    """The page.

    Args:
        comparison: the content of reports/comparison.json.
        pictures: `lost` and `won`, each rows with path, label, champion, candidate, picture (a data: URI); None
            without a champion.
        model_name: of the registered model.
    """
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            comparison=comparison,
            pictures=pictures,
            name=model_name,
            headline=_WORDS[comparison["verdict"]],
            measures=_MEASURES,
            classes=_classes(comparison),
        )
    )


def comparison_markdown(comparison: Mapping[str, Any], model_name: str) -> str:
    """The same without pictures: for the version's description, Prefect's page and a pull request."""
    lines = [
        f"## The candidate {_WORDS[comparison['verdict']]}",
        *(f"- {reason}" for reason in comparison["reasons"]),
        "",
        *_overall(comparison),
        "",
        *_class_lines(comparison),
        *_change_lines(comparison["changes"]),
        "",
        f"To decide: `refit promote VERSION --reason …` or `refit reject VERSION --reason …`; `{model_name}` is "
        "written by reviewers only.",
    ]
    return "\n".join(lines)


def _overall(comparison: Mapping[str, Any]) -> list[str]:
    sides = comparison["overall"]
    rows = [
        (words, *(_interval(sides[side][measure]) for side in sides), _difference(comparison, measure))
        for measure, words in _MEASURES
    ]
    costs = comparison["costs"]
    rows += [
        ("time per image", *(f"{costs[side]['milliseconds_per_image']:.1f} ms" for side in sides), ""),
        ("size", *(f"{costs[side]['bytes'] / 1e6:.1f} MB" for side in sides), ""),
    ]
    return table((f"{comparison['num_images']:,} test images", *sides, "difference"), rows)


def _interval(measure: Mapping[str, float]) -> str:
    return f"{measure['value']:.4f} ({measure['low']:.4f} to {measure['high']:.4f})"


_CHECK_OF_MEASURE = {
    "accuracy": "accuracy",
    "expected_calibration_error": "calibration error",
    "negative_log_likelihood": "log loss",
}


def _difference(comparison: Mapping[str, Any], measure: str) -> str:
    for check in comparison["checks"]:
        if check["name"] == _CHECK_OF_MEASURE.get(measure) and check["low"] is not None:
            return f"{check['value']:+.4f} ({check['low']:+.4f} to {check['high']:+.4f})"
    return ""


def _classes(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Classes with the largest loss first."""
    rows = [
        {"label": label, **row, "change": None if row["was_right"] is None else row["right"] - row["was_right"]}
        for label, row in comparison["per_class"].items()
    ]
    return sorted(rows, key=lambda row: (row["change"] or 0, row["label"]))


def _class_lines(comparison: Mapping[str, Any]) -> list[str]:
    changed = [row for row in _classes(comparison) if row["change"]]
    if comparison["champion"] is None or not changed:
        return []
    rows = [(row["label"], row["images"], row["was_right"], row["right"], f"{row['change']:+d}") for row in changed]
    return [*table(("class", "images", "champion right", "candidate right", "change"), rows), ""]


def _change_lines(changes: Mapping[str, Any] | None) -> list[str]:
    if changes is None:
        return ["No champion yet, so there is nothing to compare data and settings with."]
    counted = [f"{change['count']:,} {name.replace('_', ' ')}" for name, change in changes["data"].items()]
    lines = ["Data since the champion: " + ", ".join(counted) + "."]
    return lines + [f"- `{key}`: {old} -> {new}" for key, (old, new) in changes["params"].items()]
