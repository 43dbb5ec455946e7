"""Labels that look wrong, for a person to look at; nothing is removed or changed by itself.

    found = suspects(given, probabilities)                        row, suggested, score
    answers = read_answers(Path("data/label_answers.csv"))

Confident learning (Northcutt, Jiang and Chuang 2021), by cleanlab: an example is suspected where a model that has not
learnt its label gives another class at least the probability that it usually gives to that class's own examples.

What a person found out is a row of data/label_answers.csv: the label that is right, whether it was given or suggested
or neither.

    sha256,label,reason,who
    9f86d0…,boot,the heel is visible,Ada

An example that has an answer is no suspect any more. Where the data says another label than its answer, that is told
until whoever keeps the labels has changed one of the two.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from .exceptions import DIGEST, GIVEN, read_reviewed


def suspects(given: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Which labels look wrong, the most doubtful first.

    Args:
        given: (n,) int64.
        probabilities: (n, num_classes), of a model that has not learnt these labels.

    Returns:
        row: int64, of `given`; suggested: int64, the class that is likelier; score: the probability of the given label.
    """
    from cleanlab.filter import find_label_issues  # here: two seconds, which other users of this room need not wait

    rows = np.empty(0, dtype=np.int64)
    if len(given):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a class with one example nothing can be said
            rows = find_label_issues(
                given, probabilities, return_indices_ranked_by="self_confidence", filter_by="prune_by_class", n_jobs=1
            )
    rows = rows[np.lexsort((rows, probabilities[rows, given[rows]]))]  # ties in the order of the data
    return pd.DataFrame(
        {"row": rows, "suggested": probabilities[rows].argmax(axis=1), "score": probabilities[rows, given[rows]]}
    )


def read_answers(file: Path) -> pd.DataFrame:
    """sha256, label, reason, who; empty where there is no file.

    Raises:
        DataError: it cannot be read, or a row lacks something; which, and what.
    """
    return read_reviewed(file, {"sha256": DIGEST, "label": GIVEN, "reason": GIVEN, "who": GIVEN}, ["sha256"])
