"""What changed in the data between two manifests: a pure comparison by content.

changes = data_changes(before, after)      changes.added, .removed, .relabelled, .moved
"""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Changes:
    """Counts of pictures, by the content of their files, with some examples for people."""

    before: int
    after: int
    added: int
    removed: int
    relabelled: int
    examples: tuple[str, ...]  # a line each


def data_changes(before: pd.DataFrame | None, after: pd.DataFrame, num_examples: int = 5) -> Changes:
    """Compare two manifests (`path`, `sha256`, `label`); without a first one, everything is new."""
    old = _by_content(before) if before is not None else after.iloc[:0].set_index("sha256")[["path", "label"]]
    new = _by_content(after)
    both = old.join(new, how="inner", lsuffix="_before", rsuffix="_after")
    relabelled = both[both["label_before"] != both["label_after"]]
    added, removed = new.loc[~new.index.isin(old.index)], old.loc[~old.index.isin(new.index)]
    examples = [
        *(f"added: {row.path} ({row.label})" for row in added.head(num_examples).itertuples()),
        *(f"removed: {row.path} ({row.label})" for row in removed.head(num_examples).itertuples()),
        *(
            f"relabelled: {row.path_after} ({row.label_before} is now {row.label_after})"
            for row in relabelled.head(num_examples).itertuples()
        ),
    ]
    return Changes(len(old), len(new), len(added), len(removed), len(relabelled), tuple(examples))


def changes_markdown(changes: Changes, source: str) -> str:
    """What is new in the data: one line of counts, then examples."""
    counts = f"{changes.after:,} images (before: {changes.before:,}): " + ", ".join(
        f"{count:,} {what}"
        for count, what in (
            (changes.added, "added"),
            (changes.removed, "removed"),
            (changes.relabelled, "relabelled"),
        )
    )
    return "\n".join([f"## Data in {source}", counts, "", *(f"- {example}" for example in changes.examples)])


def _by_content(manifest: pd.DataFrame) -> pd.DataFrame:
    named = manifest[manifest["sha256"] != ""].sort_values("path")
    return named.drop_duplicates("sha256").set_index("sha256")[["path", "label"]]
