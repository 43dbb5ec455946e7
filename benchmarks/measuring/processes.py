"""What a fresh process uses, with all that it starts.

    usage = measure([python, "-m", "tasks.finetune"], cwd=project, env=env, log=Path("log"))

Linux only: memory of the whole tree is read from /proc.
"""

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from refit.errors import WorkspaceError

_SAMPLED_EVERY = 0.05  # seconds
_TREE_SAMPLED_EVERY = 0.5  # what several processes share takes the kernel milliseconds to tell
_SECONDS_TO_END = 20  # after SIGTERM


@dataclass(frozen=True)
class Usage:
    """Of one process, from start to end."""

    seconds: float
    cpu_seconds: float  # user and system, of the process and of all that it started and waited for
    peak_rss_mb: float  # of the largest process of the tree, as the kernel knows it; 10^6 bytes
    own_mb: float  # memory that is no file's, of the whole tree, at its highest as sampled
    was_ended: bool  # it had reached its limit
    load: float  # of the machine in the minute before


def measure(command: list[str], cwd: Path, env: dict[str, str], log: Path, limit_seconds: float | None = None) -> Usage:
    """Run a command to its end, or end it at `limit_seconds`.

    Raises:
        WorkspaceError: it failed; the message has the end of its log.
    """
    load = os.getloadavg()[0]
    ended = threading.Event()
    peak = [0.0]
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        watcher = threading.Thread(target=_watch, args=(process.pid, ended, peak, limit_seconds))
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        watcher.join()
    was_ended = limit_seconds is not None and seconds > limit_seconds
    if process.returncode != 0 and not was_ended:
        raise WorkspaceError(
            f"`{' '.join(command)}` in {cwd} ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}"
        )
    return Usage(
        seconds=seconds,
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_rss_mb=used.ru_maxrss * 1024 / 1e6,
        own_mb=peak[0] / 1e6,
        was_ended=was_ended,
        load=load,
    )


def _watch(pid: int, ended: threading.Event, peak: list[float], limit_seconds: float | None) -> None:
    """Keep the highest sum of RssAnon; end what takes too long, as a user would and then by force."""
    deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
    was_asked = False
    processes = [pid]
    while not ended.wait(_SAMPLED_EVERY if len(processes) == 1 else _TREE_SAMPLED_EVERY):
        processes = _tree(pid)
        peak[0] = max(peak[0], _own_bytes(processes))
        if deadline is not None and time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL if was_asked else signal.SIGTERM)
            was_asked, deadline = True, time.monotonic() + _SECONDS_TO_END


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        for file in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in file.read_text().split()]
            except OSError:  # the thread has ended meanwhile
                continue
    return found


def _own_bytes(processes: list[int]) -> int:
    """Of several processes in shares, so that a page that forks have in common counts once."""
    if len(processes) == 1:
        return _bytes_in(Path(f"/proc/{processes[0]}/status"), ("RssAnon:", "RssShmem:"))
    return sum(_bytes_in(Path(f"/proc/{pid}/smaps_rollup"), ("Pss_Anon:", "Pss_Shmem:")) for pid in processes)


def _bytes_in(file: Path, keys: tuple[str, ...]) -> int:
    try:
        return sum(int(line.split()[1]) * 1024 for line in file.read_text().splitlines() if line.startswith(keys))
    except OSError:  # the process has ended meanwhile
        return 0
