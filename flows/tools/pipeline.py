"""The pure work as the flow sees it: DVC's stages, one at a time.

is_unchanged("finetune")      asks DVC, in this process
reproduce("finetune", log)    runs `dvc repro --single-item finetune`, passing its output on line by line; says
                              whether there was anything to do
"""

import contextlib
import io
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flows.tools import commits, dvc_process
from flows.tools.dvc_files import damage_of
from refit import paths
from refit.errors import ERRORS_BY_EXIT_CODE, DataError, RefitError, StorageUnavailableError, WorkspaceError
from tasks import environment

Answer = TypeVar("Answer")

_SECONDS_BETWEEN_LOCK_ATTEMPTS = 3.0
_LOCK_ATTEMPTS = 200  # ten minutes: another `dvc` in the same folder is waited for
_LOCKED_FOR_LONG = "another DVC process has held this folder's lock for ten minutes; is it still alive?"
_LOCKED = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")
_RAN = re.compile(r"exited with (-?\d+)")
_ALWAYS = ["always changed"]  # of the stage `environment`, whose outputs are as they were
_IDLE = re.compile(r"Stage '.*' didn't change, skipping")


def is_unchanged(stage: str) -> bool:
    """Whether the stage's outputs are here and follow from its present code, params and inputs.

    Raises:
        WorkspaceError: DVC cannot tell (no DVC repository, a broken dvc.yaml).
    """
    return _ask(lambda repo: all(found == _ALWAYS for found in repo.status(targets=[stage]).values()))


def require_unchanged(source: str) -> None:
    """Refuse what is here as one run, unless it is what the code, params and inputs that are here made.

    What lies in the data source by now does not count, unless git holds it: a folder may grow while a model is trained.
    A .dvc file that names other data does.

    Raises:
        WorkspaceError: naming what changed, and for which stage.
    """
    place, is_held = str(Path(source).absolute()), False
    with contextlib.suppress(WorkspaceError):  # no repository
        is_held = commits.holds(source)

    def find(repo: Any) -> list[str]:
        stages = repo.index.stages
        tracked = {out.fs_path: out for stage in stages if stage.is_data_source for out in stage.outs}

        def changes(stage: Any) -> Iterator[str]:
            for entry in (*stage.deps, *stage.outs):
                if entry.fs_path != place or is_held:
                    for path, how in entry.workspace_status().items():
                        yield from (f"{key} of {path}" for key in how) if isinstance(how, dict) else [path]
                elif place in tracked and tracked[place].hash_info != entry.hash_info:
                    yield str(tracked[place].stage.relpath)
            if stage.changed_stage():
                yield "its command"

        with repo.lock:
            made = [stage for stage in stages if not stage.is_data_source]
            return [f"{what} ({stage.addressing})" for stage in made for what in changes(stage)]

    if found := _ask(find):
        raise WorkspaceError(
            f"changed since dvc.lock was written: {', '.join(found[:5])}{' and more' if len(found) > 5 else ''}; a "
            "version names the commit, code and params that made it: run `dvc repro` or `refit retrain`, or undo the "
            "change"
        )


def require_readable() -> None:
    """Read all that DVC keeps in files: its DAG, its lock, and what tracks data.

    Raises:
        WorkspaceError: one of them is damaged; which, where, and what to do.
    """
    _ask(lambda repo: repo.index.stages)


def require_source(source: str) -> None:
    """DVC's own message for a missing source names a file, not what to do.

    Raises:
        DataError: the data source is neither here nor made or tracked by DVC.
    """
    if not Path(source).exists() and _owner_of(source) is None:
        raise DataError(
            f"the data source {source} does not exist; set `data.source` in params.yaml, or bring it here with "
            "`dvc pull` or `dvc update`"
        )


def require_tracked_source(source: str) -> None:
    """What is committed must name data that anybody can get.

    Raises:
        WorkspaceError: the source is tracked neither by DVC nor by git, or has changed since `dvc add`.
    """
    owner = _owner_of(source)
    if owner is None and not commits.holds(source):
        raise WorkspaceError(
            f"the data source {source} is tracked neither by DVC nor by git, so nobody could reproduce this run: "
            f"`dvc add {source}` first, or run without --commit"
        )
    if owner is not None and owner.endswith(".dvc") and Path(source).exists() and not is_unchanged(owner):
        raise WorkspaceError(f"{source} has changed since {owner} was written: `dvc add {source}` first")


def _owner_of(source: str) -> str | None:
    """The stage or the .dvc file that a path belongs to."""
    path = Path(source).absolute()

    def find(repo: Any) -> str | None:
        for stage in repo.index.stages:
            if any(path.is_relative_to(out.fs_path) for out in stage.outs if out.protocol == "local"):
                return str(stage.relpath if stage.is_data_source else stage.addressing)
        return None

    return _ask(find)


def _ask(question: Callable[[Any], Answer]) -> Answer:
    """Ask DVC in this process; a lock that another DVC process holds is waited for."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    for _ in range(_LOCK_ATTEMPTS):
        try:
            with Repo() as repo:
                return question(repo)
        except LockError:
            time.sleep(_SECONDS_BETWEEN_LOCK_ATTEMPTS)
        except DvcException as error:
            raise WorkspaceError(f"DVC cannot read the pipeline: {_reason(error)}") from error
    raise WorkspaceError(_LOCKED_FOR_LONG)


def is_known() -> bool:
    """Whether dvc.lock already tells the result of the present code, params and data, wherever its files are."""
    from dvc.exceptions import DvcException, ReproductionError
    from dvc.repo import Repo

    environment.main()
    with Repo() as repo, contextlib.redirect_stdout(io.StringIO()):
        try:
            would_run = repo.reproduce(dry=True, allow_missing=True)
            return all(stage.addressing == "environment" for stage in would_run)
        except ReproductionError:  # a stage would have to run whose inputs are not here
            return False
        except DvcException as error:
            raise WorkspaceError(f"DVC cannot read the pipeline: {_reason(error)}") from error


def update_sources(log: Callable[[str], None]) -> None:
    """Bring in what is new: `dvc update` for imported data, `dvc add` for a tracked folder that has changed.

    Raises:
        WorkspaceError: a source cannot be reached.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            for stage in [stage for stage in repo.index.stages if stage.is_data_source]:
                tracked = stage.outs[0].fs_path
                if stage.is_import:
                    log(f"dvc update {stage.relpath}")
                    repo.update([stage.relpath])
                elif Path(tracked).exists() and repo.status(targets=[stage.relpath]):
                    log(f"dvc add {stage.outs[0]}")
                    repo.add([tracked])
    except DvcException as error:
        raise WorkspaceError(f"the data source cannot be updated: {_reason(error)}") from error


def pull(targets: list[str] | None = None) -> None:
    """`dvc pull` of what the remote has, for all stages and data or for some.

    Raises:
        StorageUnavailableError: the remote cannot be read.
    """
    _with_remote("pull", lambda repo: repo.pull(targets=targets, allow_missing=True))


def fetch_results() -> None:
    """Bring in the record of what other machines ran (the run cache): DVC then restores instead of running.

    Raises:
        StorageUnavailableError: the remote cannot be read.
    """
    _with_remote("fetch", lambda repo: repo.fetch(run_cache=True, targets=["fetch"]))


def inputs_of(stage: str) -> list[str]:
    """The tracked files that a stage reads: outputs of other stages, and the examples of the data source."""

    def find(repo: Any) -> list[str]:
        named = {entry.addressing: [dep.fs_path for dep in entry.deps] for entry in repo.index.stages}
        tracked = {out.fs_path for found in repo.index.stages for out in found.outs if out.use_cache}
        # Not among the deps of those who read them, since a table names them by their digests: see dvc.yaml.
        examples = [str(paths.UNPACKED.absolute()), *named["ingest"]]
        wanted = dict.fromkeys(path for path in (*named[stage], *examples) if path in tracked)
        return [str(Path(path).relative_to(repo.root_dir)) for path in wanted]

    return _ask(find)


def bring_examples(source: str) -> None:
    """Have the examples here, although the stage that lists them had nothing to do.

    Raises:
        StorageUnavailableError: the remote cannot be read.
    """
    if not Path(source).exists():
        pull([path for path in (source, paths.UNPACKED.as_posix()) if _owner_of(path) is not None])


def reproduce(
    target: str,
    log: Callable[[str], None],
    single_item: bool = True,
    timeout_seconds: float | None = None,
    is_forced: bool = False,
) -> bool:
    """Reproduce one stage (or, not `single_item`, all that leads to it); say whether there was anything to do.

    What is missing here but known is taken from the remote, if there is one. A lock held by another DVC process is
    waited for. `is_forced` runs it though nothing changed that DVC knows of. When this process is interrupted, the
    stage and all its children are stopped first.

    Raises:
        RefitError: of the class that the stage's exit code names, with the stage's own message.
        WorkspaceError: it took longer than `timeout_seconds`, and was stopped.
    """
    has_remote = _has_remote()
    if has_remote and single_item and not is_forced and is_unchanged(target):
        log(f"Stage '{target}' didn't change, skipping")
        return False  # `--pull` would go and look for what others ran
    options = [*(["--single-item"] if single_item else []), *(["--pull"] if has_remote else [])]
    options += ["--force"] if is_forced else []
    for _ in range(_LOCK_ATTEMPTS):
        status, lines = dvc_process.run(["repro", *options, target], log, timeout_seconds)
        if status == 0:
            return not (single_item and any(_IDLE.fullmatch(line) for line in lines))
        if not any(_LOCKED.search(line) for line in lines):
            if not any(_RAN.search(line) for line in lines):
                require_readable()
            raise _as_error(target, lines)
        log(f"{target}: another DVC process works in this folder; waiting for it")
        time.sleep(_SECONDS_BETWEEN_LOCK_ATTEMPTS)
    raise WorkspaceError(_LOCKED_FOR_LONG)


def push() -> bool:
    """`dvc push` with the run cache to the default remote, if there is one; says whether there is.

    Raises:
        StorageUnavailableError: the remote cannot be written.
    """
    return _with_remote("push", lambda repo: repo.push(run_cache=True))


def _has_remote() -> bool:
    return _ask(lambda repo: bool(repo.config["core"].get("remote")))


def _with_remote(verb: str, act: Callable[[Any], object]) -> bool:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    # What the remote does not have is made here; DVC would list it file by file.
    for name in ("dvc", "dvc_data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with Repo() as repo:
            if not repo.config["core"].get("remote"):
                return False
            act(repo)
            return True
    except (DvcException, OSError) as error:
        raise StorageUnavailableError(f"`dvc {verb}` failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return damage_of(error) or " ".join(str(error).split())


def _as_error(target: str, lines: list[str]) -> RefitError:
    text = "\n".join(lines)
    exit_code = _RAN.search(text)
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if exit_code and said:
        return ERRORS_BY_EXIT_CODE.get(int(exit_code[1]), RefitError)(said[-1])
    complaints = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    last = complaints[-1] if complaints else (lines[-1] if lines else "no output")
    kind = RefitError if exit_code else WorkspaceError
    return kind(f"stage {target} failed: {last}")
