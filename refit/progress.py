"""Progress of long work: a bar in a terminal, a plain line now and then in a log.

say("20 classes, 1,200 examples")                       one plain line on standard output
for image in track(images, "decoding", len(images)):    how many are done
with training_progress(total_steps) as progress:        how fast, how well, and how long yet
    progress.step(examples=64, loss=loss, accuracy=accuracy)
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, SupportsFloat, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_STEP_LINES = 30.0  # a training lasts for hours
_SECONDS_BETWEEN_DRAWINGS = 0.25  # drawing the bar takes about a millisecond
_COLUMNS_FOR_A_BAR = 105  # a narrower terminal has room for the numbers only
_SECONDS_OF_SPEED = 30.0  # the speed shown is that of so long


def say(message: str) -> None:
    """One plain line on standard output, at once, so that a log that is being followed shows it."""
    print(message, flush=True)


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Pass `items` through while showing how many of `total` are done."""
    if sys.stderr.isatty():
        yield from _bar(items, what, total)
    else:
        yield from _lines(items, what, total)


class TrainingProgress:
    """What `training_progress` gives."""

    def __init__(
        self, total_steps: int, done_steps: int, show: Callable[["TrainingProgress"], None], seconds_between: float
    ) -> None:
        self.total_steps = total_steps
        self.done_steps = done_steps  # with those before this process
        self.num_examples = 0  # of this process
        self.loss: SupportsFloat = float("nan")
        self.accuracy: SupportsFloat = float("nan")
        self._show, self._seconds_between = show, seconds_between
        self._ticks: deque[tuple[float, int, int]] = deque()  # when, examples, steps
        self._tick(time.monotonic())

    def step(self, examples: int, loss: SupportsFloat, accuracy: SupportsFloat) -> None:
        """A step is done. A microsecond, but for one step in a quarter of a second (a bar) or in half a minute (lines).

        Args:
            examples: how many it took.
            loss, accuracy: of the step, or a mean of the caller's; tensors are read when they are shown, not before.
        """
        self.done_steps += 1
        self.num_examples += examples
        self.loss, self.accuracy = loss, accuracy
        if (now := time.monotonic()) >= self._due:
            self._tick(now)
            self._show(self)

    @property
    def examples_per_second(self) -> float:
        """Of the last half a minute."""
        (then, examples, _), (now, examples_now, _) = self._ticks[0], self._ticks[-1]
        return (examples_now - examples) / max(now - then, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the speed of the last half a minute; None before there is one."""
        (then, _, steps), (now, _, steps_now) = self._ticks[0], self._ticks[-1]
        return (self.total_steps - steps_now) * (now - then) / (steps_now - steps) if steps_now > steps else None

    @property
    def text(self) -> str:
        """Speed, loss, accuracy and time left, for people."""
        left = "" if self.seconds_left is None else f"  {_duration(self.seconds_left)} left"
        return (
            f"{self.examples_per_second:,.0f} examples/s  loss {float(self.loss):.3f}  "
            f"accuracy {float(self.accuracy):.3f}{left}"
        )

    def _end(self) -> None:
        """Show it once more if there was anything; the bar then stays as it was at the end."""
        if self.done_steps > self._ticks[-1][2]:
            self._tick(time.monotonic())
            self._show(self)

    def _tick(self, now: float) -> None:
        self._due = now + self._seconds_between
        self._ticks.append((now, self.num_examples, self.done_steps))
        while len(self._ticks) > 2 and now - self._ticks[1][0] >= _SECONDS_OF_SPEED:
            self._ticks.popleft()


@contextmanager
def training_progress(total_steps: int, what: str = "training", done_steps: int = 0) -> Iterator[TrainingProgress]:
    """Show how a training gets on: a bar on standard error where that is a terminal, else lines on standard output.

    A line: `training: step 1,200 of 4,000 (30 %)  812 examples/s  loss 0.431  accuracy 0.871  0:04:12 left`. What is
    said meanwhile appears above the bar.

    Args:
        total_steps: steps of the whole training.
        what: names it.
        done_steps: those that an earlier process has done.
    """
    if not sys.stderr.isatty():
        yield TrainingProgress(total_steps, done_steps, lambda now: say(_line(what, now)), _SECONDS_BETWEEN_STEP_LINES)
        return
    bar = _step_bar()
    task = bar.add_task(what, total=total_steps, completed=done_steps, text="")

    def draw(now: TrainingProgress) -> None:
        bar.update(task, completed=now.done_steps, text=now.text)
        bar.refresh()

    with bar:
        progress = TrainingProgress(total_steps, done_steps, draw, _SECONDS_BETWEEN_DRAWINGS)
        yield progress
        progress._end()


def _step_bar() -> "Progress":
    """Drawn by the steps themselves: no thread competes with the training."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    numbers = (MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    bar = (BarColumn(bar_width=24),) if console.width >= _COLUMNS_FOR_A_BAR else ()
    return Progress(
        TextColumn("{task.description}"),
        *bar,
        *numbers,
        console=console,
        auto_refresh=False,
        # Otherwise what is said goes to standard error with the bar, although standard output may be a file.
        redirect_stdout=sys.stdout.isatty(),
    )


def _line(what: str, now: TrainingProgress) -> str:
    share = 100 * now.done_steps // max(1, now.total_steps)
    return f"{what}: step {now.done_steps:,} of {now.total_steps:,} ({share} %)  {now.text}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _bar(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=what, total=total, console=Console(stderr=True))


def _lines(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{what}: {done:,} of {total:,}")
    say(f"{what}: {done:,} done")
