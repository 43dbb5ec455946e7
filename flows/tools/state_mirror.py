"""The state of a training on the DVC remote: where one worker was lost, the next one goes on.

    with mirrored(key, logger) as mirror:       brings the state here; then takes each newer one there, from a thread
        train()
        push()
        mirror.forget()                         the result is safe: there is nothing to go on with

On the remote, `refit-state/<key>/` has files that are named by the SHA-256 of their content, and a numbered list of
them, which is written last: to a reader an upload that was killed is nothing. Whatever goes wrong is said once, and
neither fails the training nor holds it up. Two workers that take each other for dead may both write here: what they
train is the same, and a list whose files are gone is passed over.
"""

import datetime
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging import Logger, LoggerAdapter
from pathlib import Path
from threading import Event, Thread
from typing import Any

from refit.errors import WorkspaceError
from refit.files import publish_json, publishing, sha256_of_file
from refit.paths import STATES
from refit.records import as_plain, parse_record

FOLDER = "refit-state"
_WORKPLACE = Path(".refit/mirror")
_STATE = "state.safetensors"
_FILE = re.compile(r"[0-9a-f]{64}/[a-z]+(-\d+)?\.safetensors")
_LIST = re.compile(r"(\d{6,})\.json")
_SECONDS_BETWEEN = 1.0  # looks; a training saves once in a minute
_MAX_SHARE = 0.05  # of the time, that uploads may take: a large state, or a slow remote, is written less often
_SECONDS_FOR_THE_LAST = 60.0
_TICK = 0.05  # a file is dated by the last tick of a clock that is coarser than time.time()
_DAYS_KEPT = 30  # what nobody has come back to


@dataclass(frozen=True, kw_only=True)
class _List:
    """What belongs together. Empty: there is no state yet."""

    written: str  # when, ISO 8601
    modified: float  # seconds since 1970: when the training saved it
    files: Mapping[str, str]  # path below .refit/state -> SHA-256


class Mirror:
    """What `mirrored` gives where there is a remote."""

    def __init__(self, filesystem: Any, folder: str, logger: "Logger | LoggerAdapter[Any]") -> None:
        self._filesystem, self._folder, self._logger = filesystem, folder, logger
        self._there = _List(written="", modified=0.0, files={})
        self._number = 0
        self._begun = time.time() - _TICK
        self._has_complained = False
        self._is_forgotten = False
        self._stop = Event()
        self._thread = Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        """Bring the newest state here, and begin to follow what the training saves."""
        shutil.rmtree(_WORKPLACE, ignore_errors=True)  # of a process that was killed
        with self._forgiving():
            self._bring()
        self._thread.start()

    def stop(self) -> None:
        """Take what was saved last to the remote; follow no more."""
        self._stop.set()
        self._thread.join(_SECONDS_FOR_THE_LAST)

    def forget(self) -> None:
        """Remove it all from the remote."""
        self._is_forgotten = True
        self.stop()
        with self._forgiving():
            _remove(self._filesystem, self._folder)

    def _bring(self) -> None:
        for name in sorted(self._lists(), reverse=True):
            self._number = max(self._number, int(Path(name).stem))
            try:
                found = _read(self._filesystem, self._filesystem.join(self._folder, name))
                self._download(found)
            except (WorkspaceError, FileNotFoundError) as error:  # cut off, or replaced a moment ago
                self._logger.warning("a state on the DVC remote is passed over: %s", error)
            else:
                self._there = found
                return

    def _lists(self) -> list[str]:
        names = (self._filesystem.name(path) for path in _files_below(self._filesystem, self._folder))
        return [name for name in names if _LIST.fullmatch(name)]

    def _download(self, found: _List) -> None:
        """All of it in files of ours first; the state itself, which names the others, takes its place last."""
        _require_plain(found)
        state = next((STATES / path for path in found.files if path.endswith(f"/{_STATE}")), None)
        if state is None or (state.exists() and state.stat().st_mtime >= found.modified):
            return
        with _workplace() as workplace:
            for digest in found.files.values():
                self._filesystem.get_file(self._filesystem.join(self._folder, digest), str(workplace / digest))
                if sha256_of_file(workplace / digest) != digest:
                    raise WorkspaceError(f"{digest} in {self._folder} is damaged")
            for path, digest in sorted(found.files.items(), key=lambda entry: entry[0].endswith(f"/{_STATE}")):
                with publishing(STATES / path) as partial:
                    shutil.copyfile(workplace / digest, partial)
                os.utime(STATES / path, (found.modified, found.modified))
        self._logger.info("the training goes on from what another worker saved at %s", found.written)

    def _follow(self) -> None:
        pause = _SECONDS_BETWEEN
        while not self._stop.wait(pause):
            pause = max(_SECONDS_BETWEEN, self._timed_copy() / _MAX_SHARE)
        if not self._is_forgotten:
            self._timed_copy()

    def _timed_copy(self) -> float:
        start = time.monotonic()
        with self._forgiving():
            if not self._number:
                self._forget_old()
                self._write(_List(written=_now(), modified=0.0, files={}))  # dates what may be cut off
            self._copy()
        return time.monotonic() - start

    def _copy(self) -> None:
        with _workplace() as workplace:
            found = _snapshot(workplace)
            if found is None or found.modified < self._begun or found.modified == self._there.modified:
                return  # nothing new of this training
            digests = {path: sha256_of_file(workplace / path) for path in found.files}
            for path, digest in digests.items():
                if digest not in self._there.files.values():
                    self._filesystem.put_file(str(workplace / path), self._filesystem.join(self._folder, digest))
            self._write(_List(written=_now(), modified=found.modified, files=digests))
        kept = {f"{self._number:06d}.json", *digests.values()}
        for path in _files_below(self._filesystem, self._folder):
            if self._filesystem.name(path) not in kept:
                self._filesystem.rm_file(path)

    def _write(self, content: _List) -> None:
        name = f"{self._number + 1:06d}.json"
        with _workplace() as workplace:
            publish_json(workplace / name, as_plain(content))
            self._filesystem.makedirs(self._folder, exist_ok=True)
            self._filesystem.put_file(str(workplace / name), self._filesystem.join(self._folder, name))
        self._number += 1
        self._there = content

    def _forget_old(self) -> None:
        """States of trainings that nobody has come back to."""
        root = self._filesystem.parent(self._folder)
        oldest = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=_DAYS_KEPT)
        for path in _files_below(self._filesystem, root):
            if _LIST.fullmatch(self._filesystem.name(path)):
                with suppress(WorkspaceError, FileNotFoundError, ValueError):
                    if datetime.datetime.fromisoformat(_read(self._filesystem, path).written) < oldest:
                        _remove(self._filesystem, self._filesystem.parent(path))

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the storage's library, whichever it is
            if not self._has_complained:
                _complain(error, self._logger)
            self._has_complained = True


class NoMirror:
    """Where nobody would go on elsewhere: without a remote, for one."""

    def forget(self) -> None:
        """Nothing to remove."""


@contextmanager
def mirrored(key: str, logger: "Logger | LoggerAdapter[Any]") -> Iterator["Mirror | NoMirror"]:
    """Keep the state of the training that runs in the block on the DVC remote, if there is one.

    Args:
        key: names the training, on any machine.
        logger: is told what was brought, and what went wrong.
    """
    try:
        remote = _remote()
    except Exception as error:  # DVC's, or of the storage's library
        _complain(error, logger)
        remote = None
    if remote is None:
        yield NoMirror()
        return
    filesystem, root = remote
    mirror = Mirror(filesystem, filesystem.join(root, FOLDER, key), logger)
    mirror.start()
    try:
        yield mirror
    finally:
        mirror.stop()


def _complain(error: Exception, logger: "Logger | LoggerAdapter[Any]") -> None:
    logger.warning(
        "the training's state is not kept on the DVC remote now, so another worker could not go on from it (%s); the "
        "training itself goes on",
        " ".join(str(error).split()) or type(error).__name__,
    )


def _remote() -> tuple[Any, str] | None:
    """The default remote as DVC reaches it: its filesystem, and the address of its folder there."""
    from dvc.repo import Repo

    with Repo() as repo:
        if not repo.config["core"].get("remote"):
            return None
        remote = repo.cloud.get_remote()
        return remote.fs, remote.path


def _snapshot(workplace: Path) -> _List | None:
    """Links, in `workplace`, to the files of the state that was saved last; its list lacks their digests.

    The files appear by renaming, and those that a state names before it: so they belong together if the state is the
    same before and after.
    """
    states = sorted(STATES.glob(f"*/{_STATE}"), key=lambda file: file.stat().st_mtime)
    if not states:
        return None
    (workplace / states[-1].parent.name).mkdir()
    before = states[-1].stat()
    files = [states[-1], *states[-1].parent.glob("best-*.safetensors")]
    names = [file.relative_to(STATES).as_posix() for file in files]
    for file, name in zip(files, names, strict=True):
        _link(file, workplace / name)
    after = states[-1].stat()
    if (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns):
        return None  # the next look finds the new one
    return _List(written="", modified=after.st_mtime, files=dict.fromkeys(names, ""))


def _link(file: Path, link: Path) -> None:
    try:
        os.link(file, link)
    except OSError:  # a filesystem without links
        shutil.copyfile(file, link)


@contextmanager
def _workplace() -> Iterator[Path]:
    folder = _WORKPLACE / f"{time.monotonic_ns()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(filesystem: Any, path: str) -> _List:
    return parse_record(filesystem.cat_file(path), _List, WorkspaceError, path)


def _require_plain(found: _List) -> None:
    """What comes from elsewhere writes nothing else than states."""
    if strange := [path for path in found.files if not _FILE.fullmatch(path)]:
        raise WorkspaceError(f"{strange[0]!r} is no file of a state")
    if strange := [digest for digest in found.files.values() if not re.fullmatch(r"[0-9a-f]{64}", digest)]:
        raise WorkspaceError(f"{strange[0]!r} is no digest")


def _files_below(filesystem: Any, folder: str) -> list[str]:
    try:
        return list(filesystem.find(folder))
    except FileNotFoundError:
        return []


def _remove(filesystem: Any, folder: str) -> None:
    with suppress(FileNotFoundError):
        filesystem.rm(folder, recursive=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
