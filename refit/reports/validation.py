"""What was wrong with the data."""

import pandas as pd

from ..data.summary import ValidationSummary
from ..params import SPLITS
from .page import environment, table


def validation_page(summary: ValidationSummary, rejected: pd.DataFrame) -> str:
    """The validation as HTML: verdict, classes by split, every rejected example (the first 1,000) with its reason."""
    return (
        environment()
        .get_template("validation.html.j2")
        .render(summary=summary, splits=SPLITS, rejected=rejected.head(1000).to_dict("records"))
    )


def validation_markdown(summary: ValidationSummary) -> str:
    """The validation in a few lines and one table."""
    verdict = "passed" if summary.passed else "stopped the run"
    lines = [
        f"## Data validation {verdict}",
        f"{summary.num_accepted:,} of {summary.num_examples:,} images accepted, {summary.num_rejected:,} rejected.",
        "",
        *(f"- **{failure}**" for failure in summary.failures),
        *(f"- {rule.policy}: {rule.count:,} × {rule.about}" for rule in summary.rules.values()),
        "",
        *table(
            ("class", *SPLITS),
            [(label, *(f"{counts[split]:,}" for split in SPLITS)) for label, counts in summary.classes.items()],
        ),
    ]
    return "\n".join(lines)
