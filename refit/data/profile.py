"""What a version was trained on, in short: stored with it, so that a later set can be compared (`shift.py`).

    features = read_features(Path("data/features.safetensors"))
    profile = profile_of(train, columns, features)      goes with the version as profile.json

No example is in it: counts, and for some examples a row of 256 numbers or fewer that the base checkpoint made of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from ..errors import WorkspaceError
from ..files import publishing

FORMAT: Literal[1] = 1
MOST_ROWS = 500
_BINS = 10


@dataclass(frozen=True)
class Features:
    """Training examples as the base checkpoint sees them (`refit/training/embedding.py`)."""

    source: str  # the digest of what made them: rows of another source cannot be compared
    sha256s: tuple[str, ...]  # of the examples' files
    rows: np.ndarray  # (n, up to 256) float16

    def of(self, sha256s: Sequence[str], most: int = MOST_ROWS) -> np.ndarray:
        """(k, …) float16: of these examples, and at most so many: those whose digests are the smallest."""
        wanted = set(sha256s)
        places = {sha256: place for place, sha256 in enumerate(self.sha256s) if sha256 in wanted}
        return self.rows[[places[sha256] for sha256 in sorted(places)[:most]]]


@dataclass(frozen=True)
class Counts:
    """How many examples have which value. Of words the values are `names`, of numbers they lie between `edges`."""

    counts: tuple[int, ...]
    names: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()  # rising; counts[0] is of what is below the first, counts[-1] of the last and above


@dataclass(frozen=True)
class Profile:
    """The training examples of a version."""

    format: Literal[1]
    num_examples: int
    columns: dict[str, Counts]
    source: str  # of the rows; empty: there are none
    width: int
    rows: bytes  # (k, width) float16, of at most MOST_ROWS examples

    @property
    def features(self) -> np.ndarray:
        """(k, width) float16."""
        return np.frombuffer(self.rows, dtype="<f2").reshape(-1, max(self.width, 1))


def profile_of(train: pd.DataFrame, columns: Sequence[str], features: Features) -> Profile:
    """The profile of training examples.

    Args:
        columns: those of `train` that are counted; words as they are, numbers in ten bins of equal size.
    """
    rows = features.of(train["sha256"].tolist())
    return Profile(
        format=FORMAT,
        num_examples=len(train),
        columns={name: _counts(train[name]) for name in columns},
        source=features.source if len(rows) else "",
        width=rows.shape[1],
        rows=rows.astype("<f2").tobytes(),
    )


def counted_as(values: pd.Series, like: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the profile, and of other values in the same bins: (k,) int64 both; words that it lacks come last."""
    before = np.array(like.counts, dtype=np.int64)
    if like.edges:
        return before, _in_bins(values, like.edges)
    found = values.astype("str").value_counts()
    more = sorted(set(found.index) - set(like.names))
    after = found.reindex([*like.names, *more], fill_value=0).to_numpy(dtype=np.int64)
    return np.concatenate([before, np.zeros(len(more), dtype=np.int64)]), after


def _counts(values: pd.Series) -> Counts:
    if pd.api.types.is_numeric_dtype(values):
        found = np.unique(np.quantile(values.to_numpy(dtype=np.float64), np.linspace(0, 1, _BINS + 1)))
        edges = (*found.tolist(), float(np.nextafter(found[-1], np.inf)))
        return Counts(tuple(_in_bins(values, edges).tolist()), edges=edges)
    by_name = values.astype("str").value_counts().sort_index()
    return Counts(tuple(int(count) for count in by_name), names=tuple(str(name) for name in by_name.index))


def _in_bins(values: pd.Series, edges: Sequence[float]) -> np.ndarray:
    places = np.searchsorted(np.array(edges), values.to_numpy(dtype=np.float64), side="right")
    return np.bincount(places, minlength=len(edges) + 1)


def publish_features(target: Path, features: Features) -> None:
    """Write them as safetensors: `rows`, `sha256s` (n, 32) uint8, and the source among the metadata."""
    from safetensors.numpy import save_file

    names = np.frombuffer(b"".join(map(bytes.fromhex, features.sha256s)), dtype=np.uint8).reshape(-1, 32)
    with publishing(target) as partial:
        save_file({"rows": features.rows, "sha256s": names}, partial, {"source": features.source})


def read_features(file: Path) -> Features:
    """What `publish_features` wrote.

    Raises:
        WorkspaceError: it is missing, or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as stored:
            names = tuple(row.tobytes().hex() for row in stored.get_tensor("sha256s"))
            return Features((stored.metadata() or {})["source"], names, stored.get_tensor("rows"))
    except (OSError, SafetensorError, KeyError) as error:
        raise WorkspaceError(f"{file} cannot be read ({error}); run `dvc repro -f suspects`") from None
