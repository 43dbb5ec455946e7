"""No class may vanish without a word: which classes are expected, and what is said of one that is missing.

complaints = without_examples(judged, rules)
require_classes(["cat", "dog"], ["cat"], retired=(), origin="the champion models:/pets/3")
"""

from collections.abc import Iterable

import pandas as pd

from ..errors import DataError
from ..params import Validate

_MOST_NAMED = 8


def without_examples(judged: pd.DataFrame, rules: Validate) -> list[str]:
    """What is said of expected classes none of whose images is accepted.

    Expected are `validate.labels` where they are given (they say what is to be left out), else all labels of the
    source; of both, those that are not retired.

    Args:
        judged: label, path and reason (null: accepted) of every image, also of those that cannot be read. A file
            without a label has the label "", which is no class.
        rules: the params of the validation.
    """
    known = set(judged["label"]) - {""} if rules.labels is None else set(rules.labels)
    present = set(judged.loc[judged["reason"].isna(), "label"])
    missing = sorted(known - present - set(rules.retired_labels))
    if not missing:
        return []
    way_out = (
        "mend the examples, or put the label under `validate.retired_labels` if it is given up on purpose"
        if rules.labels is None
        else "mend or add examples, or move the label from `validate.labels` to `validate.retired_labels`"
    )
    described = [_describe(label, judged[judged["label"] == label]) for label in missing[:_MOST_NAMED]]
    return [f"{'; '.join(described)}{_and_more(missing)}: {way_out}"]


def _describe(label: str, rejected: pd.DataFrame) -> str:
    if rejected.empty:
        return f"class {label} has no examples"
    kinds = rejected["reason"].str.replace(r"[:;].*$", "", regex=True)
    first = rejected[kinds == kinds.mode().iloc[0]].iloc[0]  # of the most frequent kind
    return (
        f"class {label} has no accepted example among {len(rejected):,}, mostly for the reason: "
        f"{first['reason']} ({first['path']})"
    )


def require_classes(expected: Iterable[str], accepted: Iterable[str], retired: Iterable[str], origin: str) -> None:
    """Refuse data that lacks a class of `origin`, such as the champion.

    Raises:
        DataError: naming the classes that are neither among the accepted images nor retired.
    """
    missing = sorted(set(expected) - set(accepted) - set(retired))
    if missing:
        raise DataError(
            f"{origin} knows {', '.join(missing[:_MOST_NAMED])}{_and_more(missing)}, of which the data has no accepted "
            "example, so that a new model could not say it: bring its examples back, or put the label under "
            "`validate.retired_labels` if it is given up on purpose"
        )


def _and_more(missing: list[str]) -> str:
    return f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
