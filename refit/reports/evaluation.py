"""How good the model is."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..scoring.evaluation import Evaluation
from .page import environment, table


@dataclass(frozen=True)
class WorstError:
    """A mistake of which the model was certain."""

    path: str
    label: str
    predicted: str
    confidence: float
    picture: str  # a data: URI, or words


def evaluation_page(evaluation: Evaluation, worst: Sequence[WorstError]) -> str:
    """The evaluation as HTML, with the worst errors."""
    return environment().get_template("evaluation.html.j2").render(evaluation=evaluation, worst=worst)


def evaluation_markdown(evaluation: Evaluation) -> str:
    """The evaluation in tables: overall with intervals, per class, and by slices."""
    overall = [
        (name.replace("_", " "), f"{metric.value:.4f}", f"{metric.low:.4f} to {metric.high:.4f}")
        for name, metric in evaluation.overall.items()
    ]
    per_class = [
        (label, f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}", f"{row.support:,}")
        for label, row in evaluation.per_class.items()
    ]
    slices = [
        (
            f"{name}: {value}",
            f"{row.accuracy.value:.4f}",
            f"{row.accuracy.low:.4f} to {row.accuracy.high:.4f}",
            f"{row.support:,}",
        )
        for name, rows in evaluation.slices.items()
        for value, row in rows.items()
    ]
    interval = f"{evaluation.confidence:.0%} interval"
    lines = [
        f"## Evaluation on {evaluation.num_examples:,} test examples",
        *table(("metric", "value", interval), overall),
        "",
        *table(("class", "precision", "recall", "F1", "examples"), per_class),
        *(["", *table(("slice", "accuracy", interval, "examples"), slices)] if slices else []),
    ]
    return "\n".join(lines)
