"""A registry that is a file: MLflow's SQLite database, and the files that lie in `mlruns/` beside it.

    local_registry.check(uri)     before anything is trained: reads only, and quickly; imports nothing
    local_registry.ready(uri)     before MLflow opens it

MLflow makes its tables in a database step by step, so a process that is killed meanwhile would leave one that no later
start can use. Here it is made aside and renamed. And MLflow keeps absolute addresses of files: those of files that lie
beside the database follow when its folder is moved or copied. Addresses elsewhere, and registries that are no file, are
left alone.
"""

import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from ..errors import TrackingError, TrackingUnavailableError
from ..files import publishing
from ..locks import locked

ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Table and column of every address of files in MLflow's schema; a test compares it with the installed MLflow."""

_SECONDS_TO_WAIT = 20.0  # for another process's transaction, as MLflow itself does
_BROKEN = {sqlite3.SQLITE_CORRUPT: "it is damaged or cut off", sqlite3.SQLITE_NOTADB: "it is no SQLite database"}
_KEPT = "What was trained is not lost: it is in models/, and `refit register` registers it in a new one"


def database_of(uri: str) -> Path | None:
    """The file of a local registry; None for any other."""
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    return None if not uri.startswith("sqlite:///") or name in ("", ":memory:") else Path(name).absolute()


def check(uri: str) -> None:
    """Look whether there is a registry that cannot be used; none at all is no mistake.

    Raises:
        TrackingError: MLflow could not use it, now or later; says why, and what to do.
        TrackingUnavailableError: it cannot be read at the moment.
    """
    file = database_of(uri)
    if file is not None and not _is_missing(file):
        _require_usable(file)
        with _opened(file) as database:
            _moved(database, file)


def ready(uri: str) -> None:
    """Make the registry if there is none; have its addresses follow if it was moved.

    Raises:
        TrackingError: as `check`.
        WorkspaceError: its folder cannot be written.
    """
    file = database_of(uri)
    if file is None:
        return
    if _is_missing(file):
        with locked(file.with_name(f".{file.name}.lock"), f"another process that makes {file.name}"):
            if _is_missing(file):
                _make(file)
    _require_usable(file)
    _follow(file)


def _is_missing(file: Path) -> bool:
    return not file.exists() or (file.is_file() and file.stat().st_size == 0)


# Whole or not at all


def _make(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for leftover in file.parent.glob(f".{file.name}.*.partial*"):  # of processes that were killed: we hold the lock
        leftover.unlink(missing_ok=True)
    with publishing(file) as partial:
        store = SqlAlchemyStore(f"sqlite:///{partial}", (file.parent / "mlruns").as_uri())
        store.engine.dispose()


# Usable or not


def _require_usable(file: Path) -> None:
    newest, known = _revisions()
    with _opened(file) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        revision = _value(database, "SELECT version_num FROM alembic_version") if "alembic_version" in tables else None
        is_empty = "experiments" not in tables or _value(database, "SELECT 1 FROM experiments LIMIT 1") is None
    if revision == newest:
        return
    if revision is not None and revision not in known:
        raise TrackingError(
            f"{file} was made by a newer MLflow than the one that is installed, or by another program (its schema is "
            f"{revision}): upgrade MLflow, or set MLFLOW_TRACKING_URI to another registry"
        )
    if revision is None or is_empty:
        raise _broken(file, "its making was cut off, so MLflow can neither use nor complete it")
    raise TrackingError(
        f"{file} was made by an older MLflow (its schema is {revision}, this one needs {newest}): copy the file, then "
        f"run `mlflow db upgrade sqlite:///{file}`"
    )


def _broken(file: Path, reason: str) -> TrackingError:
    aside = f"{file}.broken"
    return TrackingError(
        f"the registry {file} cannot be used: {reason}. Put back a copy that you have, or move it away "
        f"(`mv {file} {aside}`) and run again: a new one is made. {_KEPT}"
    )


@cache
def _revisions() -> tuple[str, frozenset[str]]:
    """(newest, all) schema revisions of the installed MLflow, read from its migrations: to import it takes seconds."""
    package = find_spec("mlflow")
    assert package is not None
    assert package.origin is not None
    files = (Path(package.origin).parent / "store" / "db_migrations" / "versions").glob("*.py")
    found = dict(
        pair
        for file in files
        for pair in re.findall(r'^revision = ["\'](\w+)["\']$.*?^down_revision = (.+?)$', file.read_text(), re.M | re.S)
    )
    (newest,) = [revision for revision in found if not any(revision in before for before in found.values())]
    return newest, frozenset(found)


# Addresses that follow


def _follow(file: Path) -> None:
    with _opened(file) as database:
        if not _moved(database, file):
            return
        with database:
            database.execute("BEGIN IMMEDIATE")
            moves = _moved(database, file)  # again, now that nobody else writes
            for old, new in moves:
                for table, column in ADDRESSES:
                    _replace(database, table, column, old, new)
    if moves:
        logging.getLogger(__name__).warning("%s was moved here: %d addresses follow", file, len(moves))


def _replace(database: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    rest = f"substr({column}, {len(old) + 1})"
    database.execute(
        f"UPDATE {table} SET {column} = ? || {rest} "  # noqa: S608  # names of ours, from the table above
        f"WHERE {column} = ? OR substr({column}, 1, {len(old) + 1}) = ?",
        (new, old, f"{old}/"),
    )


def _moved(database: sqlite3.Connection, file: Path) -> list[tuple[str, str]]:
    """(old, new) address of each experiment whose files lay beside the database, and now lie beside it elsewhere.

    Raises:
        TrackingError: the files of one are at neither place.
    """
    found = []
    rows = database.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
    for number, name, address in rows:
        then = _place(address or "")
        relative = None if then is None else _beside(then, name, number)
        if then is None or relative is None:
            continue
        home, now = then.parents[len(relative.parts) - 1], file.parent / relative
        if home == file.parent or _is_same(home, file.parent):
            continue
        if now.is_dir() or not (then.is_dir() or _has_runs(database, number)):
            found.append((address, now.as_uri()))
        elif not then.is_dir():
            raise TrackingError(
                f"the files of experiment {name!r} lay in {then} and are neither there nor in {now}: put the folder "
                f"beside {file}, or move that away to begin a new registry. {_KEPT}"
            )
    return found


def _place(address: str) -> Path | None:
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _beside(place: Path, name: str, number: int) -> Path | None:
    """The path from a database's folder, if this is where an experiment's files were put beside one."""
    usual = (Path("mlruns") / name, Path("mlruns") / str(number))
    return next((relative for relative in usual if place.parts[-len(relative.parts) :] == relative.parts), None)


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)  # reached by another name


def _has_runs(database: sqlite3.Connection, experiment: int) -> bool:
    tables = ("runs", "logged_models")
    return any(
        _value(database, f"SELECT 1 FROM {table} WHERE experiment_id = {int(experiment)} LIMIT 1")  # noqa: S608
        for table in tables
    )


def _value(database: sqlite3.Connection, query: str) -> str | None:
    row = database.execute(query).fetchone()
    return None if row is None else row[0]


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    """The database as it is, never a new one; what is wrong with it as our errors."""
    try:
        address = f"file:{quote(str(file))}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=_SECONDS_TO_WAIT, isolation_level=None)) as database:
            yield database
    except sqlite3.Error as error:
        reason = _BROKEN.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        if reason is not None:
            raise _broken(file, reason) from None
        raise TrackingUnavailableError(f"the registry {file} cannot be read or written now: {error}") from None
