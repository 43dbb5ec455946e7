"""Test examples of which two models say something different, with their pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .. import modality
from ..model.card import Card
from ..scoring.metrics import Scored

_MOST_PICTURES = 24


@dataclass(frozen=True)
class Disagreement:
    """One example, and what each model says of it."""

    path: str
    label: str
    champion: str
    candidate: str
    picture: str  # a data: URI, or words


@dataclass(frozen=True)
class Disagreements:
    """Those that only the champion gets right, and those that only the candidate does."""

    lost: tuple[Disagreement, ...]
    won: tuple[Disagreement, ...]


def disagreements(test: pd.DataFrame, new: Scored, old: Scored, classes: Sequence[str], card: Card) -> Disagreements:
    """The test examples that only one of the two models gets right, the most confident mistakes first.

    Args:
        test: path, sha256 and label of the test examples.
        new: the candidate's predictions of them, `old` the champion's.
        classes: the names of the indices in both.
        card: the candidate's card: how it sees examples.
    """
    right, was_right = new.predicted == new.labels, old.predicted == old.labels

    def shown(rows: np.ndarray, wrong: Scored) -> tuple[Disagreement, ...]:
        indices = np.flatnonzero(rows)
        worst = indices[np.argsort(-wrong.confidence[indices], kind="stable")][:_MOST_PICTURES]
        paths, labels = test["path"].iloc[worst], test["label"].iloc[worst]
        champion, candidate = ([classes[side.predicted[row]] for row in worst] for side in (old, new))
        rows_shown = zip(paths, labels, champion, candidate, _pictures(list(paths), card), strict=True)
        return tuple(Disagreement(*row) for row in rows_shown)

    return Disagreements(lost=shown(was_right & ~right, new), won=shown(right & ~was_right, old))


def _pictures(paths: Sequence[str], card: Card) -> list[str]:
    examples = modality.examples(card.modality)
    preprocessing = modality.preprocessing(card.modality).read_preprocessing(card.preprocessing, "the candidate's card")
    return [examples.picture(examples.prepare(Path(name).read_bytes(), preprocessing), preprocessing) for name in paths]
