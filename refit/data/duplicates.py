"""Which examples of a set show the same, and which of them leak from one split into another.

    pairs = near_duplicates(signatures, modality.duplicates("image"))      (k, 2), every pair
    leaking = leaks(usable, pairs)                                         reason and twin, by row
    number = groups(pairs, len(usable))                                    which are alike

What is compared is the modality's: 64-bit hashes of an example and of views of it, and a second look at what is alike.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.sparse

from ..modality.contract import Duplicates
from .hamming import Index

VIEWS_UP_TO = 100_000
"""Examples. In a larger set only whole ones are compared (as they are, and mirrored): the cost of the views grows
with the square of the set."""

_MOST_PER_EXAMPLE = 16  # candidates for the second look, the nearest ones: a set of blank pages has all pairs
_ENOUGH = 256  # whole examples that are like one: its views would only find more of them
_MOST_HELD = 1 << 22  # candidates; beside those that are kept
SIDES = ("test", "val", "train")
"""What is in an earlier one must not be in a later one."""


def near_duplicates(signatures: np.ndarray, kind: Duplicates) -> np.ndarray:
    """(k, 2) int64, sorted: pairs of examples that show the same, the smaller number first.

    Of many copies of one example that have one hash, the first stands for all: each of them is in a pair with it, and
    with what is like it. So k grows with the set, whatever is in it.

    Args:
        signatures: (n, …) uint8; of copies, those that matter most come first.
        kind: how examples of this modality are compared.
    """
    first, searched = _copies(signatures, kind)
    candidates = _nearest(_candidates(signatures[searched], kind), len(searched))
    candidates[:, :2] = searched[candidates[:, :2]]
    pairs = candidates[kind.same(signatures, candidates)][:, :2].astype(np.int64)
    copies = np.flatnonzero(first != np.arange(len(first)))
    pairs = np.concatenate([pairs, np.column_stack([copies, first[copies]]), *_of_copies(pairs, copies, first)])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _copies(signatures: np.ndarray, kind: Duplicates) -> tuple[np.ndarray, np.ndarray]:
    """Among equal hashes: (n,) int64, the first example that each shows the same as, or itself; and those that others
    are to be compared with, in order. A hash that many different examples have says nothing: the first ones will do."""
    first = np.arange(len(signatures))
    hashes = kind.hashes_of(signatures, (0,))[:, 0]
    left, searched = first, []
    for _ in range(_MOST_PER_EXAMPLE):
        _, firsts, of_hash = np.unique(hashes[left], return_index=True, return_inverse=True)
        leader = left[firsts][of_hash]
        searched.append(left[firsts])
        others = np.flatnonzero(left != leader)
        rows = np.column_stack([left[others], leader[others], np.zeros_like(others)])
        believed = kind.same(signatures, rows)
        first[left[others[believed]]] = leader[others[believed]]
        left = left[others[~believed]]
    return first, np.sort(np.concatenate(searched))


def _of_copies(pairs: np.ndarray, copies: np.ndarray, first: np.ndarray) -> Iterator[np.ndarray]:
    """What is like the example that stands for a copy is like the copy."""
    order = copies[np.argsort(first[copies], kind="stable")]
    for side in (0, 1):
        begin, end = (np.searchsorted(first[order], pairs[:, side], side=where) for where in ("left", "right"))
        counts = end - begin
        places = np.repeat(begin - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        yield np.column_stack([order[places], np.repeat(pairs[:, 1 - side], counts)])


def _candidates(signatures: np.ndarray, kind: Duplicates) -> Iterator[np.ndarray]:
    """(k, 4) int32 each: an example, another, the view of the first that is like the second, distance."""
    whole_ones = [view for view, radius in enumerate(kind.RADII) if radius == max(kind.RADII)]
    windows = [view for view in range(len(kind.RADII)) if view not in whole_ones]
    whole = kind.hashes_of(signatures, (0,))[:, 0]
    index, everyone = Index(whole), np.arange(len(whole))
    num_like = np.zeros(len(whole), dtype=np.int64)
    for view in whole_ones:
        of_view = np.ascontiguousarray(kind.hashes_of(signatures, (view,))[:, 0])
        if kind.IS_BY_VIEW:
            whole, index = of_view, Index(of_view)
        for piece in _found(index, whole, of_view, everyone, view, kind.RADII[view]):
            np.add.at(num_like, piece[:, 0], 1)
            yield piece
    if len(whole) <= VIEWS_UP_TO:
        some = np.flatnonzero(num_like < _ENOUGH)
        of_views = kind.hashes_of(signatures[some], windows)
        for column, view in enumerate(windows):
            yield from _found(index, whole, of_views[:, column], some, view, kind.RADII[view])


def _found(
    index: Index, whole: np.ndarray, of_view: np.ndarray, whose: np.ndarray, view: int, radius: int
) -> Iterator[np.ndarray]:
    of_view = np.ascontiguousarray(of_view)
    for numbers, right in index.within(of_view, radius):
        left = whose[numbers]
        distance = np.bitwise_count(of_view[numbers] ^ whole[right])
        yield np.column_stack([left, right, np.full(len(left), view), distance]).astype(np.int32)[left != right]


def _nearest(pieces: Iterator[np.ndarray], num_examples: int) -> np.ndarray:
    """Of each pair the nearest find, and of each example the nearest pairs; reduced on the way, to hold few at once."""
    held, count = [np.empty((0, 4), dtype=np.int32)], 0
    limits = np.full(num_examples, 65, dtype=np.int32)  # the distance of the last that each keeps: none as far counts
    for piece in pieces:
        is_near = (piece[:, 3] < limits[piece[:, 0]]) | (piece[:, 3] < limits[piece[:, 1]])
        held.append(piece[is_near])
        count += len(held[-1])
        if count > _MOST_HELD:
            held, count = [_reduced(np.concatenate(held), limits)], 0
    return _reduced(np.concatenate(held), limits)


def _reduced(candidates: np.ndarray, limits: np.ndarray) -> np.ndarray:
    low, high = np.sort(candidates[:, :2], axis=1).T
    order = np.lexsort((candidates[:, 0], candidates[:, 2], candidates[:, 3], high, low))
    candidates, low, high = candidates[order], low[order], high[order]
    candidates = candidates[np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])][: len(low)]]
    kept = np.zeros(len(candidates), dtype=bool)
    both = np.concatenate([candidates[:, [0, 1, 3]], candidates[:, [1, 0, 3]]])  # (2 k, 3): one, another, distance
    order = np.lexsort((both[:, 1], both[:, 2], both[:, 0]))
    owners = both[order, 0]
    rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
    last = order[rank == _MOST_PER_EXAMPLE - 1]
    limits[both[last, 0]] = both[last, 2]
    kept[order[rank < _MOST_PER_EXAMPLE] % max(len(candidates), 1)] = True
    return candidates[kept]


def groups(pairs: np.ndarray, num_examples: int) -> np.ndarray:
    """(n,) int64: the number of the group of each example, those in one pair being in one group; -1: in no pair."""
    ones = np.ones(len(pairs), dtype=bool)
    graph = scipy.sparse.coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(num_examples, num_examples))
    _, number = scipy.sparse.csgraph.connected_components(graph, directed=False)
    return np.where(np.bincount(number)[number] > 1, number, -1)


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
    table["side"] = table["split"].map(SIDES.index)
    kinds = [
        _sharing(table, table["content_sha256"], "the same as"),
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
    reason = "leak: " + words + " " + twins["split"][is_leak] + " example " + found["twin"]
    return found.assign(reason=reason)
