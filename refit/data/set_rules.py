"""The rules that look at more than one row, each a function that gives the findings of the rules with its names.

    AMONG_USABLE["duplicate",](rows, params)         rows of the manifest that no earlier rule has rejected
    ON_OUTCOME["too_few_examples"](judged, params)     all rows with `reason` (null: accepted) and `rule`

They run in the order in which they stand here. A new one is a function here, a field of `Rules` in
`refit/params/sections.py`, and its policy in params.yaml.
"""

import unicodedata
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from .. import modality
from ..params import SPLITS, Params
from .classes import without_examples
from .duplicates import SIDES, STORE, groups, leaks, near_duplicates
from .labels import same_looking, similar
from .rules import all_of, found, of_set, rules_of

SetRule = Callable[[pd.DataFrame, Params], pd.DataFrame]


def _two_labels(rows: pd.DataFrame, _params: Params) -> pd.DataFrame:
    """Equal contents whose labels differ. The twin of each is the first one that differs from it."""
    rule, column = "two_labels", "label"
    clashes = rows[rows.groupby("content_sha256")[column].transform("nunique") > 1]
    if clashes.empty:
        return found(rule, clashes["path"])
    clashes = clashes.sort_values(["content_sha256", "path"])
    firsts = clashes.drop_duplicates(["content_sha256", column])
    order = firsts.groupby("content_sha256").cumcount()
    first, second = (firsts[order == place].set_index("content_sha256") for place in (0, 1))
    content = clashes["content_sha256"]
    is_like_first = clashes[column] == content.map(first[column])
    path, other = (
        content.map(second[name]).where(is_like_first, content.map(first[name])) for name in ("path", column)
    )
    return found(rule, "the same as " + path + " (" + other + ", this one " + clashes[column] + ")", path)


def _duplicate(rows: pd.DataFrame, _params: Params) -> pd.DataFrame:
    """All but the first of equal contents under the same label in the same split."""
    keys = ["content_sha256", "label", "split"]
    twins = rows.groupby(keys)["path"].transform("first")[rows.duplicated(keys)].astype("str")
    return found("duplicate", "duplicate: the same as " + twins, twins)


def _nearly_the_same(rows: pd.DataFrame, params: Params) -> pd.DataFrame:
    """What is learned from and, nearly the same, judged by; `duplicates.py` says which of the two leaves. Of what
    stays, groups that show nearly the same in one split, or under two labels."""
    pairs = _near_pairs(rows, params)
    leaking = leaks(rows, pairs).set_index("row")
    stays = ~rows.index.isin(leaking.index)
    alike = groups(pairs[stays[pairs].all(axis=1)], len(rows))
    together = rows[["path", "label"]].assign(group=alike)[alike >= 0].sort_values(["group", "path"])
    return all_of([found("leak", leaking["reason"], leaking["twin"]), *_of_groups(together)])


def _of_groups(together: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """What is said of path and label of examples that are nearly the same as others of their `group`."""
    if together.empty:
        return
    of_group = together.groupby("group")
    first, last, size = (of_group["path"].transform(what).astype("str") for what in ("first", "last", "size"))
    labels = together["group"].map(of_group["label"].agg(lambda some: ", ".join(sorted(set(some)))))
    is_clash, is_first = of_group["label"].transform("nunique") > 1, together["path"] == first
    twins = first.mask(is_first, last)
    clash = "nearly the same under several labels (" + labels + "; this one " + together["label"] + "): " + twins
    yield found("near_two_labels", clash[is_clash], twins[is_clash])
    copy = "one of " + size + " that are nearly the same, such as " + first
    is_copy = ~is_clash & ~is_first
    yield found("near_duplicate", copy[is_copy], first[is_copy])


def _near_pairs(rows: pd.DataFrame, params: Params) -> np.ndarray:
    """(k, 2) positions in `rows`."""
    told = np.flatnonzero(rows["signature"].map(len))
    if not len(told):
        return np.empty((0, 2), dtype=np.int64)
    signatures = np.frombuffer(b"".join(rows["signature"].iloc[told]), dtype=np.uint8).reshape(len(told), -1)
    sides = rows["split"].iloc[told].map(SIDES.index).to_numpy()  # those that judge stand for copies
    return told[near_duplicates(signatures, modality.duplicates(params.data.modality), sides, STORE)]


def _too_many_rejected(judged: pd.DataFrame, params: Params) -> pd.DataFrame:
    harmless = [rule.name for rule in rules_of(params).values() if rule.is_harmless]
    expected = judged[judged["rule"] != "retired"]
    bad = expected[expected["reason"].notna() & ~expected["rule"].isin(harmless)]
    allowed = params.validate.max_rejected_fraction
    if len(bad) <= allowed * len(expected):
        return of_set("too_many_rejected", [])
    first = bad.iloc[0]
    return of_set(
        "too_many_rejected",
        [
            f"{len(bad):,} of {len(expected):,} examples are rejected ({len(bad) / len(expected):.1%}, "
            f"`validate.max_rejected_fraction` allows {allowed:.1%}); first: {first['path']} ({first['reason']})"
        ],
    )


def _class_without_examples(judged: pd.DataFrame, params: Params) -> pd.DataFrame:
    return of_set("class_without_examples", without_examples(judged, params.validate))


def _too_few_examples(judged: pd.DataFrame, params: Params) -> pd.DataFrame:
    accepted = judged[judged["reason"].isna()]
    labels = sorted(set(accepted["label"]))
    if len(labels) < 2:
        found_labels = ", ".join(labels) or "none"
        return of_set("too_few_examples", [f"at least two classes are needed, found {len(labels)} ({found_labels})"])
    counts = accepted.groupby(["label", "split"]).size()
    problems = []
    for split in SPLITS:
        needed = getattr(params.validate.min_examples_per_class, split)
        short = {label: int(counts.get((label, split), 0)) for label in labels}
        short = {label: count for label, count in short.items() if count < needed}
        if short:
            shown = ", ".join(f"{label}: {count}" for label, count in list(short.items())[:8])
            problems.append(
                f"too few {split} examples in {len(short)} of {len(labels)} classes ({shown}; "
                f"`validate.min_examples_per_class.{split}` asks for {needed})"
            )
    if problems:
        problems[-1] += (
            "; add examples, set other shares in `data.test_fraction` and `data.val_fraction`, or give the splits "
            "yourself (train, val and test folders, or a column `split` in a table)"
        )
    return of_set("too_few_examples", problems)


def _colliding_names(rows: pd.DataFrame, _params: Params) -> pd.DataFrame:
    """All but the first of paths that are one on a system that ignores case, or composes letters."""
    folded = rows["path"].map(lambda path: unicodedata.normalize("NFC", path.casefold()))
    first = rows["path"].groupby(folded).transform("first")
    others = rows.index[(first != rows["path"]).to_numpy()]
    twins = first[others]
    return found("colliding_names", "differs in case or Unicode form only from " + twins, twins)


def _same_label(judged: pd.DataFrame, _params: Params) -> pd.DataFrame:
    counts = _examples_by_label(judged)
    return of_set(
        "same_label",
        [
            "labels that look the same are different classes: "
            + ", ".join(f"{label!a} ({counts[label]:,} examples)" for label in group)
            + "; rename them"
            for group in same_looking(counts)
        ],
    )


def _similar_labels(judged: pd.DataFrame, _params: Params) -> pd.DataFrame:
    counts = _examples_by_label(judged)
    return of_set(
        "similar_labels",
        [
            f"{more!r} ({counts[more]:,} examples) and {fewer!r} ({counts[fewer]:,}) may be one: they differ in {why}"
            for more, fewer, why in similar(counts)
        ],
    )


def _examples_by_label(judged: pd.DataFrame) -> dict[str, int]:
    labelled = judged[(judged["rule"] != "retired") & (judged["label"] != "")]
    return {str(label): int(count) for label, count in labelled["label"].value_counts().items()}


def _imbalance(judged: pd.DataFrame, params: Params) -> pd.DataFrame:
    learned = judged.loc[judged["reason"].isna() & (judged["split"] == "train"), "label"].value_counts()
    most, limit = learned.head(1), params.validate.max_imbalance
    rare = learned[learned * limit < learned.max()]
    if rare.empty:
        return of_set("imbalance", [])
    shown = ", ".join(f"{label}: {count:,}" for label, count in rare.iloc[::-1].head(8).items())
    return of_set(
        "imbalance",
        [
            f"{len(rare)} of {len(learned)} classes have less than 1/{limit:g} of the train examples of "
            f"{most.index[0]} ({most.iloc[0]:,}): {shown}; add examples, or see `finetune.class_balance`"
        ],
    )


AMONG_USABLE: dict[tuple[str, ...], SetRule] = {
    ("colliding_names",): _colliding_names,
    ("two_labels",): _two_labels,
    ("duplicate",): _duplicate,
    ("leak", "near_two_labels", "near_duplicate"): _nearly_the_same,
}

ON_OUTCOME: dict[str, SetRule] = {
    "too_many_rejected": _too_many_rejected,
    "class_without_examples": _class_without_examples,
    "too_few_examples": _too_few_examples,
    "same_label": _same_label,
    "similar_labels": _similar_labels,
    "imbalance": _imbalance,
}
