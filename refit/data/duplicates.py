"""Which examples of a set show the same, and which of them leak from one split into another.

    pairs = near_duplicates(signatures, modality.duplicates("image"))      (k, 2), every pair
    leaking = leaks(usable, pairs)                                         reason and twin, by row

What is compared is the modality's: 64-bit hashes of an example and of views of it, and a second look at what is alike.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ..modality.contract import Duplicates
from .hamming import Index

VIEWS_UP_TO = 100_000
"""Examples. In a larger set only whole ones are compared (as they are, and mirrored): the cost of the views grows
with the square of the set."""

_MOST_PER_EXAMPLE = 16  # candidates for the second look, the nearest ones: a set of blank pages has all pairs
_MOST_HELD = 1 << 22  # candidates; beside those that are kept
_SIDES = ("test", "val", "train")  # what is in an earlier one must not be in a later one


def near_duplicates(signatures: np.ndarray, kind: Duplicates) -> np.ndarray:
    """(k, 2) int64, sorted: pairs of examples that show the same, the smaller number first.

    Args:
        signatures: (n, …) uint8.
        kind: how examples of this modality are compared.
    """
    candidates = _nearest(_candidates(kind.hashes_of(signatures), kind.RADII))
    pairs = candidates[kind.same(signatures, candidates)][:, :2]
    return np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int64)


def _candidates(hashes: np.ndarray, radii: tuple[int, ...]) -> Iterator[np.ndarray]:
    """(k, 4) int32 each: an example, another, the view of the first that is like the second, distance."""
    whole = np.ascontiguousarray(hashes[:, 0])
    index = Index(whole)
    for view, radius in enumerate(radii):
        if len(hashes) > VIEWS_UP_TO and radius < max(radii):
            continue
        of_all = np.ascontiguousarray(hashes[:, view])
        for numbers, positions in index.within(of_all, radius):
            yield _listed(of_all, whole, numbers, positions, view)


def _listed(of_view: np.ndarray, whole: np.ndarray, left: np.ndarray, right: np.ndarray, view: int) -> np.ndarray:
    left, right = left[left != right], right[left != right]
    distance = np.bitwise_count(of_view[left] ^ whole[right])
    return np.column_stack([left, right, np.full(len(left), view), distance]).astype(np.int32)


def _nearest(pieces: Iterator[np.ndarray]) -> np.ndarray:
    """Of each pair the nearest find, and of each example the nearest pairs; reduced on the way, to hold few at once."""
    held, count = [np.empty((0, 4), dtype=np.int32)], 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count > _MOST_HELD:
            held, count = [_reduced(np.concatenate(held))], 0
    return _reduced(np.concatenate(held))


def _reduced(candidates: np.ndarray) -> np.ndarray:
    low, high = np.sort(candidates[:, :2], axis=1).T
    order = np.lexsort((candidates[:, 0], candidates[:, 2], candidates[:, 3], high, low))
    candidates, low, high = candidates[order], low[order], high[order]
    candidates = candidates[np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])][: len(low)]]
    kept = np.zeros(len(candidates), dtype=bool)
    for side in (0, 1):
        order = np.lexsort((candidates[:, 1 - side], candidates[:, 3], candidates[:, side]))
        owners = candidates[order, side]
        rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
        kept[order[rank < _MOST_PER_EXAMPLE]] = True
    return candidates[kept]


def leaks(usable: pd.DataFrame, pairs: np.ndarray) -> pd.DataFrame:
    """What must leave a split that is learned from, since a split that judges has it.

    Train gives way to val and test; val, on which a model is chosen, gives way to test. A test example never leaves.

    Args:
        usable: path, split, content_sha256 and group ("": none) of the examples, by row.
        pairs: (k, 2) positions in `usable` of examples that show the same.

    Returns:
        row, reason, twin (its path): one for each example that leaks.
    """
    table = usable.reset_index(names="row")
    table["side"] = table["split"].map(_SIDES.index)
    kinds = [
        _sharing(table, table["content_sha256"], "the same picture as"),
        _paired(table, pairs, "a near-duplicate of"),
        _sharing(table, table["group"], "in one group with"),
    ]
    found = pd.concat(kinds).drop_duplicates("row").sort_values("row")
    return found[["row", "reason", "twin"]].reset_index(drop=True)


def _sharing(table: pd.DataFrame, key: pd.Series, words: str) -> pd.DataFrame:
    """Those whose key an example of an earlier side has."""
    first = table[key != ""].assign(key=key).sort_values(["side", "path"]).drop_duplicates("key").set_index("key")
    twins = first.reindex(key)
    return _described(table.reset_index(drop=True), twins.reset_index(drop=True), words)


def _paired(table: pd.DataFrame, pairs: np.ndarray, words: str) -> pd.DataFrame:
    both = np.concatenate([pairs, pairs[:, ::-1]])
    of, twins = table.iloc[both[:, 0]].reset_index(drop=True), table.iloc[both[:, 1]].reset_index(drop=True)
    order = twins.sort_values(["side", "path"]).index
    return _described(of.loc[order].reset_index(drop=True), twins.loc[order].reset_index(drop=True), words)


def _described(of: pd.DataFrame, twins: pd.DataFrame, words: str) -> pd.DataFrame:
    is_leak = of["side"] > twins["side"]
    found = of[is_leak].assign(twin=twins["path"][is_leak])
    reason = "leak: " + words + " " + twins["split"][is_leak] + " image " + found["twin"]
    return found.assign(reason=reason)
