"""The page that a reviewer decides by: the comparison, and above it what was compared and where it came from.

    review_page(comparison_page, origin)            HTML: the comparison's page, completed
    review_markdown(comparison, origin, name)       for a terminal, MLflow's description and Prefect's page

The comparison's page is made before its version has a number; the evidence names its digest. What is known only
afterwards is written into a copy, which therefore says the same as the evidence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..gate.comparison import Comparison
from ..registry.origin import Origin
from .comparison import comparison_markdown
from .page import environment

MARK = "<!-- the candidate -->"
"""Where the comparison's page has room for it."""
_WIDTH, _HEIGHT = 260.0, 120.0
_MOST_LINES = 400  # of a patch


@dataclass(frozen=True)
class _Chart:
    title: str
    low: float
    high: float
    epochs: int
    lines: tuple[tuple[str, str], ...]  # name, points of an SVG polyline


def review_page(comparison_page: str, origin: Origin) -> str:
    """The comparison's page with the candidate in it."""
    patch = origin.patch.splitlines()
    head = (
        environment()
        .get_template("review.html.j2")
        .render(
            origin=origin,
            charts=_charts(origin.curves),
            patch="\n".join(patch[:_MOST_LINES]),
            num_hidden=max(0, len(patch) - _MOST_LINES),
            width=_WIDTH,
            height=_HEIGHT,
        )
    )
    mark = MARK if MARK in comparison_page else "<body>"  # a page of an older version
    return comparison_page.replace(mark, f"{mark}\n{head}", 1)


def review_markdown(comparison: Comparison, origin: Origin, model_name: str) -> str:
    """The same without pictures."""
    return "\n".join(
        [
            comparison_markdown(comparison, model_name),
            "",
            f"### What it is: candidate {origin.number}",
            *(f"- {line}" for line in _facts(origin)),
            "",
            "### To decide",
            *(f"    {command}" for command in commands(origin)),
        ]
    )


def commands(origin: Origin) -> tuple[str, str]:
    """What to type; complete but for the reason."""
    decided = f'{origin.number} --evidence {origin.evidence[:12]} --reason "…"'
    return f"refit promote {decided}", f"refit reject {decided}"


def _facts(origin: Origin) -> list[str]:
    branch = f", branch {origin.branch}" if origin.branch else ""
    facts = [
        f"version {origin.uri}, evidence `{origin.evidence[:12]}`",
        f"commit {origin.git.commit[:12]}{branch}: {origin.doubt or 'the code that ran is that of the commit'}",
        *(f"changed: {file.path} +{file.added} -{file.removed}" for file in origin.changed),
        f"trained by {origin.who}, {origin.when}",
    ]
    return facts + [f"{name}: {address}" for name, address in origin.links.items()]


def _charts(curves: Sequence[Mapping[str, float]]) -> list[_Chart]:
    return [chart for what in ("loss", "accuracy") if (chart := _chart(what, curves))]


def _chart(what: str, curves: Sequence[Mapping[str, float]]) -> _Chart | None:
    series = {
        name: [row[f"{name}_{what}"] for row in curves]
        for name in ("train", "val")
        if curves and all(f"{name}_{what}" in row for row in curves)
    }
    values = [value for line in series.values() for value in line]
    if not values:
        return None
    low, high = min(values), max(values)
    span = high - low or 1.0

    def points(line: list[float]) -> str:
        step = _WIDTH / max(1, len(line) - 1)
        return " ".join(
            f"{index * step:.1f},{_HEIGHT * (1 - (value - low) / span):.1f}" for index, value in enumerate(line)
        )

    return _Chart(what, low, high, len(curves), tuple((name, points(line)) for name, line in series.items()))
