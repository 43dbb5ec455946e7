"""What is different between two runs: examples added, removed, relabelled or moved, and settings. Pure comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

_MOST_NAMED = 12
_NEWS = ("added", "removed", "relabelled")  # the rest is about models


@dataclass(frozen=True)
class Change:
    """One kind of change: how many examples, some of them, and how many of each label."""

    count: int
    examples: tuple[str, ...]
    by_label: Mapping[str, int] | None = None  # None: they have two


def data_changes(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Change]:
    """Changes between two sets of examples (columns path, sha256, label, split), told apart by content.

    A file that could not be read has no content to tell it by, and is left out.

    `tested_but_trained_on_before` counts present test examples on which the former model was trained: they flatter
    it, never the new one.
    """
    old, new = _by_content(before), _by_content(after)
    both = new.index.intersection(old.index)
    relabelled = both[(new.loc[both, "label"] != old.loc[both, "label"]).to_numpy()]
    moved = both[(new.loc[both, "split"] != old.loc[both, "split"]).to_numpy()]
    seen = both[((new.loc[both, "split"] == "test") & (old.loc[both, "split"] != "test")).to_numpy()]
    return {
        "added": _named(new.drop(both)),
        "removed": _named(old.drop(both)),
        "relabelled": Change(
            count=len(relabelled),
            examples=tuple(
                f"{new.loc[key, 'path']}: {old.loc[key, 'label']} -> {new.loc[key, 'label']}"
                for key in relabelled[:_MOST_NAMED]
            ),
        ),
        "moved_to_another_split": _named(new.loc[moved]),
        "tested_but_trained_on_before": _named(new.loc[seen]),
    }


def _by_content(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["sha256"] != ""].sort_values("path").drop_duplicates("sha256").set_index("sha256")


def _named(rows: pd.DataFrame) -> Change:
    by_label = rows["label"].value_counts().sort_index()
    return Change(
        count=len(rows),
        examples=tuple(sorted(rows["path"])[:_MOST_NAMED]),
        by_label={str(label): int(count) for label, count in by_label.items()},
    )


def changes_markdown(before: pd.DataFrame | None, after: pd.DataFrame, source: str) -> str:
    """What is new in the data, for people: one line of counts, then examples. Without a former run, everything is."""
    before = after.iloc[:0] if before is None else before
    changes = {name: change for name, change in data_changes(before, after).items() if name in _NEWS}
    counts = ", ".join(f"{change.count:,} {name}" for name, change in changes.items())
    return "\n".join(
        [
            f"## Data in {source}",
            f"{len(_by_content(after)):,} images (before: {len(_by_content(before)):,}): {counts}",
            "",
            *(f"- {name}: {example}" for name, change in changes.items() for example in change.examples),
        ]
    )


def params_changes(before: Mapping[str, object], after: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Dotted key -> (before, after), where they differ; a key that is not there counts as null."""
    old, new = flat(before), flat(after)
    return {
        key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    }


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested sections as dotted keys."""
    result: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
