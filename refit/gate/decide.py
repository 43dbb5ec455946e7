"""The gate: whether a candidate may be promoted, decided purely, from numbers, with its reasons.

    decision = decide(candidate, champion, groups, settings, num_bins=10, seed=17)

Every check ends in `pass`, `hold` (the test images are too few to tell) or `reject`; the worst of them is the
verdict. Both models are measured on the same images, so all differences (candidate minus champion) are paired:

    accuracy difference   percentile bootstrap over images (Efron 1979), widened to the adjusted Wald interval of
                          Agresti and Min (2005): a bootstrap of few or no disagreements is too sure of itself
    disagreements         exact McNemar test, two-sided
    classes and slices    exact one-sided tests, corrected together by Holm (1979)
    calibration           paired bootstrap of the expected calibration error and of the log loss
    latency and size      ratios

A tie is not a win: with `goal: better` the candidate must be shown to be better.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from ..errors import EvidenceError
from ..params import Gate
from ..scoring import metrics
from ..scoring.metrics import Interval, Scored

Verdict = Literal["pass", "hold", "reject"]
_ORDER: tuple[Verdict, ...] = ("pass", "hold", "reject")
_MOST_IMAGES = 10_000_000
"""Beyond this many images the answer to "how many would decide?" is that no number would."""


@dataclass(frozen=True)
class Side:
    """One model as the gate sees it: its predictions, and what it costs to run."""

    scored: Scored
    milliseconds_per_image: float
    bytes: int


@dataclass(frozen=True)
class Check:
    """One question and its answer. `value` is compared with `limit`; `low` and `high` are its interval, if any."""

    name: str
    verdict: Verdict
    reason: str
    value: float
    limit: float | None = None
    low: float | None = None
    high: float | None = None


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
    groups: Mapping[str, np.ndarray],
    settings: Gate,
    num_bins: int,
    seed: int,
) -> Decision:
    """The decision.

    Args:
        candidate: its predictions on the test images.
        champion: the same images, predicted by the champion; None only where the registry says that there is none.
        groups: name of a class or slice -> (n,) bool, which images belong to it.
        settings: the section `gate` of params.yaml.
        num_bins: bins of the calibration error.
        seed: of the bootstrap.

    Raises:
        EvidenceError: no test images, or the two sides are not about the same images, or a number is not finite.
    """
    _require_evidence(candidate, champion)
    floors = (_floor(candidate, settings), *_recall_floors(candidate, groups, settings))
    if champion is None:
        checks = (_beats_guessing(candidate, settings), *floors)
        return Decision(_worst(checks), checks, None)
    accuracy, needed = _accuracy(candidate, champion, settings, seed)
    checks = (
        accuracy,
        *floors,
        *_group_drops(candidate, champion, groups, settings),
        *_calibration(candidate, champion, settings, num_bins, seed),
        _ratio("latency", candidate.milliseconds_per_image, champion.milliseconds_per_image, settings),
        _ratio("size", candidate.bytes, champion.bytes, settings),
    )
    verdict = _worst(checks)
    return Decision(verdict, checks, needed if verdict == "hold" and accuracy.verdict == "hold" else None)


# The statistics


def mcnemar(num_won: int, num_lost: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947): are wins and losses equally likely?"""
    return min(1.0, 2 * binomial_tail(min(num_won, num_lost), num_won + num_lost, 0.5))


def binomial_tail(most: int, num_trials: int, chance: float) -> float:
    """P(X <= most) for a binomial X, summed in logarithms so that thousands of trials do no harm."""
    if most >= num_trials or chance <= 0:
        return 1.0
    if chance >= 1:
        return 0.0
    logs = [
        math.lgamma(num_trials + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(num_trials - hits + 1)
        + hits * math.log(chance)
        + (num_trials - hits) * math.log1p(-chance)
        for hits in range(most + 1)
    ]
    largest = max(logs)
    return min(1.0, math.exp(largest) * math.fsum(math.exp(value - largest) for value in logs))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for being many (Holm 1979): the chance of any false alarm stays below the level."""
    adjusted, highest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * value))
        adjusted[name] = highest
    return adjusted


def accuracy_difference(won: np.ndarray, lost: np.ndarray, settings: Gate, seed: int) -> Interval:
    """The paired accuracy difference with its interval.

    Args:
        won: (n,) bool, images that only the candidate gets right.
        lost: (n,) bool, images that only the champion gets right.
    """
    difference = won.astype(np.int64) - lost.astype(np.int64)  # (n,) in -1, 0, 1
    num_images = len(difference)
    generator = np.random.Generator(np.random.Philox(seed))
    chances = np.array([won.mean(), lost.mean(), 1 - won.mean() - lost.mean()])
    # Resampling three-valued images is drawing from a multinomial distribution.
    draws = generator.multinomial(num_images, np.clip(chances, 0, 1), settings.bootstrap_samples)
    resampled = (draws[:, 0] - draws[:, 1]) / num_images
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    wald_low, wald_high = _agresti_min(int(won.sum()), int(lost.sum()), num_images, settings.confidence)
    return Interval(float(difference.mean()), min(float(low), wald_low), max(float(high), wald_high))


def images_needed(distance: float, disagreement: float, confidence: float) -> int | None:
    """About how many images make the half width of a paired interval `distance`; None: no number would.

    The variance of one image's difference is at most the share of images on which the models disagree.
    """
    if distance <= 0:
        return None
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    needed = math.ceil(quantile**2 * max(disagreement, 1e-3) / distance**2)
    return needed if needed <= _MOST_IMAGES else None


def _agresti_min(num_won: int, num_lost: int, num_images: int, confidence: float) -> tuple[float, float]:
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    total = num_images + 2  # half an image is added to each of the four cells
    won, lost = num_won + 0.5, num_lost + 0.5
    middle = (won - lost) / total
    half = quantile * math.sqrt(won + lost - (won - lost) ** 2 / total) / total
    return middle - half, middle + half


# The checks


def _require_evidence(candidate: Side, champion: Side | None) -> None:
    for name, side in (("candidate", candidate), ("champion", champion)):
        if side is None:
            continue
        if not len(side.scored.labels):
            raise EvidenceError(f"the {name} was scored on no test image; nothing can be decided")
        costs = (side.milliseconds_per_image, float(side.bytes))
        if not (np.isfinite(side.scored.loss).all() and np.isfinite(side.scored.confidence).all()):
            raise EvidenceError(f"the {name} gives probabilities that are not numbers; nothing can be decided")
        if not all(math.isfinite(cost) and cost > 0 for cost in costs):
            raise EvidenceError(f"the {name}'s latency or size was not measured; nothing can be decided")
    if champion is not None and not np.array_equal(candidate.scored.labels, champion.scored.labels):
        raise EvidenceError("candidate and champion were not scored on the same images; run `refit compare` again")


def _right(side: Side) -> np.ndarray:
    return side.scored.predicted == side.scored.labels


def _accuracy(candidate: Side, champion: Side, settings: Gate, seed: int) -> tuple[Check, int | None]:
    right, was_right = _right(candidate), _right(champion)
    won, lost = right & ~was_right, was_right & ~right
    difference = accuracy_difference(won, lost, settings, seed)
    p_value = mcnemar(int(won.sum()), int(lost.sum()))
    numbers = (
        f"{difference.value:+.2%} ({difference.low:+.2%} to {difference.high:+.2%}); only the candidate is right on "
        f"{won.sum():,} images, only the champion on {lost.sum():,} (McNemar p = {p_value:.3g})"
    )
    verdict, what, distance = _judge_difference(difference, p_value, settings)
    disagreement = float((won | lost).mean())
    needed = images_needed(distance, disagreement, settings.confidence) if verdict == "hold" else None
    if verdict == "hold":
        what += _how_many(needed, len(right))
    limit = 0.0 if settings.goal == "better" else -settings.margin
    check = Check("accuracy", verdict, f"{what}: {numbers}", difference.value, limit, difference.low, difference.high)
    return check, needed


def _judge_difference(difference: Interval, p_value: float, settings: Gate) -> tuple[Verdict, str, float]:
    """(verdict, why, how far the value is from what must be excluded)."""
    is_significant = p_value < 1 - settings.confidence
    if difference.high < -settings.margin or (is_significant and difference.value < 0 and settings.goal == "better"):
        return "reject", "the candidate is less accurate than the champion", 0.0
    if settings.goal == "not_worse":
        if difference.low > -settings.margin:
            return "pass", f"not worse than the champion by {settings.margin:.2%} or more", 0.0
        return "hold", f"not shown to lose less than {settings.margin:.2%}", difference.value + settings.margin
    if difference.low > 0 and is_significant:
        return "pass", "more accurate than the champion", 0.0
    tie = "; a tie is not a win" if difference.value == 0 else ""
    within = f" (but not worse by {settings.margin:.2%})" if difference.low > -settings.margin else ""
    return "hold", f"not shown to be more accurate than the champion{within}{tie}", difference.value


def _how_many(needed: int | None, present: int) -> str:
    if needed is None:
        return "; at this difference no number of images would show it"
    if needed <= present:
        return f"; a few more than the present {present:,} labelled test images would decide"
    return f"; about {needed:,} labelled test images would decide (now {present:,})"


def _floor(candidate: Side, settings: Gate) -> Check:
    right = _right(candidate)
    name, limit = "accuracy floor", settings.min_accuracy
    value, num_right, num_images = float(right.mean()), int(right.sum()), len(right)
    alpha = 1 - settings.confidence
    if value < limit:
        verdict: Verdict = "reject" if binomial_tail(num_right, num_images, limit) < alpha else "hold"
        return Check(name, verdict, f"accuracy {value:.2%} is below the floor {limit:.2%}", value, limit)
    return Check(name, "pass", f"accuracy {value:.2%} is at least {limit:.2%}", value, limit)


def _beats_guessing(candidate: Side, settings: Gate) -> Check:
    """Without a champion the rival is to say the most frequent class always."""
    scored = candidate.scored
    counts = np.bincount(scored.labels, minlength=scored.num_classes)
    guess = counts.argmax()
    right, guessed_right = _right(candidate), scored.labels == guess
    won, lost = int((right & ~guessed_right).sum()), int((guessed_right & ~right).sum())
    p_value = mcnemar(won, lost)
    value, share = float(right.mean()), float(counts[guess] / len(right))
    numbers = f"{value:.2%} right on {len(right):,} images, against {share:.2%} (McNemar p = {p_value:.3g})"
    if value > share and p_value < 1 - settings.confidence:
        return Check("first champion", "pass", f"no champion yet; better than guessing: {numbers}", value, share)
    verdict: Verdict = "reject" if value < share else "hold"
    return Check("first champion", verdict, f"not shown to be better than guessing: {numbers}", value, share)


def _recall_floors(candidate: Side, groups: Mapping[str, np.ndarray], settings: Gate) -> tuple[Check, ...]:
    right, limit = _right(candidate), settings.min_class_recall
    members = {name: rows for name, rows in groups.items() if rows.any()}
    tests = {name: binomial_tail(int(right[rows].sum()), int(rows.sum()), limit) for name, rows in members.items()}
    adjusted = holm(tests)
    checks = [_empty(name) for name in groups if name not in members]
    for name, rows in members.items():
        value = float(right[rows].mean())
        if value < limit:
            verdict: Verdict = "reject" if adjusted[name] < 1 - settings.confidence else "hold"
            text = f"{name}: {value:.1%} of {rows.sum():,} images right, the floor is {limit:.1%}"
            checks.append(Check(f"floor of {name}", verdict, text, value, limit))
    return tuple(checks)


def _empty(name: str) -> Check:
    return Check(f"floor of {name}", "hold", f"{name}: no test image, so nothing is known", 0.0)


def _group_drops(
    candidate: Side, champion: Side, groups: Mapping[str, np.ndarray], settings: Gate
) -> tuple[Check, ...]:
    """Checks of the classes and slices that lost more than allowed."""
    right, was_right = _right(candidate), _right(champion)
    won, lost = right & ~was_right, was_right & ~right
    members = {name: rows for name, rows in groups.items() if rows.any()}
    # One-sided: is losing an image more likely than winning one?
    tests = {
        name: binomial_tail(int(won[rows].sum()), int((won | lost)[rows].sum()), 0.5) for name, rows in members.items()
    }
    adjusted = holm(tests)
    checks = []
    for name, rows in members.items():
        drop = float(lost[rows].mean() - won[rows].mean())
        if drop > settings.max_class_drop:
            verdict: Verdict = "reject" if adjusted[name] < 1 - settings.confidence else "hold"
            text = (
                f"{name}: {drop:.1%} fewer of {rows.sum():,} images right, allowed are {settings.max_class_drop:.1%} "
                f"(p = {adjusted[name]:.3g}, corrected for {len(members)} groups)"
            )
            checks.append(Check(f"drop of {name}", verdict, text, drop, settings.max_class_drop))
    return tuple(checks)


def _calibration(candidate: Side, champion: Side, settings: Gate, num_bins: int, seed: int) -> tuple[Check, Check]:
    generator = np.random.Generator(np.random.Philox(seed))
    num_images = len(candidate.scored.labels)
    rows = [generator.integers(num_images, size=num_images) for _ in range(settings.bootstrap_samples)]

    def difference(picked: np.ndarray | slice) -> tuple[float, float]:
        new, old = (side.scored.take(picked) for side in (candidate, champion))  # type: ignore[arg-type]
        return (
            metrics.expected_calibration_error(new, num_bins) - metrics.expected_calibration_error(old, num_bins),
            metrics.negative_log_likelihood(new) - metrics.negative_log_likelihood(old),
        )

    values, resampled = difference(slice(None)), np.array([difference(picked) for picked in rows])
    tail = (1 - settings.confidence) / 2
    lows, highs = np.quantile(resampled, [tail, 1 - tail], axis=0)
    limits = (settings.max_calibration_error_increase, settings.max_log_loss_increase)
    names = ("calibration error", "log loss")
    first, second = (
        _increase(name, Interval(value, float(low), float(high)), limit)
        for name, value, low, high, limit in zip(names, values, lows, highs, limits, strict=True)
    )
    return first, second


def _increase(name: str, change: Interval, limit: float) -> Check:
    verdict: Verdict = "reject" if change.low > limit else "hold" if change.value > limit else "pass"
    text = f"{name} changes by {change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f}), allowed is {limit:+.4f}"
    return Check(name, verdict, text, change.value, limit, change.low, change.high)


def _ratio(name: Literal["latency", "size"], new: float, old: float, settings: Gate) -> Check:
    limit = settings.max_latency_ratio if name == "latency" else settings.max_size_ratio
    sizes = [f"{cost:.1f} ms" if name == "latency" else f"{cost / 1e6:.1f} MB" for cost in (new, old)]
    text = f"{name}: {sizes[0]}, the champion {sizes[1]} ({new / old:.2f} times, allowed {limit:.2f})"
    return Check(name, "pass" if new <= limit * old else "reject", text, new / old, limit)


def _worst(checks: tuple[Check, ...]) -> Verdict:
    return max((check.verdict for check in checks), key=_ORDER.index)
