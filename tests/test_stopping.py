"""Processes of ours are told to stop: real signals to real processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

HEADER = """
import signal, sys, time
from pathlib import Path
from refit.errors import run_stage
from refit.files import publishing
from refit.stopping import ending_at_once, stop_requests
"""
SAVES = """
def main():
    with stop_requests() as requested:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
            if stopped := requested():
                print("saved", flush=True)
                raise stopped
"""
FILLS = """
def main():
    with stop_requests():
        with ending_at_once():
            print("ready", flush=True)
            time.sleep(600)
"""
STANDS = """
def main():
    with stop_requests():
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
"""
WRITES = """
def main():
    with publishing(Path(sys.argv[1])) as partial:
        partial.write_text("half")
        print("ready", flush=True)
        time.sleep(600)
"""


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whatever started the tests
    process = subprocess.Popen(
        [sys.executable, "-c", f"{heard}{HEADER}{code}\nrun_stage(main)", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_has_something_to_save_saves_it_and_leaves_with_the_signals_code(number: int, code: int) -> None:
    with start(SAVES) as process:
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "saved\n")
    assert errors == "stopping at the next step; Ctrl-C again: at once\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_has_nothing_to_save_ends_at_once(number: int, code: int) -> None:
    with start(FILLS) as process:
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == code


def test_the_same_request_may_come_twice() -> None:
    """A terminal sends Ctrl-C to all, and a launcher passes it on."""
    with start(STANDS) as process:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()


def test_a_second_interrupt_ends_it_at_once() -> None:
    with start(STANDS) as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_is_half_written_goes_away(number: int, code: int, tmp_path: Path) -> None:
    with start(WRITES, str(tmp_path / "out.txt")) as process:
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        assert process.wait(60) == code
        assert process.stderr
        assert process.stderr.read() == "", "no traceback"
    assert list(tmp_path.iterdir()) == []
