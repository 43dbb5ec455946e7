"""Two versions side by side, for a person."""

from ..registry.versions import Difference
from .page import table


def difference_markdown(found: Difference) -> str:
    """What is different, as tables."""
    data = ", ".join(f"{change.count:,} {name.replace('_', ' ')}" for name, change in found.data.items())
    settings = [(key, old, new) for key, (old, new) in {**found.params, **found.environment}.items()]
    measures = [(name.replace("_", " "), _shown(old), _shown(new)) for name, (old, new) in found.metrics.items()]
    classes = [(f"recall of {label}", _shown(old), _shown(new)) for label, (old, new) in found.per_class.items()]
    lines = [
        f"## From {found.first} to {found.second}",
        f"Commits {found.commits[0][:12]} and {found.commits[1][:12]}. The same: {', '.join(found.same)}.",
        f"Data: {data}.",
        "",
        *(table(("setting", "first", "second"), settings) if settings else ["The settings are the same."]),
        "",
        *table(("measure", "first", "second"), measures + classes),
    ]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
