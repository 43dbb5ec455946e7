"""The rules that look at more than one row, each a function that gives the findings of the rule with its name.

    AMONG_USABLE["duplicate"](rows, params)          rows of the manifest that no earlier rule has rejected
    ON_OUTCOME["too_few_images"](judged, params)     all rows with `reason` (null: accepted) and `rule`

They run in the order in which they stand here. A new one is a function here, a field of `Rules` in
`refit/params/sections.py`, and its policy in params.yaml.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from .. import modality
from ..params import SPLITS, Params
from .classes import without_images
from .duplicates import leaks, near_duplicates
from .rules import found, of_set, rules_of

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
    return found(rule, "the same picture as " + path + " (" + other + ", this one " + clashes[column] + ")", path)


def _duplicate(rows: pd.DataFrame, _params: Params) -> pd.DataFrame:
    """All but the first of equal contents under the same label in the same split."""
    keys = ["content_sha256", "label", "split"]
    twins = rows.groupby(keys)["path"].transform("first")[rows.duplicated(keys)].astype("str")
    return found("duplicate", "duplicate: the same picture as " + twins, twins)


def _leak(rows: pd.DataFrame, params: Params) -> pd.DataFrame:
    """What is learned from and, nearly the same, judged by; `duplicates.py` says which of the two leaves."""
    told = np.flatnonzero(rows["signature"].map(len))
    pairs = np.empty((0, 2), dtype=np.int64)
    if len(told):
        signatures = np.frombuffer(b"".join(rows["signature"].iloc[told]), dtype=np.uint8).reshape(len(told), -1)
        pairs = told[near_duplicates(signatures, modality.duplicates(params.data.modality))]
    leaking = leaks(rows, pairs).set_index("row")
    return found("leak", leaking["reason"], leaking["twin"])


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
            f"{len(bad):,} of {len(expected):,} images are rejected ({len(bad) / len(expected):.1%}, "
            f"`validate.max_rejected_fraction` allows {allowed:.1%}); first: {first['path']} ({first['reason']})"
        ],
    )


def _class_without_images(judged: pd.DataFrame, params: Params) -> pd.DataFrame:
    return of_set("class_without_images", without_images(judged, params.validate))


def _too_few_images(judged: pd.DataFrame, params: Params) -> pd.DataFrame:
    accepted = judged[judged["reason"].isna()]
    labels = sorted(set(accepted["label"]))
    if len(labels) < 2:
        found_labels = ", ".join(labels) or "none"
        return of_set("too_few_images", [f"at least two classes are needed, found {len(labels)} ({found_labels})"])
    counts = accepted.groupby(["label", "split"]).size()
    problems = []
    for split in SPLITS:
        needed = getattr(params.validate.min_images_per_class, split)
        short = {label: int(counts.get((label, split), 0)) for label in labels}
        short = {label: count for label, count in short.items() if count < needed}
        if short:
            shown = ", ".join(f"{label}: {count}" for label, count in list(short.items())[:8])
            problems.append(
                f"too few {split} images in {len(short)} of {len(labels)} classes ({shown}; "
                f"`validate.min_images_per_class.{split}` asks for {needed})"
            )
    if problems:
        problems[-1] += (
            "; add images, set other shares in `data.test_fraction` and `data.val_fraction`, or give the splits "
            "yourself (train, val and test folders, or a column `split` in a table)"
        )
    return of_set("too_few_images", problems)


AMONG_USABLE: dict[str, SetRule] = {
    "two_labels": _two_labels,
    "duplicate": _duplicate,
    "leak": _leak,
}

ON_OUTCOME: dict[str, SetRule] = {
    "too_many_rejected": _too_many_rejected,
    "class_without_images": _class_without_images,
    "too_few_images": _too_few_images,
}
