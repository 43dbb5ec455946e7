"""DVC's command line in a process that stays: DVC is imported once, not for each stage.

    status, lines = run(["repro", "--single-item", "fetch"], log)

The process (flows/tools/dvc_child.py) reads requests from its standard input, a line of JSON each: `arguments` of dvc,
the `folder` to run in, its whole `environment`, and a `mark`. What DVC and the stage say comes back line by line; then
the mark with the exit status. It ends when nobody can ask any more.
"""

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from refit.errors import WorkspaceError

_CHILD = Path(__file__).with_name("dvc_child.py").read_text()
_MARK = "\0end "
SECONDS_TO_SAVE = 20.0  # for a training that is stopped; Prefect's runner kills a cancelled run after 30
_SECONDS_TO_END = 20.0
_SECONDS_BETWEEN_LOOKS = 0.1
_NOISE = re.compile(
    r"^(Updating lock file|Use `dvc push`|To track the changes|To enable auto staging|\tgit add|\tdvc config"
    r"|Data and pipelines are up to date)"
)
_process: "subprocess.Popen[str] | None" = None


def run(
    arguments: Sequence[str], log: Callable[[str], None], timeout_seconds: float | None = None
) -> tuple[int, list[str]]:
    """Run a command of DVC in the present folder and environment.

    When `log` raises, or this process is interrupted, the command and all its children are stopped first; a training
    has `SECONDS_TO_SAVE` to save its state. Another interrupt ends it at once.

    Returns:
        The exit status, and every line; `log` got each when it came, but for DVC's advice.

    Raises:
        WorkspaceError: it took longer than `timeout_seconds`, and was stopped.
    """
    process = start()
    assert process.stdin is not None
    assert process.stdout is not None
    # DVC starts `python -m tasks…`: the interpreter of this process must be the one that it finds.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
    request = {"arguments": list(arguments), "folder": str(Path.cwd()), "environment": environment, "mark": _MARK}
    over = threading.Lock()  # taken once: by the end of the command, or by its time

    def expire() -> None:
        if over.acquire(blocking=False):
            stop(process)

    clock = threading.Timer(timeout_seconds or threading.TIMEOUT_MAX, expire)
    clock.daemon = True
    clock.start()
    lines: list[str] = []
    status: int | None = None
    try:
        process.stdin.write(f"{json.dumps(request)}\n")
        process.stdin.flush()
        while status is None and (line := process.stdout.readline()):
            text, is_end, code = line.rstrip().partition(_MARK)
            if text or not is_end:
                lines.append(text)
            if text and not _NOISE.match(text):
                log(text)
            status = int(code) if is_end else None
    except BaseException as error:
        if not isinstance(error, Exception):
            with contextlib.suppress(Exception):
                log(f"stopping; what trains may save its state first ({SECONDS_TO_SAVE:g} s)")
        stop(process)
        raise
    finally:
        clock.cancel()
    if not over.acquire(blocking=False):
        raise WorkspaceError(
            f"`dvc {' '.join(arguments)}` was stopped after {(timeout_seconds or 0) / 3600:g} hours; "
            "raise `flow.stage_timeout_hours` in params.yaml if it needs longer"
        )
    return (process.wait() or 1 if status is None else status), lines  # None: it was killed


def start() -> "subprocess.Popen[str]":
    """Start the process, unless there is one; it gets ready while the caller does other things."""
    global _process
    if _process is None or _process.poll() is not None:
        _process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a group that can be stopped with all its children
        )
        atexit.register(_end, _process)
    return _process


def _end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        stop(process)


def stop(process: "subprocess.Popen[str]") -> None:
    """SIGTERM to a process and its group, and SIGKILL to what is there after a while. DVC ends at once and its stage in
    its own time: the whole group is waited for.
    """
    try:
        _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_SAVE
        while _is_there(process) and time.monotonic() < deadline:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        _signal(process, signal.SIGKILL)
        process.wait(_SECONDS_TO_END)


def _is_there(process: "subprocess.Popen[str]") -> bool:
    """Whether anything of its group is."""
    process.poll()  # or it would be there itself, as a zombie
    return _signal(process, 0)


def _signal(process: "subprocess.Popen[str]", number: int) -> bool:
    """To its group; says whether there is one."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
