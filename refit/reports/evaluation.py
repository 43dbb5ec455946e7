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
    """The evaluation in two tables: overall with intervals, and per class."""
    overall = [
        (name.replace("_", " "), f"{metric.value:.4f}", f"{metric.low:.4f} to {metric.high:.4f}")
        for name, metric in evaluation.overall.items()
    ]
    per_class = [
        (label, f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}", f"{row.support:,}")
        for label, row in evaluation.per_class.items()
    ]
    lines = [
        f"## Evaluation on {evaluation.num_examples:,} test examples",
        *table(("metric", "value", f"{evaluation.confidence:.0%} interval"), overall),
        "",
        *table(("class", "precision", "recall", "F1", "examples"), per_class),
    ]
    return "\n".join(lines)
