"""The gate: whether a candidate may be promoted, decided purely, from numbers, with its reasons.

    decision = decide(candidate, champion, labels, slices, settings, num_bins=10, seed=17)

Every check ends in `pass`, `hold` (the test images are too few to tell) or `reject`; the worst of them is the
verdict. Both models are measured on the same images, so all differences (candidate minus champion) are paired:

    accuracy difference   adjusted Wald interval of Agresti and Min (2005) and exact McNemar test, two-sided
    the same, where the two do not know the same classes: on the champion's classes alone (see `_accuracies`)
    classes and slices    exact one-sided tests, corrected together; an objection needs evidence
    calibration           paired bootstrap of the expected calibration error and of the log loss
    latency               the median of the ratios of rounds in which the two took turns, with its interval
    size                  ratio
    every class           known to the candidate, and with test images, unless it was given up on purpose
    data                  no leak into the training; training images that look different (refit/gate/data_checks.py)

Where test images are of groups (patients, parts), those of one group are alike, and count as fewer in the tests of the
accuracy (refit/scoring/clusters.py); the objections of the other checks take them all as independent.

A tie is not a win: with `goal: better` the candidate must be shown to be better. The tests are in
refit/gate/statistics.py.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import EvidenceError
from ..params import Gate
from ..scoring import intervals, measures, metrics
from ..scoring.clusters import design_effect
from ..scoring.intervals import Interval
from .checks import Check, Groups, Labels, Side, Verdict, verdict_of
from .group_checks import group_drops, recall_floors, tally_of
from .statistics import at_most, decided, images_needed, mcnemar, median_interval, paired_interval


@dataclass(frozen=True)
class Decision:
    """The verdict, all that led to it, and about how many test images would decide (None: not a matter of number)."""

    verdict: Verdict
    checks: tuple[Check, ...]
    images_needed: int | None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is not `pass`; for a pass, what was shown."""
        decisive = [check.reason for check in self.checks if check.verdict == self.verdict]
        return tuple(decisive) if self.verdict != "pass" else (self.checks[0].reason,)


def decide(
    candidate: Side,
    champion: Side | None,
    labels: Labels,
    slices: Sequence[Groups],
    settings: Gate,
    num_bins: int,
    seed: int,
    about_data: Sequence[Check] = (),
) -> Decision:
    """The decision.

    Args:
        candidate: its predictions on the test images.
        champion: the same images, predicted by the champion; None only where the registry says that there is none.
        labels: the classes.
        slices: other groups of the test images that are judged apart.
        settings: the section `gate` of params.yaml.
        num_bins: bins of the calibration error.
        seed: of the bootstrap.
        about_data: checks of what both were made of (`data_checks.py`).

    Raises:
        EvidenceError: no test images, or the two sides are not about the same images, or a number is not finite.
    """
    _require_evidence(candidate, champion)
    tally = tally_of(candidate, champion, labels, slices)
    common = (
        _floor(candidate, settings),
        *recall_floors(tally, settings),
        *_missing_classes(candidate, champion, labels),
        *about_data,
    )
    if champion is None:
        checks = (_beats_guessing(candidate, settings), *common)
        return Decision(verdict_of(checks), checks, None)
    accuracies = _accuracies(candidate, champion, labels, settings)
    checks = (
        *(test.check for test in accuracies),
        *common,
        *group_drops(tally, settings),
        *_calibration(candidate, champion, settings, num_bins, seed),
        _latency(candidate, champion, settings),
        _size(candidate, champion, settings),
    )
    verdict = verdict_of(checks)
    return Decision(verdict, checks, _needed(accuracies) if verdict == "hold" else None)


# The checks


def _require_evidence(candidate: Side, champion: Side | None) -> None:
    for name, side in (("candidate", candidate), ("champion", champion)):
        if side is None:
            continue
        if not len(side.scored.labels):
            raise EvidenceError(f"the {name} was scored on no test example; nothing can be decided")
        costs = (*side.milliseconds, float(side.bytes)) if len(side.milliseconds) else (math.nan,)
        if not (np.isfinite(side.scored.loss).all() and np.isfinite(side.scored.confidence).all()):
            raise EvidenceError(f"the {name} gives probabilities that are not numbers; nothing can be decided")
        if not all(math.isfinite(cost) and cost > 0 for cost in costs):
            raise EvidenceError(f"the {name}'s latency or size was not measured; nothing can be decided")
    if champion is not None and not np.array_equal(candidate.scored.labels, champion.scored.labels):
        raise EvidenceError("candidate and champion were not scored on the same examples; run `refit compare` again")
    if champion is not None and len(candidate.milliseconds) != len(champion.milliseconds):
        raise EvidenceError("candidate and champion were not timed in turns; run `refit compare` again")


@dataclass(frozen=True)
class _Test:
    check: Check
    needed: int | None  # about how many images would decide; None: no number, or there is nothing left to decide


def _accuracies(candidate: Side, champion: Side, labels: Labels, settings: Gate) -> tuple[_Test, ...]:
    """The accuracy test on all images and, where the two do not know the same classes, on the champion's alone.

    The champion cannot win an image of a class that it does not know, so a new class could carry a candidate that
    forgot the old ones. Two more tests look at the images of the champion's classes only:

    - Both models must choose among these classes. Nothing new can help or harm, so the same goal is asked for.
    - Both models say what they say. Calling an old thing by a new name is a mistake that users will see; it may cost
      no more than `margin`. That it should even gain accuracy here would be too much to ask of a new class.
    """
    clusters = candidate.scored.clusters
    tests = (_accuracy("accuracy", "", candidate.right, champion.right, clusters, settings),)
    lasting = labels.lasting(champion.classes)
    old = np.isin(candidate.scored.labels, [labels.names.index(name) for name in lasting])
    if candidate.classes == champion.classes or not old.any():
        return tests
    clusters = candidate.scored.of(old).clusters
    among, was_among = (side.among[old] == side.scored.labels[old] for side in (candidate, champion))
    not_worse = dataclasses.replace(settings, goal="not_worse")
    return (
        *tests,
        _accuracy("accuracy among the champion's classes", _AMONG, among, was_among, clusters, settings),
        _accuracy(
            "accuracy on the champion's classes", _ON, candidate.right[old], champion.right[old], clusters, not_worse
        ),
    )


_AMONG = "choosing among the champion's classes, where a new one is no win: "
_ON = "on examples of the champion's classes: "


@dataclass(frozen=True)
class _Disagreements:
    """On how many examples only one of two is right."""

    won: int
    lost: int
    num_images: int
    effect: float  # so many say as much as one independent example

    @property
    def independent(self) -> tuple[float, float, float]:
        """Won, lost and all, as if no two examples were alike."""
        return self.won / self.effect, self.lost / self.effect, self.num_images / self.effect

    @property
    def counted(self) -> str:
        """What is said of it."""
        _, _, size = self.independent
        alike = f"; those of one group are alike, so that {self.num_images:,} count as {size:,.0f}"
        return alike if self.effect > 1 else ""


def _disagreements(right: np.ndarray, was_right: np.ndarray, clusters: np.ndarray | None) -> _Disagreements:
    effect = 1.0 if clusters is None else design_effect(right.astype(np.float64) - was_right, clusters)
    return _Disagreements(int((right & ~was_right).sum()), int((was_right & ~right).sum()), len(right), effect)


def _accuracy(
    name: str, where: str, right: np.ndarray, was_right: np.ndarray, clusters: np.ndarray | None, settings: Gate
) -> _Test:
    found = _disagreements(right, was_right, clusters)
    won, lost, size = found.independent
    value = (found.won - found.lost) / found.num_images
    low, high = map(float, paired_interval(won, lost, size, settings.confidence))
    numbers = (
        f"{value:+.2%} ({low:+.2%} to {high:+.2%}); only the candidate is right on {found.won:,} examples, only the "
        f"champion on {found.lost:,} (McNemar p = {float(mcnemar(won, lost)):.3g}){found.counted}"
    )
    verdict, what = _judge_difference(won, lost, size, settings)
    needed = images_needed(won, lost, size, settings) if verdict == "hold" else None
    if needed is not None:
        needed = math.ceil(needed * found.effect)
    if verdict == "hold":
        what += _how_many(needed, found.num_images)
    limit = 0.0 if settings.goal == "better" else -settings.margin
    return _Test(Check(name, verdict, f"{where}{what}: {numbers}", value, limit, low, high), needed)


def _judge_difference(won: float, lost: float, num_images: float, settings: Gate) -> tuple[Verdict, str]:
    is_worse, reaches_goal = decided(won, lost, num_images, settings)
    if is_worse:
        return "reject", "the candidate is less accurate than the champion"
    if settings.goal == "not_worse":
        if reaches_goal:
            return "pass", f"not worse than the champion by {settings.margin:.2%} or more"
        return "hold", f"not shown to lose less than {settings.margin:.2%}"
    if reaches_goal:
        return "pass", "more accurate than the champion"
    low, _ = paired_interval(won, lost, num_images, settings.confidence)
    within = f" (but not worse by {settings.margin:.2%})" if low > -settings.margin else ""
    tie = "; a tie is not a win" if won == lost else ""
    return "hold", f"not shown to be more accurate than the champion{within}{tie}"


def _how_many(needed: int | None, present: int) -> str:
    if needed is None:
        return "; at this difference no number of examples would show it"
    return f"; about {needed:,} labelled test examples would decide (now {present:,})"


def _needed(tests: Sequence[_Test]) -> int | None:
    """With how many images the last of the tests on hold would decide."""
    needed = [test.needed for test in tests if test.check.verdict == "hold"]
    return max((number for number in needed if number), default=None) if all(needed) else None


def _missing_classes(candidate: Side, champion: Side | None, labels: Labels) -> list[Check]:
    """Nothing is known of a class without test images, and a class that the candidate cannot say is lost."""
    known = frozenset() if champion is None else champion.classes
    counts = np.bincount(candidate.scored.labels, minlength=len(labels.names))
    images = dict(zip(labels.names, counts.tolist(), strict=True))
    way_out = "add labelled examples of it and run `refit retrain`, or name it in `validate.retired_labels`"
    checks = []
    for name in sorted((labels.source | known | candidate.classes) - labels.retired):
        if name not in candidate.classes:
            whose = "the champion does" if name in known else "the data source has it"
            problem = f"the candidate does not know it, {whose}"
        elif not images.get(name):
            problem = "no test example, so nothing is known of it"
        else:
            continue
        checks.append(Check(f"class {name}", "reject", f"class {name}: {problem}; {way_out}", images.get(name, 0)))
    return checks


def _floor(candidate: Side, settings: Gate) -> Check:
    right = candidate.right
    name, limit = "accuracy floor", settings.min_accuracy
    value, num_right, num_images = float(right.mean()), int(right.sum()), len(right)
    alpha = 1 - settings.confidence
    if value < limit:
        verdict: Verdict = "reject" if at_most(num_right, num_images, limit) < alpha else "hold"
        return Check(name, verdict, f"accuracy {value:.2%} is below the floor {limit:.2%}", value, limit)
    return Check(name, "pass", f"accuracy {value:.2%} is at least {limit:.2%}", value, limit)


def _beats_guessing(candidate: Side, settings: Gate) -> Check:
    """Without a champion the rival is to say the most frequent class always."""
    scored = candidate.scored
    counts = np.bincount(scored.labels, minlength=scored.num_classes)
    guess = counts.argmax()
    right, guessed_right = candidate.right, scored.labels == guess
    found = _disagreements(right, guessed_right, scored.clusters)
    p_value = float(mcnemar(*found.independent[:2]))
    value, share = float(right.mean()), float(counts[guess] / len(right))
    numbers = (
        f"{value:.2%} right on {len(right):,} examples, against {share:.2%} (McNemar p = {p_value:.3g}){found.counted}"
    )
    if value > share and p_value < 1 - settings.confidence:
        return Check("first champion", "pass", f"no champion yet; better than guessing: {numbers}", value, share)
    verdict: Verdict = "reject" if value < share else "hold"
    return Check("first champion", verdict, f"not shown to be better than guessing: {numbers}", value, share)


def _calibration(candidate: Side, champion: Side, settings: Gate, num_bins: int, seed: int) -> tuple[Check, Check]:
    sides = (candidate.scored, champion.scored)
    draws = intervals.calibration_draws(sides, num_bins, settings.bootstrap_samples, seed)
    changes = draws[:, 0] - draws[:, 1]  # (bootstrap_samples, 2)
    errors = [measures.expected_calibration_error(side, num_bins) for side in sides]
    losses = [metrics.negative_log_likelihood(side) for side in sides]
    error = intervals.percentile(errors[0] - errors[1], changes[:, 0], settings.confidence)
    loss = intervals.percentile(losses[0] - losses[1], changes[:, 1], settings.confidence)
    return (
        _increase("calibration error", error, settings.max_calibration_error_increase),
        _increase("log loss", loss, settings.max_log_loss_increase),
    )


def _increase(name: str, change: Interval, limit: float) -> Check:
    verdict: Verdict = "reject" if change.low > limit else "hold" if change.value > limit else "pass"
    text = f"{name} changes by {change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f}), allowed is {limit:+.4f}"
    return Check(name, verdict, text, change.value, limit, change.low, change.high)


def _latency(candidate: Side, champion: Side, settings: Gate) -> Check:
    """Only time that is shown to be too long rejects: what else a machine does can make any model look slow."""
    limit, ratios = settings.max_latency_ratio, candidate.milliseconds / champion.milliseconds
    value, low, high = median_interval(ratios, settings.confidence)
    verdict: Verdict = "reject" if low > limit else "hold" if value > limit else "pass"
    noise = "; the machine was too busy to tell: run `refit compare` again" if verdict == "hold" else ""
    text = (
        f"latency: {candidate.milliseconds_per_image:.1f} ms of CPU time, the champion "
        f"{champion.milliseconds_per_image:.1f} ms ({value:.2f} times, {low:.2f} to {high:.2f} in "
        f"{len(ratios)} rounds, allowed {limit:.2f}){noise}"
    )
    return Check("latency", verdict, text, value, limit, low, high)


def _size(candidate: Side, champion: Side, settings: Gate) -> Check:
    limit, new, old = settings.max_size_ratio, candidate.bytes, champion.bytes
    text = f"size: {new / 1e6:.1f} MB, the champion {old / 1e6:.1f} MB ({new / old:.2f} times, allowed {limit:.2f})"
    return Check("size", "pass" if new <= limit * old else "reject", text, new / old, limit)
