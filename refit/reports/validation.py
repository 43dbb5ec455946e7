"""What is wrong with the data, for who can mend it: pictures of what was found, by what is wrong with them.

    shelves = shelves_of(findings, manifest)
    page = validation_page(summary, shelves, excerpts(on(shelves), modality_name))

A page shows a bounded number of pictures, each made in a disposable process, out of a file that still has the bytes
that were judged. All findings are in reports/findings.json.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..data.children import excerpts_in_children
from ..data.findings import Finding, by_rule
from ..data.summary import ValidationSummary
from ..params import SPLITS
from .page import environment, table

_MOST_GROUPS, _MOST_IN_GROUP, _MOST_LINES, _MOST_CLASSES = 12, 4, 40, 80


@dataclass(frozen=True)
class Shown:
    """An example on a page. Without `sha256` it cannot be shown."""

    path: str
    label: str
    split: str
    sha256: str
    says: str = ""  # what is wrong with it; empty: it stands beside one with which something is


@dataclass(frozen=True)
class Shelf:
    """What one rule found: examples that clash side by side, the others each by itself; and, of what has no picture,
    lines."""

    rule: str
    groups: tuple[tuple[Shown, ...], ...]
    lines: tuple[Shown, ...]
    num_hidden: int  # findings for which a page has no room


def shelves_of(findings: Sequence[Finding], manifest: pd.DataFrame) -> list[Shelf]:
    """What the page shows of findings.

    Args:
        manifest: path, label, split, sha256 and error (null: it can be shown).
    """
    named = {path for finding in findings for path in (finding.path, finding.twin)}
    usable = manifest[manifest["error"].isna() & manifest["path"].isin(named)]
    rows = [Shown(*row) for row in usable[["path", "label", "split", "sha256"]].itertuples(index=False)]
    can_be_shown = {one.path: one for one in rows}
    return [_shelf(name, group, can_be_shown) for name, group in by_rule(findings).items()]


def _shelf(rule: str, findings: list[Finding], can_be_shown: Mapping[str, Shown]) -> Shelf:
    groups: dict[str, dict[str, Shown]] = {}  # by the name of the group, then by path
    group_of: dict[str, str] = {}
    lines = []
    for one in findings:
        said = Shown(one.path, one.label, one.split, one.sha256, one.reason)
        if one.path not in can_be_shown:
            lines.append(said)
            continue
        name = group_of.get(one.twin) or group_of.get(one.path) or one.twin or one.path
        group = groups.setdefault(name, {})
        if one.twin in can_be_shown:
            group.setdefault(one.twin, can_be_shown[one.twin])
            group_of[one.twin] = name
        group[one.path] = said
        group_of[one.path] = name
    kept = tuple(tuple(group.values())[:_MOST_IN_GROUP] for group in list(groups.values())[:_MOST_GROUPS])
    num_shown = sum(bool(one.says) for group in kept for one in group) + len(lines[:_MOST_LINES])
    return Shelf(rule, kept, tuple(lines[:_MOST_LINES]), len(findings) - num_shown)


def excerpts(shown: Iterable[Shown], modality_name: str, roots: Sequence[Path] = (Path(),)) -> dict[str, str]:
    """What a page shows of examples, by path: a data: URI, or words. A file that is gone or has other bytes now has
    none."""
    wanted = {one.path: one for one in shown if one.sha256}
    files = [next((root / path for root in roots if (root / path).is_file()), Path(path)) for path in wanted]
    found = excerpts_in_children(files, modality_name)
    return {
        path: excerpt.shown
        for (path, one), excerpt in zip(wanted.items(), found, strict=True)
        if excerpt.sha256 == one.sha256
    }


def on(shelves: Iterable[Shelf]) -> list[Shown]:
    """All examples on shelves."""
    return [one for shelf in shelves for group in shelf.groups for one in group]


def validation_page(summary: ValidationSummary, shelves: Sequence[Shelf], pictures: Mapping[str, str]) -> str:
    """The validation as HTML.

    Args:
        pictures: by path, as `excerpts` gives them.
    """
    return (
        environment()
        .get_template("validation.html.j2")
        .render(
            summary=summary,
            splits=SPLITS,
            shelves=shelves,
            pictures=pictures,
            classes=_largest_and_smallest(summary.classes),
            imbalance=_imbalance(summary.classes),
        )
    )


def _largest_and_smallest(classes: Mapping[str, Mapping[str, int]]) -> list[tuple[str, Mapping[str, int]]]:
    ordered = sorted(classes.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    if len(ordered) <= _MOST_CLASSES:
        return ordered
    return ordered[: _MOST_CLASSES // 2] + ordered[-_MOST_CLASSES // 2 :]


def _imbalance(classes: Mapping[str, Mapping[str, int]]) -> float | None:
    """How many times as many images the largest class has as the smallest."""
    sizes = sorted(sum(counts.values()) for counts in classes.values())
    return sizes[-1] / sizes[0] if sizes else None


def validation_markdown(summary: ValidationSummary) -> str:
    """The validation for a terminal, Prefect's page and a pull request: verdict, what was found with a few examples,
    classes."""
    verdict = "passed" if summary.passed else "stopped the run"
    lines = [
        f"## Data validation {verdict}",
        f"{summary.num_accepted:,} of {summary.num_examples:,} examples accepted, {summary.num_rejected:,} rejected"
        f"{f', {summary.num_warned:,} with a warning' if summary.num_warned else ''}.",
        "",
        *(f"- **{failure}**" for failure in summary.failures),
    ]
    for rule in summary.rules.values():
        if set(rule.examples) <= set(summary.failures):
            continue  # said above
        lines.append(f"- {rule.policy}: {rule.count:,} × {rule.about}")
        lines += [f"    - {example}" for example in rule.examples[:3]]
        lines += [f"    - and {rule.count - 3:,} more"] if rule.count > 3 else []
    classes = _largest_and_smallest(summary.classes)
    rows = [(label, *(f"{counts[split]:,}" for split in SPLITS)) for label, counts in classes]
    lines += ["", *table(("class", *SPLITS), rows)]
    if len(summary.classes) > len(classes):
        lines += ["", f"The largest and the smallest of {len(summary.classes):,} classes."]
    return "\n".join(lines)
