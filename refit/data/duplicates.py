"""Which examples of a set show the same, and which of them leak from one split into another.

    pairs = near_duplicates(signatures, modality.duplicates("image"))      (k, 2), every pair
    leaking = leaks(usable, pairs)                                         reason and twin, by row
    number = groups(pairs, len(usable))                                    which are alike

What is compared is the modality's: 64-bit hashes of an example and of views of it, and a second look at what is alike.
What was found and seen is remembered by content (`memory.py`): a set that grows is searched for what is new.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse

from ..modality.contract import Duplicates
from .memory import Look, Memory, names_of, recall, remember
from .neighbours import MOST_PER_EXAMPLE, Remembered, search, whole_views

VIEWS_UP_TO = 100_000
"""Examples. In a larger set only whole ones are compared (as they are, and mirrored): the cost of the views grows
with the square of the set."""

LOOK_ALIKES = 3
"""What seems to show the same as so many others is of a set whose examples look alike (parts of one make, forms): a
closer look then decides. Photos have none, and are not looked at a third time."""

STORE = Path(".refit/duplicates")
_PIECE = 4_096  # examples whose signatures are copied at once: those of a million have gigabytes
_WORTH_KEEPING = 2_000  # examples: fewer are searched for in seconds

SIDES = ("test", "val", "train")
"""What is in an earlier one must not be in a later one."""


def near_duplicates(
    signatures: np.ndarray, kind: Duplicates, sides: np.ndarray | None = None, store: Path | None = None
) -> np.ndarray:
    """(k, 2) int64, sorted: pairs of examples that show the same, the smaller number first.

    Of many copies of one example that have one hash, the first stands for all: each of them is in a pair with it, and
    with what is like it. So k grows with the set, whatever is in it.

    Args:
        signatures: (n, …) uint8.
        kind: how examples of this modality are compared.
        sides: (n,) int, up to 255: of copies, one of the smallest side stands for the others, and of what is equally
            near, it counts first. None: all are on one.
        store: a folder for what is remembered, which changes no result.
    """
    names, places, of_name = np.unique(names_of(signatures, sides), return_index=True, return_inverse=True)
    views = whole_views(kind)
    if len(names) <= VIEWS_UP_TO:
        views += [view for view in range(len(kind.RADII)) if view not in views]
    before = recall(store, kind, views)
    pairs, first, memory = _searched(names, signatures, places, kind, views, before)
    if store is not None and len(names) >= _WORTH_KEEPING and not np.array_equal(names, before.names):
        remember(store, kind, views, memory)
    pairs, first = places[pairs], places[first[of_name]]
    copies = np.flatnonzero(first != np.arange(len(first)))
    pairs = np.concatenate([pairs, np.column_stack([copies, first[copies]]), *_of_copies(pairs, copies, first)])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _searched(
    names: np.ndarray, signatures: np.ndarray, places: np.ndarray, kind: Duplicates, views: list[int], before: Memory
) -> tuple[np.ndarray, np.ndarray, Memory]:
    """Pairs of names, the one that stands for each, and what is to be remembered.

    Args:
        places: (n,) where the signature of each name is.
    """
    now = np.searchsorted(names, before.names)
    now[now == len(names)] = 0
    now = np.where(names[now] == before.names, now, -1) if len(names) else now - 1
    hashes, is_new = np.empty((len(names), len(views)), dtype=np.uint64), np.ones(len(names), dtype=bool)
    hashes[now[now >= 0]], is_new[now[now >= 0]] = before.hashes[now >= 0], False
    new = np.flatnonzero(is_new)
    for start in range(0, len(new), _PIECE):
        piece = new[start : start + _PIECE]
        hashes[piece] = kind.hashes_of(signatures[places[piece]], views)

    def look(see: Callable[..., np.ndarray], seen: np.ndarray) -> Look:
        def at_signatures(rows: np.ndarray) -> np.ndarray:
            return see(signatures, np.column_stack([places[rows[:, :2]], rows[:, 2]]))

        return Look(at_signatures, seen, now, len(names))

    same, closer = look(kind.same, before.same), look(kind.closer, before.closer)
    first, is_searched = _copies(hashes[:, 0], same, closer)
    known = Remembered(now, before.was_searched, before.hashes, before.num_like, before.candidates)
    candidates, num_like = search(is_searched, hashes, views, kind, known)
    pairs = _believed(candidates, len(names), same, closer)
    return pairs, first, Memory(names, hashes, is_searched, num_like, candidates, same.said(), closer.said())


def _believed(candidates: np.ndarray, count: int, same: Look, closer: Look) -> np.ndarray:
    """(k, 2) int64: what is the same at the second look and, where many are alike, at a closer one."""
    believed = candidates[same(candidates)]
    num_alike = np.bincount(believed[:, :2].ravel(), minlength=count)
    in_doubt = num_alike[believed[:, :2]].max(axis=1, initial=0) >= LOOK_ALIKES
    stays = ~in_doubt
    stays[in_doubt] = closer(believed[in_doubt])
    return believed[stays, :2].astype(np.int64)


def _copies(hashes: np.ndarray, same: Look, closer: Look) -> tuple[np.ndarray, np.ndarray]:
    """Among equal hashes: (n,) int64, the first example that each shows the same as, or itself; and (n,) bool, those
    that are to be compared with others. A hash that many different examples have says nothing: the first will do."""
    first, is_searched = np.arange(len(hashes)), np.zeros(len(hashes), dtype=bool)
    left = first.copy()
    for _ in range(MOST_PER_EXAMPLE):
        _, firsts, of_hash = np.unique(hashes[left], return_index=True, return_inverse=True)
        leader = left[firsts][of_hash]
        is_searched[left[firsts]] = True
        others = np.flatnonzero(left != leader)
        rows = np.column_stack([left[others], leader[others], np.zeros_like(others)])
        believed = same(rows)
        believed[believed] = closer(rows[believed])
        first[left[others[believed]]] = leader[others[believed]]
        left = left[others[~believed]]
    return first, is_searched


def _of_copies(pairs: np.ndarray, copies: np.ndarray, first: np.ndarray) -> Iterator[np.ndarray]:
    """What is like the example that stands for a copy is like the copy."""
    order = copies[np.argsort(first[copies], kind="stable")]
    for side in (0, 1):
        begin, end = (np.searchsorted(first[order], pairs[:, side], side=where) for where in ("left", "right"))
        counts = end - begin
        places = np.repeat(begin - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        yield np.column_stack([order[places], np.repeat(pairs[:, 1 - side], counts)])


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
