"""Whether the training examples that are new look like those that the champion was trained on.

    shift = shift_since(profile, known, train, features, seed)

Two questions are asked, and each is answered by a size and a p-value; neither alone is a reason to worry.

    psi     of each column (classes, brightness, words, …): the population stability index, sum((q - p) ln(q / p)) over
            bins, of the new examples against the champion's, and of all against the champion's
    auc     of the new examples' features against the champion's: the classifier two-sample test (Lopez-Paz and Oquab
            2017). Ridge regression tells which of the two sets an example is from, asked about examples that were left
            out when it was fitted; the size is the area under its ROC curve: 0.5 cannot tell, 1 always can

p-values are those of permutations: how often sets drawn at random from both together differ as much. They are corrected
for the number of questions (Bonferroni), so that chance alone seldom gives any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from .profile import Features, Profile, counted_as

FEATURES = "features"
FEWEST = 20
"""Examples on either side. With fewer nothing is asked."""
_PERMUTATIONS = 2999
_FOLDS = 5
_PENALTY = 0.1
"""Of ridge regression on standardised columns, times the number of examples."""


@dataclass(frozen=True)
class Question:
    """One question and its answer."""

    name: str  # of the column; or FEATURES
    of: Literal["new", "all"]  # which training examples were compared with the champion's
    measure: Literal["psi", "auc"]
    size: float
    p_value: float  # corrected


@dataclass(frozen=True)
class Shift:
    """All that is known of it."""

    num_before: int  # training examples of the champion
    num_new: int  # training examples that it has not seen
    questions: tuple[Question, ...]
    remarks: tuple[str, ...]  # what could not be asked, and why


def shift_since(profile: Profile, known: Sequence[str], train: pd.DataFrame, features: Features, seed: int) -> Shift:
    """The shift from the champion's training examples to these.

    Args:
        profile: of the champion.
        known: SHA-256 of all of its examples, of whatever split.
        train: the training examples now: sha256 and the profile's columns.
        features: of these, or of a part of them.
        seed: of the permutations.
    """
    new = train[~train["sha256"].isin(set(known))]
    draws = np.random.default_rng(seed)
    questions: list[Question] = []
    remarks: list[str] = []
    sides: list[tuple[Literal["new", "all"], pd.DataFrame]] = [("all", train)]
    if len(new) >= FEWEST:
        sides.insert(0, ("new", new))
    else:
        remarks.append(f"{len(new):,} training examples are new: too few to say whether they look different.")
    for of, rows in sides:
        for name, counts in profile.columns.items():
            if name in rows.columns:
                before, after = counted_as(rows[name], counts)
                questions.append(Question(name, of, "psi", *_psi_test(before, after, draws)))
    if len(new) >= FEWEST:
        before, after = profile.features, features.of(new["sha256"].tolist())
        if refusal := _incomparable(profile, features, before, after):
            remarks.append(refusal)
        else:
            questions.append(Question(FEATURES, "new", "auc", *two_sample_test(before, after, draws)))
    corrected = [_corrected(question, len(questions)) for question in questions]
    return Shift(profile.num_examples, len(new), tuple(corrected), tuple(remarks))


def _corrected(question: Question, count: int) -> Question:
    p_value = min(1.0, question.p_value * count)
    return Question(question.name, question.of, question.measure, question.size, p_value)


def _incomparable(profile: Profile, features: Features, before: np.ndarray, after: np.ndarray) -> str | None:
    if not profile.source or not len(features.rows):
        return "There are no features to compare: the network cannot be cut before its output layer."
    if profile.source != features.source:
        return "The champion was trained from another base checkpoint or network, so features cannot be compared."
    if min(len(before), len(after)) < FEWEST:
        return f"Features are known of {len(after):,} new training examples: too few to compare."
    return None


def psi(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Population stability index of counts in the same bins, (…, bins) both: 0 for equal shares.

    Half an example is added to each bin, so that an empty one does not make it infinite.
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum(axis=-1, keepdims=True) for counts in (before, after))
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=-1))


def _psi_test(before: np.ndarray, after: np.ndarray, draws: np.random.Generator) -> tuple[float, float]:
    """(psi, p-value)."""
    found = float(psi(before, after))
    both = before + after
    chance = draws.multivariate_hypergeometric(both, int(after.sum()), _PERMUTATIONS, method="marginals")
    return found, _p_value(psi(both - chance, chance), found)


def two_sample_test(before: np.ndarray, after: np.ndarray, draws: np.random.Generator) -> tuple[float, float]:
    """(auc, p-value) of features, (n, d) and (m, d).

    Predictions of ridge regression are linear in what they are fitted to. So the matrix that makes them is computed
    once, for folds that know nothing of the two sets, and all permutations go through it together.
    """
    features = np.concatenate([before, after]).astype(np.float64)
    is_after = np.r_[np.zeros(len(before)), np.ones(len(after))]
    predict = _left_out_predictions(features, draws.permutation(len(features)) % _FOLDS)
    found = float(_auc(predict @ is_after[:, None], is_after[:, None])[0])
    shuffled = draws.permuted(np.tile(is_after, (_PERMUTATIONS, 1)), axis=1).T  # (n + m, permutations)
    return found, _p_value(_auc(predict @ shuffled, shuffled), found)


def _left_out_predictions(features: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(n, n): what is fitted to -> what is predicted of each row by a fit without the rows of its fold."""
    deviation = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    result = np.zeros((len(features), len(features)))
    for fold in range(_FOLDS):
        fitted, asked = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        centre = scaled[fitted].mean(axis=0)
        rows, others = scaled[fitted] - centre, scaled[asked] - centre
        normal = rows.T @ rows + _PENALTY * len(rows) * np.eye(rows.shape[1])
        result[np.ix_(asked, fitted)] = others @ np.linalg.solve(normal, rows.T)
    return result


def _auc(predicted: np.ndarray, is_after: np.ndarray) -> np.ndarray:
    """(k,) areas under the ROC curve, of (n, k) predictions of (n, k) zeros and ones."""
    from scipy.stats import rankdata  # here: half a second, which a run without a comparison need not wait

    count = is_after.sum(axis=0)
    ranks = (rankdata(predicted, axis=0) * is_after).sum(axis=0)
    return np.asarray((ranks - count * (count + 1) / 2) / (count * (len(predicted) - count)))


def _p_value(by_chance: np.ndarray, found: float) -> float:
    """Phipson and Smyth (2010): what was found is one of the draws, so none is impossible."""
    return float((1 + (by_chance >= found - 1e-12).sum()) / (1 + len(by_chance)))
