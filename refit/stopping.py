"""How a process of ours is told to stop: SIGTERM (a scheduler, a cancelled run) or SIGINT (Ctrl-C).

    with stop_requests() as requested:      work that has something to save
        for step in steps:
            ...
            if stopped := requested():      a look at a flag
                save(...)
                raise stopped               leaves with 143 or 130

Outside such a block, and in one of `ending_at_once`, either signal ends the process at once, by an exception: what is
half written goes away.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_OF_ONE_REQUEST = 2.0
"""A launcher passes on the Ctrl-C that a terminal has sent to all: within this time it is the same one."""


class Stopped(SystemExit):
    """The process was asked to stop. Its code is that of a shell: 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM raises `Stopped` in the main thread, as SIGINT raises KeyboardInterrupt."""

    with _handled(_leave, signal.SIGTERM):
        yield


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Within `stop_requests`: work that has nothing to save, which either signal ends by an exception."""
    with _handled(_leave, *_SIGNALS):
        yield


@contextmanager
def stop_requests() -> Iterator[Callable[[], Stopped | None]]:
    """In the block the signals are only remembered; what it gives tells what to raise, once there is one.

    A second Ctrl-C, a while after the first, ends the process without waiting.
    """
    received: list[tuple[int, float]] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        if not received:
            os.write(2, b"stopping at the next step; Ctrl-C again: at once\n")  # print is not for signal handlers
        elif number == signal.SIGINT and time.monotonic() - received[0][1] > _SECONDS_OF_ONE_REQUEST:
            raise KeyboardInterrupt
        received.append((number, time.monotonic()))

    with _handled(remember, *_SIGNALS):
        yield lambda: Stopped(received[0][0]) if received else None


def _leave(number: int, _frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
