"""The gate's checks of single classes and slices, many at once: an objection needs evidence that stands their number.

tally = tally_of(candidate, champion, labels, slices)
checks = [*recall_floors(tally, settings), *group_drops(tally, settings)]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..params import Gate
from .checks import Check, Groups, Labels, Side
from .statistics import small_shares


@dataclass(frozen=True)
class Tally:
    """Counts of the test images by class and slice, for the groups that have any; each (groups,) int64."""

    names: tuple[str, ...]
    images: np.ndarray
    right: np.ndarray
    won: np.ndarray  # only the candidate is right; without a champion all that are right
    lost: np.ndarray


def tally_of(candidate: Side, champion: Side | None, labels: Labels, slices: Sequence[Groups]) -> Tally:
    right = candidate.right
    was_right = np.zeros_like(right) if champion is None else champion.right
    classes = Groups(tuple(f"class {name}" for name in labels.names), candidate.scored.labels)
    groups = (classes, *slices)

    def count(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([np.bincount(group.codes[rows], minlength=len(group.names)) for group in groups])

    images = count(np.ones_like(right))
    present = images > 0
    names = np.array([name for group in groups for name in group.names], dtype=object)[present]
    won, lost = count(right & ~was_right)[present], count(was_right & ~right)[present]
    return Tally(tuple(names), images[present], count(right)[present], won, lost)


def recall_floors(tally: Tally, settings: Gate) -> list[Check]:
    """The groups below the floor: rejected on evidence. Chance is no excuse where there is no loss to speak of it:
    a group of which the champion got nothing right, as each has without a champion, is held."""
    limit = settings.min_class_recall
    recall = tally.right / tally.images
    p_values = small_shares(tally.right, tally.images, limit)
    nothing_to_lose = tally.right - tally.won + tally.lost == 0
    checks = []
    for group in np.flatnonzero(recall < limit):
        is_shown = p_values[group] < 1 - settings.confidence
        if is_shown or nothing_to_lose[group]:
            name, value = tally.names[group], float(recall[group])
            text = f"{name}: {value:.1%} of {tally.images[group]:,} examples right, the floor is {limit:.1%}"
            checks.append(Check(f"floor of {name}", "reject" if is_shown else "hold", text, value, limit))
    return checks


def group_drops(tally: Tally, settings: Gate) -> list[Check]:
    """The groups that lost more than allowed, as far as there is evidence.

    `reject`: shown to have lost more than `max_class_drop`. `hold`: measured so, and shown to have lost at all, or of
    too few images ever to show it. A measured loss that chance explains is none: of a hundred classes of twenty
    images, some have it in nearly every comparison.
    """
    limit, alpha = settings.max_class_drop, 1 - settings.confidence
    drop, disagreeing = (tally.lost - tally.won) / tally.images, tally.won + tally.lost
    # A loss of `limit` makes so few of the disagreements wins, if there are as many of them as were seen.
    allowed = np.maximum(0.0, 0.5 - limit * tally.images / (2 * np.maximum(disagreeing, 1)))
    lost_more, lost_any = (small_shares(tally.won, disagreeing, chances) for chances in (allowed, 0.5))
    too_few = 0.5**tally.images >= alpha  # even if all are lost
    checks = []
    for group in np.flatnonzero(drop > limit):
        is_shown = lost_more[group] < alpha
        if is_shown or lost_any[group] < alpha or too_few[group]:
            name, value = tally.names[group], float(drop[group])
            text = (
                f"{name}: {value:.1%} fewer of {tally.images[group]:,} examples right, allowed are {limit:.1%} "
                f"(p = {lost_more[group]:.3g} for more than that, corrected for {len(drop)} groups)"
            )
            checks.append(Check(f"drop of {name}", "reject" if is_shown else "hold", text, value, limit))
    return checks
