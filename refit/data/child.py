"""The process that looks at hostile files: `python -m refit.data.child DESCRIPTOR MODALITY MEBIBYTES inspect|excerpt`.

It answers each path that arrives with what `files.inspect` or `files.excerpt` says, in JSON, until its other end is
closed. It imports no more than that needs, has none of its parent's environment but paths, and may take so much memory
and no more.
"""

import hashlib
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from .. import modality
from ..modality.contract import Files, Inspection

NO_MEMORY = "not enough memory to decode it"
AGAIN = "the next `refit retrain` or `validate` tries again, or `dvc repro -f ingest`"


@dataclass(frozen=True)
class Excerpt:
    """What a page shows of a file; nothing of one that cannot be read."""

    sha256: str = ""  # of the bytes that were read
    shown: str = ""  # a data: URI, or words


def main() -> None:
    descriptor, modality_name, mebibytes, work = sys.argv[1:]
    connection = Connection(int(descriptor))
    files = modality.files(modality_name)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + int(mebibytes) * 2**20
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    while True:
        try:
            path = connection.recv_bytes().decode("utf-8", "surrogateescape")
        except EOFError:
            return
        answer = (
            excerpt(files, Path(path)) if work == "excerpt" else inspect(files.inspect, files.INSPECTED, Path(path))
        )
        connection.send_bytes(msgspec.json.encode(answer))


def inspect(look: Callable[[Path], Inspection], kind: type[Inspection], path: Path) -> Inspection:
    """What a modality says of a file. Want of memory and a file that cannot be read are accidents of this time."""
    try:
        return look(path)
    except MemoryError:
        return accident(kind, NO_MEMORY)
    except OSError as error:
        return accident(kind, f"cannot be read: {error.strerror or type(error).__name__}")


def excerpt(files: Files, path: Path) -> Excerpt:
    """What a page shows of a file that was good when it was inspected."""
    try:
        content = path.read_bytes()
        return Excerpt(hashlib.sha256(content).hexdigest(), files.excerpt(content))
    except (MemoryError, OSError, ValueError):
        return Excerpt()


def accident(kind: type[Inspection], reason: str) -> Inspection:
    """Of this time and machine only, not of the file."""
    return kind(error=f"{reason}; {AGAIN}", rule="unreadable", is_accident=True)


if __name__ == "__main__":
    main()
