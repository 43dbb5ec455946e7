"""What is different from the last run: examples, labels, classes, and what is rejected now."""

from collections.abc import Mapping

from ..data.changes import RunChanges
from .page import environment
from .validation import Shown

_WORDS = {
    "added": "added",
    "removed": "removed",
    "relabelled": "relabelled",
    "moved": "moved to another split",
    "newly_rejected": "rejected now",
    "accepted_again": "accepted again",
}


def shown(changes: RunChanges) -> list[Shown]:
    """What the page has pictures of: all but what is gone."""
    return [
        Shown(one.path, one.label, one.split, one.sha256, one.says)
        for name, kind in changes.kinds.items()
        if name != "removed"
        for one in kind.some
    ]


def changes_page(changes: RunChanges, pictures: Mapping[str, str]) -> str:
    """The page.

    Args:
        pictures: by path, as `refit.reports.validation.excerpts` gives them.
    """
    return environment().get_template("changes.html.j2").render(changes=changes, pictures=pictures, words=_WORDS)


def changes_markdown(changes: RunChanges, source: str) -> str:
    """What is new in the data, for a terminal, Prefect's page and a pull request: a line of counts, then examples."""
    counts = ", ".join(f"{changes.kinds[name].count:,} {name}" for name in ("added", "removed", "relabelled"))
    more = [
        f"{kind.count:,} {_WORDS[name]}"
        for name, kind in changes.kinds.items()
        if name in ("moved", "newly_rejected", "accepted_again") and kind.count
    ]
    lines = [
        f"## Data in {source}",
        f"{changes.num_after:,} examples (before: {changes.num_before:,}): {', '.join([counts, *more])}. "
        f"{changes.accepted_after:,} accepted (before: {changes.accepted_before:,}).",
        "",
    ]
    if not changes.num_before:
        return "\n".join([*lines, "There is no former run to compare with."])
    for words, labels in (("appeared", changes.appeared), ("vanished", changes.vanished)):
        if labels:
            lines.append(f"- classes {words}: {', '.join(labels[:12])}{' …' if len(labels) > 12 else ''}")
    for name, kind in changes.kinds.items():
        lines += [f"- {_WORDS[name]}: {one.path}{f': {one.says}' if one.says else ''}" for one in kind.some]
    return "\n".join(lines)
