"""DVC's objects that no commit of a list needs: what they weigh, and how they go. DVC's own `gc` takes one revision.

for place in unused(commits, is_cloud=True):        the cache, and the remote
    print(place.name, len(place.paths), place.bytes)
    place.remove()
"""

import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from refit.errors import StorageUnavailableError, WorkspaceError

HOURS_AT_LEAST = 24
"""Younger objects stay: a run pushes its data before the commit that names it."""
_OBJECT = re.compile(r"([0-9a-f]{2})/([0-9a-f]{30}(?:\.dir)?)")


@dataclass(frozen=True)
class Place:
    """Unneeded objects of the cache or of the remote."""

    name: str  # cache, remote
    paths: tuple[str, ...]
    bytes: int
    store: Any  # DVC's

    def remove(self) -> None:
        """Delete them. Folders' lists first: a list without its files would be taken for whole."""
        from dvc_data.hashfile.db import get_index

        for is_list in (True, False):
            paths = [path for path in self.paths if path.endswith(".dir") is is_list]
            if paths:
                self.store.fs.remove(paths)
        if self.name != "cache":
            get_index(self.store).clear()


def unused(commits: Iterable[str], is_cloud: bool) -> list[Place]:
    """What neither the workspace nor one of these commits needs, and is older than a day.

    Args:
        commits: of this repository.
        is_cloud: the default remote too. It must be this project's alone: no commit here needs the objects of others.

    Raises:
        WorkspaceError: DVC cannot tell what a commit needs (the list of a folder is neither here nor on the remote).
        StorageUnavailableError: the remote cannot be reached.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo, repo.lock:
            found = repo.used_objs(revs=sorted(set(commits)) or None)
            needed = {entry.value for entries in found.values() for entry in entries}
            stores = {"cache": repo.cache.local}
            if is_cloud:
                stores["remote"] = repo.cloud.get_remote_odb(None, "gc")
            return [_place(name, store, needed) for name, store in stores.items()]
    except DvcException as error:
        reason = ": ".join(filter(None, (str(error), str(error.__cause__ or ""))))
        raise WorkspaceError(
            f"nothing was removed: DVC cannot tell what is needed: {reason}; `dvc fetch --all-branches` "
            "brings it, where it was pushed"
        ) from error
    except OSError as error:
        raise StorageUnavailableError(f"nothing was removed: the DVC remote cannot be listed: {error}") from error


def _place(name: str, store: Any, needed: set[str]) -> Place:
    oldest = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=HOURS_AT_LEAST)
    paths, size = [], 0
    listed = store.fs.find(store.path, detail=True) if store.fs.exists(store.path) else {}
    for path in listed:
        about = listed[path] if isinstance(listed, dict) else store.fs.info(path)  # a folder gives names alone
        name_of = _OBJECT.fullmatch("/".join(store.fs.parts(path)[-2:]))
        if name_of is None or "".join(name_of.groups()) in needed or not _is_before(about, oldest):
            continue
        paths.append(path)
        size += int(about.get("size") or 0)
    return Place(name, tuple(sorted(paths)), size, store)


def _is_before(about: dict[str, Any], oldest: datetime.datetime) -> bool:
    """By whatever a file system calls the time of the last change; one that tells none keeps its objects."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "modified"):
        found = about.get(key)
        if isinstance(found, int | float):
            found = datetime.datetime.fromtimestamp(found, datetime.UTC)
        if isinstance(found, str):
            found = datetime.datetime.fromisoformat(found)
        if isinstance(found, datetime.datetime):
            return found.astimezone(datetime.UTC) < oldest
    return False
