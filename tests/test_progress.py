"""The progress of a training, in a log and in a terminal (a real one, of the kernel's)."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from refit import progress

from .conftest import ROOT

TRAINING = """
from refit.progress import say, training_progress

with training_progress(total_steps=40, done_steps=20) as progress:
    for _ in range(20):
        progress.step(examples=8, loss=0.25, accuracy=0.75)
    say("epoch   1/1")
"""


class Clock:
    """A second for each look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_a_log_gets_a_line_in_half_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.time, "monotonic", Clock())
    with progress.training_progress(total_steps=4_000, done_steps=1_100) as training:
        for _ in range(100):
            training.step(examples=64, loss=0.43121, accuracy=0.875)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == ("training: step 1,130 of 4,000 (28 %)  64 examples/s  loss 0.431  accuracy 0.875  0:47:50 left")
    assert [re.findall(r"step ([\d,]+)", line) for line in others] == [["1,160"], ["1,190"]]


def test_the_numbers_are_read_when_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor on a GPU is waited for when somebody asks for its number."""

    class Tensor:
        read = 0

        def __float__(self) -> float:
            self.read += 1
            return 0.5

    monkeypatch.setattr(progress.time, "monotonic", Clock())
    loss = Tensor()
    with progress.training_progress(total_steps=100) as training:
        for _ in range(60):
            training.step(examples=1, loss=loss, accuracy=0.5)
    assert loss.read == 2


def test_the_speed_is_that_of_the_last_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", Clock())
    with progress.training_progress(total_steps=1_000) as training:
        for examples in (1, 100):
            for _ in range(90):
                training.step(examples, loss=1.0, accuracy=0.0)
        assert training.examples_per_second == 100


@pytest.mark.parametrize(("columns", "has_bar"), [(120, True), (80, False)])
def test_a_terminal_gets_a_bar_and_what_is_said_above_it(columns: int, has_bar: bool) -> None:
    shown = in_a_terminal(columns, stdout=None)
    assert "40/40" in shown
    assert "examples/s  loss 0.250  accuracy 0.750  0:00:00 left" in shown, "all of it fits"
    assert ("━" in shown) is has_bar
    assert "epoch   1/1" in shown


def test_what_is_said_stays_in_a_file(tmp_path: Path) -> None:
    shown = in_a_terminal(120, stdout=tmp_path / "log")
    assert "40/40" in shown
    assert "epoch" not in shown
    assert (tmp_path / "log").read_text() == "epoch   1/1\n"


def in_a_terminal(columns: int, stdout: Path | None) -> str:
    """What a terminal shows of the training, without colours."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"}
    with stdout.open("w") if stdout else os.fdopen(os.dup(theirs), "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINING], cwd=ROOT, env=env, stdin=theirs, stdout=output, stderr=theirs
        )
    os.close(theirs)
    shown = b""
    try:
        while some := os.read(ours, 65536):
            shown += some
    except OSError:  # Linux says so when the last writer is gone
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
