"""What has been computed once for an example is kept: decoded pictures, features of frozen layers.

    shelf = Shelf("decoded", digest_of_all_that_decides_a_row)
    rows = shelf.rows(names, produce)       a name per row; `produce` computes those that are not there
    batch = rows.gather(np.array([5, 2]))   (2, …)

A shelf holds rows of one shape and dtype. It only grows: `rows.bin` has the rows one after the other, `index.bin` a
record for each: its name, a checksum of the row, a checksum of the record. A row counts once its record is whole, so a
process that is killed leaves nothing that another could mistake. Every row is verified before it is used, and computed
anew where it is damaged. Nothing is forced to disk: what a power cut takes, a checksum misses.

Rows are read by position, not mapped: the pages stay the system's, so that a process needs memory for a batch, however
large the set is. The folder (.refit/cache, or REFIT_CACHE) is shared by all runs and bounded (20 GB, or
REFIT_CACHE_GB); the shelf that was used longest ago goes first.
"""

import contextlib
import fcntl
import itertools
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import msgspec
import numpy as np

from ..errors import WorkspaceError
from ..files import publish_json
from .choices import number_in_environment

FORMAT = 1
"""Counted up when the meaning of a shelf's files changes; part of each key."""

_LIMIT_GB = 20.0

_RECORD = np.dtype([("name", "V32"), ("row_checksum", "<u4"), ("record_checksum", "<u4")])

Produce = Callable[[np.ndarray], Iterator[np.ndarray]]
"""(k,) int64 indices of examples -> their rows, in the same order, in pieces (m, …)."""


class Rows(Protocol):
    """Prepared rows of some examples."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """(k,) int64 -> (k, …), a copy."""
        ...


@dataclass(frozen=True)
class Kept:
    """Rows of a shelf, in an order of their own. They stay readable when the shelf is evicted."""

    descriptor: int
    positions: np.ndarray  # (n,) int64, where each row stands in the file
    shape: tuple[int, ...]  # of one row
    dtype: np.dtype

    def __len__(self) -> int:
        return len(self.positions)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        batch = np.empty((len(indices), *self.shape), self.dtype)
        size = _bytes_of(self.shape, self.dtype)
        flat = batch.view(np.uint8).reshape(len(indices), size)
        for row, index in zip(flat, indices, strict=True):
            if os.preadv(self.descriptor, [row.data], int(self.positions[index]) * size) != size:
                raise WorkspaceError("a file of the cache was cut off while it was read; run again")
        return batch


@dataclass(frozen=True)
class Unkept:
    """Rows that are computed each time, since they are more than the cache may hold."""

    produce: Produce
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: np.ndarray) -> np.ndarray:
        return np.concatenate([np.empty((0, *self.shape), self.dtype), *self.produce(indices)])


_IN_USE: WeakValueDictionary[Path, Kept] = WeakValueDictionary()
"""By folder of a shelf: rows that this process reads, such as training examples when it asks for validation."""


class _Layout(msgspec.Struct):
    shape: tuple[int, ...]  # of one row
    dtype: str


@dataclass(frozen=True)
class Shelf:
    """The rows of one key, which is the digest of all that decides a row beside its name."""

    kind: str
    key: str

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return _cache_folder() / f"{self.kind}-{self.key[:32]}"

    def rows(self, names: Sequence[bytes], produce: Produce) -> Rows:
        """The rows of `names` (32 bytes each); what is missing or damaged is computed and kept.

        Another process that wants the same shelf waits meanwhile, and then finds them.

        Raises:
            WorkspaceError: the cache cannot be written.
        """
        try:
            with self._locked():
                return self._rows(names, produce)
        except OSError as error:
            raise WorkspaceError(
                f"the cache {self.folder} cannot be used ({error.strerror or error}); free some space, or name another "
                "folder in the environment variable REFIT_CACHE"
            ) from error

    def _rows(self, names: Sequence[bytes], produce: Produce) -> Rows:
        positions = self._verified(set(names))
        places = {name: index for index, name in reversed(list(enumerate(names)))}  # the first of each
        missing = sorted(index for name, index in places.items() if name not in positions)
        if missing:
            pieces = produce(np.array(missing, dtype=np.int64))
            first = next(pieces)
            needed = len(set(names)) * first[0].nbytes
            is_full = self._kept_bytes() + len(missing) * first[0].nbytes > _limit_bytes()
            if needed > _limit_bytes() or (is_full and self.folder.absolute() in _IN_USE):
                return Unkept(produce, len(names), first.shape[1:], first.dtype)
            if is_full and self._kept_bytes():
                self._start_anew()  # nobody here asks for some of its rows any more
                return self._rows(names, produce)
            room = _limit_bytes() - self._kept_bytes() - len(missing) * first[0].nbytes
            _evict(room, spare=self.folder)
            self._append([names[index] for index in missing], first, pieces, positions)
        shape, dtype = self._layout()
        descriptor = os.open(self.folder / "rows.bin", os.O_RDONLY)
        os.utime(self.folder / "layout.json")  # when it was used last
        kept = Kept(descriptor, np.array([positions[name] for name in names], dtype=np.int64), shape, dtype)
        _IN_USE[self.folder.absolute()] = kept
        return kept

    def _append(
        self, names: Sequence[bytes], first: np.ndarray, more: Iterator[np.ndarray], positions: dict[bytes, int]
    ) -> None:
        """Add rows after the last whole record, and write down where they stand."""
        if not (self.folder / "layout.json").exists():
            publish_json(self.folder / "layout.json", {"shape": first.shape[1:], "dtype": str(first.dtype)})
        count = len(self._records())
        done = 0
        with (self.folder / "rows.bin").open("ab") as rows, (self.folder / "index.bin").open("ab") as index:
            rows.truncate(count * first[0].nbytes)
            index.truncate(count * _RECORD.itemsize)
            for piece in itertools.chain([first], more):
                piece = np.ascontiguousarray(piece)
                rows.write(piece.data)
                rows.flush()
                records = np.zeros(len(piece), _RECORD)
                for place, row in enumerate(piece):
                    name = names[done + place]
                    records[place]["name"] = name
                    records[place]["row_checksum"] = zlib.crc32(row.data)
                    positions[name] = count + done + place
                records["record_checksum"] = _record_checksums(records, count + done)
                index.write(records.tobytes())
                index.flush()
                done += len(piece)

    def _verified(self, wanted: set[bytes]) -> dict[bytes, int]:
        """Name -> position, of the wanted rows whose bytes are what was written."""
        records = self._records()
        if not len(records):
            return {}
        latest = {bytes(record["name"]): position for position, record in enumerate(records)}
        positions = sorted(position for name, position in latest.items() if name in wanted)
        shape, dtype = self._layout()
        size = _bytes_of(shape, dtype)
        buffer = bytearray(size)
        found: dict[bytes, int] = {}
        with (self.folder / "rows.bin").open("rb") as file:
            for position in positions:
                file.seek(position * size)
                record = records[position]
                if file.readinto(buffer) == size and zlib.crc32(buffer) == record["row_checksum"]:
                    found[bytes(record["name"])] = position
        return found

    def _records(self) -> np.ndarray:
        """The whole records; part of one, which a killed process left at the end, is cut off by the next one.

        Where a whole one is damaged the shelf starts anew: a row's place must not be given away while another process
        reads it.
        """
        try:
            data = (self.folder / "index.bin").read_bytes()
        except FileNotFoundError:
            return np.zeros(0, _RECORD)
        records = np.frombuffer(data[: len(data) // _RECORD.itemsize * _RECORD.itemsize], _RECORD)
        if (_record_checksums(records, 0) == records["record_checksum"]).all() and self._has_layout():
            return records
        self._start_anew()
        return np.zeros(0, _RECORD)

    def _layout(self) -> tuple[tuple[int, ...], np.dtype]:
        layout = msgspec.json.decode((self.folder / "layout.json").read_bytes(), type=_Layout)
        return layout.shape, np.dtype(layout.dtype)

    def _has_layout(self) -> bool:
        try:
            self._layout()
        except (FileNotFoundError, msgspec.DecodeError, TypeError):
            return False
        return True

    def _kept_bytes(self) -> int:
        return (self.folder / "rows.bin").stat().st_size if (self.folder / "rows.bin").exists() else 0

    def _start_anew(self) -> None:
        for name in ("index.bin", "rows.bin", "layout.json"):  # in this order: rows without a record are nothing
            (self.folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the shelf alone. The lock's file is beside the shelf, so that an eviction cannot take it away."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock_file(self.folder).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.folder.mkdir(exist_ok=True)
            yield


def _evict(budget: int, spare: Path) -> None:
    """Remove the shelves that were used longest ago until the others have no more than `budget` bytes."""
    for leftover in spare.parent.glob(".evicted-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    used = {folder: _last_use(folder) for folder in spare.parent.glob("[!.]*-*") if folder.is_dir() and folder != spare}
    sizes = {folder: _size(folder) for folder in used}
    total = sum(sizes.values())
    for folder in sorted(used, key=lambda folder: used[folder]):
        if total <= budget:
            return
        if evict(folder):
            total -= sizes[folder]


def idle(days: float) -> dict[Path, int]:
    """The shelves that nobody used for so long, with their bytes."""
    before = time.time() - days * 24 * 3600
    shelves = (folder for folder in _cache_folder().glob("[!.]*-*") if folder.is_dir() and _last_use(folder) < before)
    return {folder: _size(folder) for folder in shelves}


def evict(folder: Path) -> bool:
    """Remove a shelf, unless somebody writes to it."""
    with _lock_file(folder).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        gone = folder.with_name(f".evicted-{os.getpid()}-{folder.name}")
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except FileNotFoundError:  # another process removes it
        return 0


def _last_use(folder: Path) -> float:
    layout = folder / "layout.json"
    return layout.stat().st_mtime if layout.exists() else 0.0


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _cache_folder() -> Path:
    return Path(os.environ.get("REFIT_CACHE") or ".refit/cache")


def _limit_bytes() -> int:
    limit = number_in_environment("REFIT_CACHE_GB")
    return int((_LIMIT_GB if limit is None else limit) * 1e9)


def _bytes_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _record_checksums(records: np.ndarray, start: int) -> np.ndarray:
    """(n,) uint32 over each record and its position, so that a record at another place is none."""
    plain = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), _RECORD.itemsize)[:, :-4]
    return np.array(
        [zlib.crc32(row.tobytes(), (start + place) & 0xFFFFFFFF) for place, row in enumerate(plain)], dtype=np.uint32
    )
