"""Unpacking an archive that nobody has looked into: bounded in bytes, in ratio and in members.

    unpack(Path("data/photos.zip"), Path("data/unpacked"))

Only regular files are unpacked, and only below the folder. A zip names its sizes before anything is written. A tar
does not, and its compression may make a terabyte out of a megabyte: it is read once, and refused at the first byte
beyond the bound. Whatever goes wrong, nothing of the archive stays unpacked.
"""

import bz2
import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from ..errors import DataError

SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
"""Of names of archives."""

MAX_UNPACKED_BYTES = 256 * 2**30
"""ImageNet's training set, the largest that is handed around as one archive, has 138 GiB."""

MAX_RATIO = 100
"""Times its own size. Photographs do not shrink (1.0 to 1.1), bare bitmaps a few times; zeros, the stuff of bombs,
1,032 times in a zip and far more in a tar.xz."""

MAX_MEMBERS = 2_000_000
"""Each costs 0.5 kB (tar) or 0.65 kB (zip) of memory here, whatever it holds. ImageNet's training set has 1.3 million
images."""

_NEVER_A_BOMB = 2**20  # bytes: a tar of one small file is 10 kB of zeros, which shrink 70 times
_MAX_HEADER = 2**20  # tarfile reads a long name at once, and its length is what the archive says
_WAY_OUT = "unpack it yourself, if it is sane, and name the folder in `data.source`"
_COMPRESSIONS: dict[bytes, Callable[[Path], IO[bytes]]] = {
    b"\x1f\x8b": gzip.open,  # type: ignore[dict-item]
    b"BZh": bz2.open,  # type: ignore[dict-item]
    b"\xfd7zXZ\x00": lzma.open,
}
_DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
)


def unpack(archive: Path, target: Path) -> None:
    """Unpack the regular files of a zip or tar into `target`, which an archive that is refused leaves no more.

    Raises:
        DataError: damaged, locked, or beyond a limit.
    """
    target.mkdir(parents=True, exist_ok=True)
    with _whole_or_not_at_all(archive, target):
        limits = _Limits.of(archive)
        if archive.suffix.lower() == ".zip":
            _unpack_zip(archive, target, limits)
        else:
            _unpack_tar(archive, target, limits)


@contextmanager
def _whole_or_not_at_all(archive: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError):  # a full disk, or a name that is a file and a folder at once
            raise DataError(f"the archive {archive} cannot be unpacked: {error}") from None
        if isinstance(error, MemoryError):
            raise DataError(f"there is not enough memory to unpack {archive}; {_WAY_OUT}") from None
        if isinstance(error, _DAMAGED):
            raise DataError(f"the archive {archive} is damaged or locked: {error}") from None
        raise


@dataclass(frozen=True)
class _Limits:
    """What one archive may hold; the bytes follow from its size."""

    archive: Path
    packed_bytes: int
    unpacked_bytes: int

    @classmethod
    def of(cls, archive: Path) -> "_Limits":
        packed = archive.stat().st_size
        return cls(archive, packed, min(MAX_UNPACKED_BYTES, max(MAX_RATIO * packed, _NEVER_A_BOMB)))

    def check(self, num_members: int, num_bytes: int) -> None:
        if num_members > MAX_MEMBERS:
            self.refuse(f"holds more than {MAX_MEMBERS:,} members")
        if num_bytes > self.unpacked_bytes:
            self.refuse(
                f"of {self.packed_bytes:,} bytes would unpack to {num_bytes:,} or more; allowed are "
                f"{self.unpacked_bytes:,} ({MAX_RATIO} times its size, at most {MAX_UNPACKED_BYTES // 2**30} GiB)"
            )

    def refuse(self, reason: str) -> None:
        raise DataError(f"the archive {self.archive} {reason}; {_WAY_OUT}")


def _unpack_zip(archive: Path, target: Path, limits: _Limits) -> None:
    with zipfile.ZipFile(archive) as packed:
        entries = packed.infolist()
        limits.check(len(entries), sum(entry.file_size for entry in entries))  # no more than that is ever written
        for entry in entries:
            if not entry.is_dir() and not _leaves(entry.filename):
                packed.extract(entry, target)


def _unpack_tar(archive: Path, target: Path, limits: _Limits) -> None:
    num_members = num_bytes = 0
    with _decompressed(archive) as stream, tarfile.TarFile(fileobj=_Metered(stream, limits)) as packed:  # type: ignore[arg-type]
        while (member := packed.next()) is not None:
            num_members, num_bytes = num_members + 1, num_bytes + max(member.size, 0)
            limits.check(num_members, num_bytes)
            if member.isfile() and not _leaves(member.name):
                file = target / member.name
                file.parent.mkdir(parents=True, exist_ok=True)
                # Not `extract`, whose filters Python 3.11.0 to 3.11.3 lack.
                with cast("IO[bytes]", packed.extractfile(member)) as content, file.open("wb") as unpacked:
                    shutil.copyfileobj(content, unpacked)
        stream.seek(packed.offset)  # tarfile takes a header that it cannot read for the end
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"no member where one begins, at byte {packed.offset:,}")


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(6)
    opener = next((opener for magic, opener in _COMPRESSIONS.items() if start.startswith(magic)), None)
    return archive.open("rb") if opener is None else opener(archive)


class _Metered:
    """The decompressed bytes, as far as the limits go: also those that no member counts."""

    def __init__(self, stream: IO[bytes], limits: _Limits) -> None:
        self._stream, self._limits = stream, limits

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            self._limits.refuse(f"has a header of {size:,} bytes")
        self._limits.check(0, self.tell() + size)
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        self._limits.check(0, position)
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()


def _leaves(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts
