"""Data sources: from what the user has (folder, table, archive) to a list of (file, label, split).

    examples = list_examples(Path("data/photos"), unpack_to=Path("data/unpacked"))

Layouts, in the order in which they are recognised:

    photos/labels.csv (or labels.parquet)     a table with path, label and optionally split, beside its images
    photos/{train,val,test}/<class>/*         splits given by folders; a missing one is made from train
    photos/<class>/*                          a folder per class
    labels.csv, labels.parquet                a table alone; paths count from its folder
    photos.zip, photos.tar[.gz|.bz2|.xz]      any of the folders above
"""

import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tasks.errors import DataError
from tasks.params import SPLITS

if TYPE_CHECKING:
    import pandas as pd

_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_TABLE_SUFFIXES = (".csv", ".parquet")
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}  # what file managers leave behind
_MAX_UNPACKED_BYTES = 1 << 40


@dataclass(frozen=True)
class Example:
    """One labelled file. `split` is what the source says, if it does; `error` is why it cannot be used."""

    path: Path
    label: str
    split: str | None = None
    error: str | None = None


def list_examples(source: Path, unpack_to: Path) -> list[Example]:
    """All examples of a source, sorted by path.

    Raises:
        DataError: the source is missing, empty, of an unknown kind, or damaged.
    """
    if not source.exists():
        raise DataError(
            f"the data source {source} does not exist; set `data.source` in params.yaml, "
            f"or bring it here with `dvc pull` or `dvc update`"
        )
    if source.is_dir():
        examples = _from_folder(source)
    elif source.name.lower().endswith(_TABLE_SUFFIXES):
        examples = _from_table(source)
    elif source.name.lower().endswith(_ARCHIVE_SUFFIXES):
        _unpack(source, unpack_to)
        examples = _from_folder(_single_folder_inside(unpack_to))
    else:
        raise DataError(
            f"the data source {source} is neither a folder nor a table ({', '.join(_TABLE_SUFFIXES)}) "
            f"nor an archive ({', '.join(_ARCHIVE_SUFFIXES)})"
        )
    if not examples:
        raise DataError(f"the data source {source} holds no examples; expected a folder of files for each class")
    return sorted(examples, key=lambda example: example.path.as_posix())


def _from_folder(folder: Path) -> list[Example]:
    for name in ("labels.csv", "labels.parquet"):
        if (folder / name).is_file():
            return _from_table(folder / name)
    children = sorted(entry for entry in folder.iterdir() if not _is_junk(entry.name))
    if children and all(entry.is_dir() and entry.name.lower() in _SPLIT_FOLDERS for entry in children):
        return [
            example
            for child in children
            for example in _from_class_folders(child, _SPLIT_FOLDERS[child.name.lower()], root=folder)
        ]
    return list(_from_class_folders(folder, None, root=folder))


def _from_class_folders(folder: Path, split: str | None, root: Path) -> Iterator[Example]:
    for path in _files_below(folder):
        parts = path.relative_to(folder).parts
        if len(parts) == 1:
            yield Example(path, label="", split=split, error="not inside a class folder")
        elif not path.resolve().is_relative_to(root.resolve()):
            yield Example(path, label=parts[0], split=split, error="a link that leaves the data source")
        else:
            yield Example(path, label=parts[0], split=split)


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        yield from (Path(parent) / name for name in sorted(files) if not _is_junk(name))


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _from_table(table: Path) -> list[Example]:
    frame = _read_table(table)
    missing = {"path", "label"} - set(frame.columns)
    if missing:
        raise DataError(
            f"{table} has no column {' and no column '.join(sorted(missing))}; it has: "
            f"{', '.join(map(str, frame.columns))}; expected path, label and optionally split"
        )
    splits = frame["split"] if "split" in frame.columns else [None] * len(frame)
    return [
        _table_row(table, str(path), label, split, row)
        for row, (path, label, split) in enumerate(zip(frame["path"], frame["label"], splits, strict=True), start=1)
    ]


def _read_table(table: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        if table.suffix.lower() == ".csv":
            return pd.read_csv(table, dtype=str, keep_default_na=False)
        return pd.read_parquet(table)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read as a table: {' '.join(str(error).split())}") from None


def _table_row(table: Path, path: str, label: object, split: object, row: int) -> Example:
    location = PurePosixPath(path)
    target = table.parent / path
    text = "" if label is None or label != label else str(label)
    if not path or location.is_absolute() or not target.resolve().is_relative_to(table.parent.resolve()):
        return Example(table, text, error=f"row {row}: path {path!r} is empty or leaves the table's folder")
    if not text:
        return Example(target, "", error=f"row {row}: no label")
    if split is None or split != split or split == "":
        return Example(target, text)
    known = _SPLIT_FOLDERS.get(str(split).lower())
    if known is None:
        return Example(target, text, error=f"row {row}: split {split!r} is not one of {', '.join(SPLITS)}")
    return Example(target, text, split=known)


def _unpack(archive: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as packed:
                _refuse_if_too_large(archive, sum(entry.file_size for entry in packed.infolist()))
                for entry in packed.infolist():
                    if not entry.is_dir() and not _leaves(entry.filename):
                        packed.extract(entry, target)
        else:
            with tarfile.open(archive) as packed_tar:
                members = [member for member in packed_tar if member.isfile() and not _leaves(member.name)]
                _refuse_if_too_large(archive, sum(member.size for member in members))
                packed_tar.extractall(target, members=members, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, zipfile.LargeZipFile) as error:
        raise DataError(f"the archive {archive} is damaged or locked: {error}") from None


def _leaves(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def _refuse_if_too_large(archive: Path, num_bytes: int) -> None:
    if num_bytes > _MAX_UNPACKED_BYTES:
        raise DataError(f"the archive {archive} would unpack to {num_bytes:,} bytes; unpack it yourself if it is sane")


def _single_folder_inside(folder: Path) -> Path:
    """Archives often wrap all in one folder; step into it, unless it is itself a class or a split."""
    children = [entry for entry in folder.iterdir() if not _is_junk(entry.name)]
    if len(children) == 1 and children[0].is_dir() and any(entry.is_dir() for entry in children[0].iterdir()):
        return children[0]
    return folder
