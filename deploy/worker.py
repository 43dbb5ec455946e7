"""A Prefect worker in a container, which is stopped as a training wants it: SIGTERM, and time to save its state.

    python worker.py --pool=gpu --type=process --with-healthcheck

Prefect's own worker leaves within seconds of a SIGTERM; the container then ends, and its runs with it, in the middle of
whatever they did. Here the worker takes no more runs, each run gets the signal, and only when all have left does the
worker go. A run that was stopped so is *Crashed*; a training goes on from its state on the next worker.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SECONDS_TO_LEAVE = 50  # of the minute that compose gives


def main() -> None:
    worker = subprocess.Popen(["prefect", "worker", "start", *sys.argv[1:]])
    signal.signal(signal.SIGTERM, lambda *_: stop(worker))
    sys.exit(worker.wait())


def stop(worker: "subprocess.Popen[bytes]") -> None:
    """End the runs, then the worker."""
    worker.send_signal(signal.SIGSTOP)  # it neither takes new runs nor ends those that it has
    runs = children_of(worker.pid)
    for pid in runs:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_LEAVE
    while time.monotonic() < deadline and any(map(is_alive, runs)):
        time.sleep(0.2)
    worker.kill()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether it still runs. Nobody has waited for it: what has left is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main()
