"""How every output of Refit is written: whole, or not at all.

    with publishing(Path("models/model.json")) as partial:
        partial.write_text(...)

The bytes go into a hidden file beside the target, are forced to disk, and take the target's name in one
step; the folder entry is forced to disk too. A reader, or a crash, finds the old file, no file, or the new
file. Serialisation is canonical (sorted keys, fixed layout), since the same content must give the same bytes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import WorkspaceError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Give a path to write to, a file or a folder; on a clean exit it becomes `target`, otherwise it disappears.

    Raises:
        WorkspaceError: the folder cannot be written (read-only, no space, not a folder).
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _force_to_disk(partial)
        partial.replace(target)
        _force_to_disk(target.parent)
    except (OSError, _safetensor_error()) as error:
        reason = getattr(error, "strerror", None) or error
        raise WorkspaceError(
            f"cannot write {target}: {reason}; make {target.parent}/ writable (or free some space) "
            "and run again; nothing was half written"
        ) from error
    finally:
        with suppress(OSError):  # of a folder that cannot be written at all, which is being reported already
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def _safetensor_error() -> type[Exception]:
    """What safetensors raises where others raise OSError. Imported once something has gone wrong, not before."""
    from safetensors import SafetensorError

    return SafetensorError


def publish_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8."""
    with publishing(target) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def publish_json(target: Path, content: Any) -> None:
    """Write `content` as canonical, readable JSON; NaN and infinity are refused, since JSON has none."""
    publish_text(target, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def publish_table(target: Path, table: "pd.DataFrame") -> None:
    """Write a table as Parquet (zstd), or as CSV when the target's name ends in .csv."""
    with publishing(target) as partial:
        if target.suffix == ".csv":
            table.to_csv(partial, index=False, lineterminator="\n")
        else:
            table.to_parquet(partial, index=False, compression="zstd")


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Any) -> str:
    """The SHA-256 of `content` in canonical compact JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
