"""The pure work as the flow sees it: DVC's stages, one at a time.

is_unchanged("finetune")      asks DVC, in this process
reproduce("finetune", log)    runs `dvc repro --single-item finetune`, passing its output on line by line
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks.errors import ERRORS_BY_EXIT_CODE, RefitError, WorkspaceError

_SECONDS_BETWEEN_LOCK_ATTEMPTS = 3.0
_LOCK_ATTEMPTS = 200  # ten minutes: another `dvc` in the same folder is waited for
_SECONDS_TO_STOP = 20.0
_LOCKED = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")
_NOISE = re.compile(
    r"^(Updating lock file|Use `dvc push`|To track the changes|To enable auto staging|\tgit add|\tdvc config)"
)


def is_unchanged(stage: str) -> bool:
    """Whether the stage's outputs are here and follow from its present code, params and inputs.

    Raises:
        WorkspaceError: DVC cannot tell (no DVC repository, a broken dvc.yaml).
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return not repo.status(targets=[stage])
    except DvcException as error:
        raise WorkspaceError(f"DVC cannot read the pipeline: {' '.join(str(error).split())}") from error


def reproduce(target: str, log: Callable[[str], None], single_item: bool = True) -> None:
    """Reproduce one stage (or, not `single_item`, all that leads to it).

    A lock held by another DVC process is waited for. When this process is interrupted, the stage and all its
    children are stopped first.

    Raises:
        RefitError: of the class that the stage's exit code names, with the stage's own message.
    """
    command = [sys.executable, "-m", "dvc", "repro", *(["--single-item"] if single_item else []), target]
    for _ in range(_LOCK_ATTEMPTS):
        lines: list[str] = []
        status = _run(command, lines, log)
        if status == 0:
            return
        if not any(_LOCKED.search(line) for line in lines):
            raise _as_error(target, lines)
        log(f"{target}: another DVC process works in this folder; waiting for it")
        time.sleep(_SECONDS_BETWEEN_LOCK_ATTEMPTS)
    raise WorkspaceError("another DVC process has held this folder's lock for ten minutes; is it still alive?")


def push_outputs() -> bool:
    """`dvc push` to the default remote, if there is one; says whether there is.

    Raises:
        WorkspaceError: DVC could not push.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            if not repo.config["core"].get("remote"):
                return False
            repo.push()
            return True
    except DvcException as error:
        raise WorkspaceError(f"`dvc push` failed: {' '.join(str(error).split())}") from error


def _run(command: list[str], lines: list[str], log: Callable[[str], None]) -> int:
    # DVC starts `python -m tasks…`: the interpreter of this process must be the one that it finds.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                line = line.rstrip()
                lines.append(line)
                if line and not _NOISE.match(line):
                    log(line)
            return process.wait()
        except BaseException:
            _stop(process)
            raise


def _stop(process: "subprocess.Popen[str]") -> None:
    for stop_signal in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop_signal)
            process.wait(_SECONDS_TO_STOP)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _as_error(target: str, lines: list[str]) -> RefitError:
    text = "\n".join(lines)
    exit_code = re.search(r"exited with (-?\d+)", text)
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if exit_code and said:
        return ERRORS_BY_EXIT_CODE.get(int(exit_code[1]), RefitError)(said[-1])
    complaints = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    last = complaints[-1] if complaints else (lines[-1] if lines else "no output")
    kind = RefitError if exit_code else WorkspaceError
    return kind(f"stage {target} failed: {last}")
