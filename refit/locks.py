"""Locks between processes, by files; the kernel lets go of one when its process ends, however that happens.

with one_at_a_time(): …             the effects of a workspace: compare and register
with locked(file, "another …"): …   any other
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import WorkspaceError

EFFECTS_LOCK = Path(".refit/effects.lock")
_holding: set[Path] = set()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Be the only process that compares or registers what is in this workspace. May be nested."""
    file = EFFECTS_LOCK.absolute()
    if file in _holding:
        yield
        return
    with locked(file, "another `refit` that compares or registers here"):
        _holding.add(file)
        try:
            yield
        finally:
            _holding.remove(file)


@contextmanager
def locked(file: Path, holder: str) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is missing, and stays.

    Args:
        holder: what is waited for, if it has to be, for the message.

    Raises:
        WorkspaceError: the file cannot be made, or its file system knows no locks.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("a")
    except OSError as error:
        raise WorkspaceError(f"cannot make the lock {file}: {error.strerror}; make {file.parent}/ writable") from None
    with handle:
        _acquire(handle.fileno(), file, holder)
        yield


def _acquire(descriptor: int, file: Path, holder: str) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.getLogger(__name__).warning("waiting for %s (%s)", holder, file)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise WorkspaceError(f"cannot lock {file}: {error.strerror}; use a file system that knows locks") from None
