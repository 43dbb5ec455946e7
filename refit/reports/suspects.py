"""Labels that look wrong, as a page for whoever keeps the labels."""

from collections.abc import Sequence
from dataclasses import dataclass

from .page import environment


@dataclass(frozen=True)
class Suspect:
    """An example whose label looks wrong."""

    path: str
    sha256: str
    split: str
    given: str
    suggested: str
    score: float  # the probability of the given label
    picture: str  # a data: URI, or words


@dataclass(frozen=True)
class Asked:
    """Examples that were looked at, and how well whoever looked knows them."""

    what: str  # which examples, and who was asked
    count: int
    of: int
    agreement: float  # share of the labels that it gives too
    is_heard: bool  # not where it does no better than who always says the most frequent class


@dataclass(frozen=True)
class Unchanged:
    """An example that bears another label than its answer says."""

    path: str
    given: str
    right: str
    reason: str
    who: str


def suspects_page(
    shown: Sequence[Suspect],
    count: int,
    asked: Sequence[Asked],
    remarks: Sequence[str],
    unchanged: Sequence[Unchanged],
    num_answered: int,
) -> str:
    """The page.

    Args:
        shown: the most doubtful ones, first.
        count: of all.
        remarks: what could not be looked at, and why.
        unchanged: where the data does not say what the answer does.
        num_answered: examples that would be listed but for their answer.
    """
    return (
        environment()
        .get_template("suspects.html.j2")
        .render(shown=shown, count=count, asked=asked, remarks=remarks, unchanged=unchanged, num_answered=num_answered)
    )
