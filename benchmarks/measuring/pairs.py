"""Numbers of paired runs: in which order they are made, and what may be said of them."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A middle with what surrounds it, at a level."""

    middle: float
    low: float
    high: float
    level: float  # of confidence, in [0, 1]
    num: int  # of values

    def text(self, form: str = ".2f") -> str:
        """`1.50 (1.20 to 1.80)`; of a single value only itself."""
        around = f" ({self.low:{form}} to {self.high:{form}})" if self.num > 1 else ""
        return f"{self.middle:{form}}{around}"


def abba(first: str, second: str, num_pairs: int) -> Iterator[tuple[int, str]]:
    """(pair, which) in the order A B, B A, A B, …: a machine that slows down or speeds up favours neither."""
    for pair in range(num_pairs):
        for which in (first, second) if pair % 2 == 0 else (second, first):
            yield pair, which


def of_median(values: Sequence[float], level: float = 0.95) -> Interval:
    """The median with the sign test's interval, which asks nothing of the distribution.

    With few values no interval reaches the level: then it is the whole range, with the level that this has (5 values:
    0.9375).
    """
    ordered, num = sorted(values), len(values)
    cut = 0
    while 2 * (cut + 1) < num and 1 - 2 * stats.binom.cdf(cut + 1, num, 0.5) >= level:
        cut += 1
    reached = 1 - 2 * float(stats.binom.cdf(cut, num, 0.5))
    return Interval(statistics.median(ordered), ordered[cut], ordered[num - 1 - cut], max(0.0, reached), num)


def of_mean(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean with Student's interval; without one from a single value."""
    mean, num = statistics.fmean(values), len(values)
    if num < 2:
        return Interval(mean, math.nan, math.nan, level, num)
    half = float(stats.t.ppf((1 + level) / 2, num - 1)) * statistics.stdev(values) / math.sqrt(num)
    return Interval(mean, mean - half, mean + half, level, num)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column to the left, the others to the right."""
    rule = ["---", *(["---:"] * (len(heading) - 1))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *rows)).replace("| --- |", "|---|")
