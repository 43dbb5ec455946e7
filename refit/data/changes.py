"""What is different between two runs: examples added, removed, relabelled or moved, and settings. Pure comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

_MOST_NAMED = 12


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


def _by_content(table: pd.DataFrame, *first: str) -> pd.DataFrame:
    """Of several examples of one content the first by path; or by other columns first."""
    return table[table["sha256"] != ""].sort_values([*first, "path"]).drop_duplicates("sha256").set_index("sha256")


def _named(rows: pd.DataFrame) -> Change:
    by_label = rows["label"].value_counts().sort_index()
    return Change(
        count=len(rows),
        examples=tuple(sorted(rows["path"])[:_MOST_NAMED]),
        by_label={str(label): int(count) for label, count in by_label.items()},
    )


@dataclass(frozen=True)
class Changed:
    """An example that is not as it was."""

    path: str
    label: str
    split: str
    sha256: str
    says: str  # what is different, in words


@dataclass(frozen=True)
class Kind:
    """All that changed in one way: how many, how many of each label, and the first few by path."""

    count: int
    by_label: Mapping[str, int]
    some: tuple[Changed, ...]


@dataclass(frozen=True)
class RunChanges:
    """What is different from the last run: reports/changes.json."""

    num_before: int  # contents that could be read
    num_after: int
    accepted_before: int
    accepted_after: int
    kinds: Mapping[str, Kind]  # added, removed, relabelled, moved, newly_rejected, accepted_again
    appeared: tuple[str, ...]  # classes with accepted examples, which had none
    vanished: tuple[str, ...]


def judged(manifest: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    """path, sha256, label, split and rule ("": accepted) of every example of a run."""
    rules = rejected.drop_duplicates("path").set_index("path")["rule"]
    return manifest[["path", "sha256", "label", "split"]].assign(rule=manifest["path"].map(rules).fillna(""))


def run_changes(before: pd.DataFrame | None, after: pd.DataFrame) -> RunChanges:
    """What is different between two runs, of which `judged` tells; examples are told apart by content, whatever their
    paths. Without a former run, everything is new."""
    before = after.iloc[:0] if before is None else before
    old, new = _by_content(before, "rule"), _by_content(after, "rule")
    both = new.index.intersection(old.index)
    was, now = old.loc[both], new.loc[both]
    is_rejected, was_rejected = now["rule"] != "", was["rule"] != ""
    differs = {name: (now[name] != was[name]).to_numpy() for name in ("label", "split")}
    labels_before, labels_after = (set(table.loc[table["rule"] == "", "label"]) for table in (before, after))
    return RunChanges(
        num_before=len(old),
        num_after=len(new),
        accepted_before=int((old["rule"] == "").sum()),
        accepted_after=int((new["rule"] == "").sum()),
        kinds={
            "added": _kind(new.drop(both), new["label"]),
            "removed": _kind(old.drop(both), old["label"]),
            "relabelled": _kind(now[differs["label"]], was["label"] + " -> " + now["label"]),
            "moved": _kind(now[differs["split"]], was["split"] + " -> " + now["split"]),
            "newly_rejected": _kind(now[is_rejected & ~was_rejected], now["rule"]),
            "accepted_again": _kind(now[was_rejected & ~is_rejected], was["rule"]),
        },
        appeared=tuple(sorted(labels_after - labels_before)),
        vanished=tuple(sorted(labels_before - labels_after)),
    )


def _kind(rows: pd.DataFrame, says: pd.Series) -> Kind:
    some = rows.assign(says=says.reindex(rows.index)).sort_values("path").head(_MOST_NAMED).reset_index()
    by_label = rows["label"].value_counts().sort_index()
    return Kind(
        count=len(rows),
        by_label={str(label): int(count) for label, count in by_label.items()},
        some=tuple(Changed(*row) for row in some[["path", "label", "split", "sha256", "says"]].itertuples(index=False)),
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
