"""Reports that a person reads: self-contained HTML pages, and Markdown for the Prefect and MLflow pages.

Everything here is a pure function of what it is given: no clock, no machine, no path outside the project, so
that the same run gives the same bytes. Values are escaped by Jinja; a page loads nothing from elsewhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks.params import SPLITS


def environment() -> Environment:
    """Jinja with the frame of all pages, `page.html.j2`."""
    made = Environment(
        loader=PackageLoader("tasks", "reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.filters["percent"] = lambda share: f"{share:.1%}"
    return made


def validation_page(summary: Mapping[str, Any], rejected: pd.DataFrame) -> str:
    """The validation as HTML: verdict, classes by split, every rejected example (the first 1,000) with its reason."""
    return (
        environment()
        .get_template("validation.html.j2")
        .render(summary=summary, splits=SPLITS, rejected=rejected.head(1000).to_dict("records"))
    )


def validation_markdown(summary: Mapping[str, Any]) -> str:
    """The validation in a few lines and one table."""
    verdict = "passed" if summary["passed"] else "stopped the run"
    lines = [
        f"## Data validation {verdict}",
        f"{summary['num_accepted']:,} of {summary['num_examples']:,} images accepted, "
        f"{summary['num_rejected']:,} rejected.",
        "",
        *(f"- **{failure}**" for failure in summary["failures"]),
        *(f"- {count:,} × {reason}" for reason, count in summary["rejected_by_reason"].items()),
        "",
        *table(
            ("class", *SPLITS),
            [(label, *(f"{counts[split]:,}" for split in SPLITS)) for label, counts in summary["classes"].items()],
        ),
    ]
    return "\n".join(lines)


def evaluation_page(evaluation: Mapping[str, Any], worst: Sequence[Mapping[str, Any]]) -> str:
    """The evaluation as HTML.

    Args:
        evaluation: the content of reports/evaluation.json.
        worst: the worst errors, each with `path`, `label`, `predicted`, `probability`, `picture` (a data: URI).
    """
    return environment().get_template("evaluation.html.j2").render(evaluation=evaluation, worst=worst)


def evaluation_markdown(evaluation: Mapping[str, Any]) -> str:
    """The evaluation in two tables: overall with intervals, and per class."""
    overall = [
        (name.replace("_", " "), f"{metric['value']:.4f}", f"{metric['low']:.4f} to {metric['high']:.4f}")
        for name, metric in evaluation["overall"].items()
    ]
    per_class = [
        (label, f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{row['f1']:.3f}", f"{row['support']:,}")
        for label, row in evaluation["per_class"].items()
    ]
    lines = [
        f"## Evaluation on {evaluation['num_examples']:,} test images",
        *table(("metric", "value", f"{evaluation['confidence']:.0%} interval"), overall),
        "",
        *table(("class", "precision", "recall", "F1", "images"), per_class),
    ]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells]
