"""The names of a data set and of its split: digests of contents, labels and sides, whatever the paths and the order."""

import pandas as pd

from ..files import sha256_of_json


def data_digest(accepted: pd.DataFrame) -> str:
    """Of columns sha256 and label."""
    return _digest(accepted, ["sha256", "label"])


def split_digest(accepted: pd.DataFrame) -> str:
    """Of columns sha256, label and split."""
    return _digest(accepted, ["sha256", "label", "split"])


def _digest(rows: pd.DataFrame, columns: list[str]) -> str:
    return sha256_of_json(sorted(rows[columns].itertuples(index=False, name=None)))
