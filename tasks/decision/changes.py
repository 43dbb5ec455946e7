"""What is different between two models' makings: images added, removed, relabelled or moved, and settings."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks import modality
from tasks.metrics import Scored

_MOST_NAMED = 12
_MOST_PICTURES = 24


def data_changes(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Any]:
    """Changes between two sets of images (columns path, sha256, label, split), told apart by content.

    `tested_but_trained_on_before` counts present test images on which the former model was trained: they flatter
    it, never the new one.
    """
    old, new = (table.drop_duplicates("sha256").set_index("sha256") for table in (before, after))
    both = new.index.intersection(old.index)
    relabelled = both[(new.loc[both, "label"] != old.loc[both, "label"]).to_numpy()]
    moved = both[(new.loc[both, "split"] != old.loc[both, "split"]).to_numpy()]
    seen = both[((new.loc[both, "split"] == "test") & (old.loc[both, "split"] != "test")).to_numpy()]
    return {
        "added": _named(new.drop(both)),
        "removed": _named(old.drop(both)),
        "relabelled": {
            "count": len(relabelled),
            "examples": [
                f"{new.loc[key, 'path']}: {old.loc[key, 'label']} -> {new.loc[key, 'label']}"
                for key in relabelled[:_MOST_NAMED]
            ],
        },
        "moved_to_another_split": _named(new.loc[moved]),
        "tested_but_trained_on_before": _named(new.loc[seen]),
    }


def _named(rows: pd.DataFrame) -> dict[str, Any]:
    by_label = rows["label"].value_counts().sort_index()
    return {
        "count": len(rows),
        "by_label": {str(label): int(count) for label, count in by_label.items()},
        "examples": sorted(rows["path"])[:_MOST_NAMED],
    }


def params_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Dotted key -> [before, after], where they differ; a key that is not there counts as null."""
    old, new = flat(before), flat(after)
    return {
        key: [old.get(key), new.get(key)] for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


def disagreements(
    test: pd.DataFrame, new: Scored, old: Scored, classes: list[str], card: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Pictures of the test images that only one of the two models gets right: `lost` and `won`.

    Args:
        test: path, sha256 and label of the test images.
        new: the candidate's predictions of them, `old` the champion's.
        classes: the names of the indices in both.
        card: the candidate's card: how it sees pictures.
    """
    right, was_right = new.predicted == new.labels, old.predicted == old.labels
    shown = {}
    for name, rows in (("lost", was_right & ~right), ("won", right & ~was_right)):
        wrong = new if name == "lost" else old
        indices = np.flatnonzero(rows)
        worst = indices[np.argsort(-wrong.confidence[indices], kind="stable")][:_MOST_PICTURES]
        pictures = _pictures(test.iloc[worst], card)
        shown[name] = [
            {
                "path": test["path"].iloc[row],
                "label": test["label"].iloc[row],
                "champion": classes[old.predicted[row]],
                "candidate": classes[new.predicted[row]],
                "picture": picture,
            }
            for row, picture in zip(worst, pictures, strict=True)
        ]
    return shown


def _pictures(rows: pd.DataFrame, card: Mapping[str, Any]) -> list[str]:
    if rows.empty:
        return []
    networks = modality.networks(card["modality"])
    examples = [networks.prepare(Path(name).read_bytes(), card["preprocessing"]) for name in rows["path"]]
    return ["data:image/png;base64," + base64.b64encode(networks.as_png(example)).decode() for example in examples]
