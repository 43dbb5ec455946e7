"""Test images of which two models say something different, with their pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import modality
from ..model.card import Card
from ..scoring.metrics import Scored

_MOST_PICTURES = 24


def disagreements(
    test: pd.DataFrame, new: Scored, old: Scored, classes: list[str], card: Card
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


def _pictures(rows: pd.DataFrame, card: Card) -> list[str]:
    examples = modality.examples(card.modality)
    preprocessing = examples.read_preprocessing(card.preprocessing, "the candidate's card")
    prepared = [examples.prepare(Path(name).read_bytes(), preprocessing) for name in rows["path"]]
    return [examples.picture(example) for example in prepared]
