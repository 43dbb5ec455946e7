"""How good the model is."""

from collections.abc import Mapping, Sequence
from typing import Any

from .page import environment, table


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
