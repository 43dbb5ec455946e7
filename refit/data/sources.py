"""Data sources: from what the user has (folder, table, archive) to a list of (file, label, split).

    examples = list_examples(Path("data/photos"), unpack_to=Path("data/unpacked"))

Layouts, in the order in which they are recognised:

    photos/labels.csv (or labels.parquet)     a table with path, label and optionally split and group, beside its files
    photos/{train,val,test}/<class>/*         splits given by folders; a missing one is made from train
    photos/<class>/*                          a folder per class
    labels.csv, labels.parquet                a table alone; paths count from its folder
    photos.zip, photos.tar[.gz|.bz2|.xz]      any of the folders above

Where examples are short, a table may hold them: a column of the modality's (`text`) in the place of `path`, in
.csv, .parquet or .jsonl; or a table for each split, {train,val,test}.csv, in a folder. Each is written to a file of its
own, so that whatever comes after knows files only; it is called by its `id`, where the table has that column, else by
the number of its row.

A single file that cannot be used (a stray one, a link out of the source) is an example with an `error`.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from ..errors import DataError
from ..params import SPLITS
from .archives import SUFFIXES, unpack

if TYPE_CHECKING:
    import pandas as pd

_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_TABLES = {**_SPLIT_FOLDERS, "dev": "val"}
_TABLE_SUFFIXES = (".csv", ".parquet", ".jsonl")
_LONGEST_NAME = 180  # bytes
_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}  # what file managers leave behind
_IN_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")


@dataclass(frozen=True)
class Example:
    """One labelled file. `split` is what the source says, if it does; `error` is why it cannot be used, and `rule` the
    one in params.yaml that it then breaks; examples of one `group` (a patient, a device, a burst) stay on one side."""

    path: Path
    label: str
    split: str | None = None
    error: str | None = None
    group: str = ""
    rule: str = "misplaced"


def list_examples(source: Path, unpack_to: Path, column: str | None = None) -> list[Example]:
    """All examples of a source, sorted by path.

    Args:
        unpack_to: for what an archive, or a table that holds examples, has in it.
        column: of a table, which may hold examples themselves; None: tables name files.

    Raises:
        DataError: the source is missing, empty, of an unknown kind, damaged, or may not be read.
    """
    try:
        examples = _examples(source, _Inside(unpack_to, column))
    except PermissionError as error:
        _refuse(error)
    if not examples:
        raise DataError(f"the data source {source} holds no examples; expected a folder of files for each class")
    return sorted(examples, key=lambda example: example.path.as_posix())


@dataclass(frozen=True)
class _Inside:
    """Where examples come from that are no files yet."""

    unpack_to: Path
    column: str | None


def _examples(source: Path, inside: _Inside) -> list[Example]:
    if not source.exists():
        raise DataError(
            f"the data source {source} does not exist; set `data.source` in params.yaml, "
            f"or bring it here with `dvc pull` or `dvc update`"
        )
    if source.is_dir():
        return _from_folder(source, inside)
    if source.name.lower().endswith(_TABLE_SUFFIXES):
        return _from_table(source, inside)
    if source.name.lower().endswith(SUFFIXES):
        unpack(source, inside.unpack_to)
        return _from_folder(_single_folder_inside(inside.unpack_to), inside)
    raise DataError(
        f"the data source {source} is neither a folder nor a table ({', '.join(_TABLE_SUFFIXES)}) "
        f"nor an archive ({', '.join(SUFFIXES)})"
    )


def _from_folder(folder: Path, inside: _Inside) -> list[Example]:
    for name in (f"labels{suffix}" for suffix in _TABLE_SUFFIXES):
        if (folder / name).is_file():
            return _from_table(folder / name, inside)
    children = _children(folder)
    if inside.column is not None and (tables := _split_tables(children)):
        return [example for table, split in tables for example in _from_table(table, inside, split)]
    folders = [child for child in children if child.is_dir()]
    splits = [child for child in folders if child.name.lower() in _SPLIT_FOLDERS]
    if not splits or len(splits) < len(folders):
        _refuse_half_split(folder, folders)
        return list(_from_class_folders(folder, None, root=folder))
    strays = [_row(child, "", None, "not inside a split folder") for child in children if child not in folders]
    return strays + [
        example
        for child in splits
        for example in _from_class_folders(child, _SPLIT_FOLDERS[child.name.lower()], root=folder)
    ]


def _split_tables(children: list[Path]) -> list[tuple[Path, str]]:
    """Tables named by their split, if that is all there is."""
    tables = [child for child in children if child.name.lower().endswith(_TABLE_SUFFIXES)]
    if any(child.is_dir() for child in children) or any(t.stem.lower() not in _SPLIT_TABLES for t in tables):
        return []
    return [(table, _SPLIT_TABLES[table.stem.lower()]) for table in tables]


def _refuse_half_split(folder: Path, folders: list[Path]) -> None:
    """A `train` folder of folders is a split, and what lies beside it would silently become classes.

    A `train` folder of files is a class like any other, beside cars and buses.
    """
    train = next((child for child in folders if child.name.lower() == "train"), None)
    if train is None or not any(child.is_dir() for child in _children(train)):
        return
    others = [_printable(child.name) for child in folders if child.name.lower() not in _SPLIT_FOLDERS]
    raise DataError(
        f"{folder} has the split folder {train.name} and, beside it, {', '.join(others[:5])}"
        f"{f' and {len(others) - 5} more' if len(others) > 5 else ''}; expected either split folders only "
        f"({', '.join(_SPLIT_FOLDERS)}), each with class folders inside, or class folders only"
    )


def _from_class_folders(folder: Path, split: str | None, root: Path) -> Iterator[Example]:
    for path in _files_below(folder):
        parts = path.relative_to(folder).parts
        yield _row(path, parts[0] if len(parts) > 1 else "", split, _why_not(path, len(parts), root))


def _why_not(path: Path, depth: int, root: Path) -> str | None:
    if path.is_dir():
        return "a linked folder, which is not followed; put the folder itself here"
    if depth == 1:
        return "not inside a class folder"
    return "a link that leaves the data source" if _leads_away(path, root) else None


def _row(path: Path, label: str, split: str | None, error: str | None) -> Example:
    """An example whose texts can be printed and stored, whatever bytes the file system has for its name."""
    printable = Path(_printable(str(path)))
    if printable != path:
        error = "the file's name is not UTF-8; rename it"
    return Example(printable, _printable(label), split, error)


def _printable(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "replace")


def _leads_away(path: Path, root: Path) -> bool:
    """Whether a file is a link to somewhere else than the source or a DVC cache.

    With `cache.type symlink` every file that DVC checks out is a link to <cache>/files/md5/ab/<30 more digits>,
    wherever the cache is (`dvc cache dir`, a disk shared by a team). Only content that DVC has stored bears the
    MD5 of its bytes as its path, so no other file, secret or not, can be reached by such a link.
    """
    try:
        target = path.resolve()
        if target.is_relative_to(root.resolve()):
            return False
        return not (path.is_symlink() and _IN_DVC_CACHE.search(target.as_posix()) and target.is_file())
    except (OSError, RuntimeError, ValueError):  # a loop of links, or no path at all
        return True


def _files_below(folder: Path) -> Iterator[Path]:
    """All files, and the linked folders, which os.walk lists among the folders and does not enter."""
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        yield from (Path(parent) / name for name in sorted([*files, *links]) if not _is_junk(name))


def _children(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not _is_junk(entry.name))


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{_printable(str(error.filename))} in the data source cannot be read: {error.strerror}") from None


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _from_table(table: Path, inside: _Inside, split_of_all: str | None = None) -> list[Example]:
    frame = _read_table(table)
    key = inside.column if inside.column is not None and inside.column in frame.columns else "path"
    missing = {key, "label"} - set(frame.columns)
    if missing:
        raise DataError(
            f"{table} has no column {' and no column '.join(sorted(missing))}; it has: "
            f"{', '.join(map(str, frame.columns))}; expected {inside.column or 'path'}, label and optionally split and "
            "group"
        )
    splits = frame["split"] if "split" in frame.columns else [split_of_all] * len(frame)
    groups = frame["group"] if "group" in frame.columns else [None] * len(frame)
    ids = [_text(value) for value in frame["id"]] if key != "path" and "id" in frame.columns else []  # a path is one
    faults = _faults_of_ids(ids) or [None] * len(frame)
    names = list(map(_file_name, ids)) or [f"{row:08d}" for row in range(1, len(frame) + 1)]
    folder = inside.unpack_to / "rows" / table.name
    if key != "path":
        folder.mkdir(parents=True, exist_ok=True)
    found = []
    rows = zip(frame[key], frame["label"], splits, groups, names, faults, strict=True)
    for row, (value, label, split, group, name, fault) in enumerate(rows, start=1):
        if fault:
            example = Example(table, _text(label), error=f"row {row}: {fault}", rule="id")
        elif key == "path":
            example = _table_row(table, str(value), label, split, row)
        else:
            example = _held_row(table, folder / name, value, label, split, row)
        found.append(replace(example, group=_text(group)))
    return found


def _faults_of_ids(ids: list[str]) -> list[str | None]:
    """What is wrong with the id of each row; of rows with one id the first may keep it."""
    rows: dict[str, int] = {}
    for row, name in enumerate(ids, start=1):
        rows.setdefault(name, row)
    return [
        "no id" if not name else f"the id {name[:80]!r} is that of row {rows[name]}" if rows[name] != row else None
        for row, name in enumerate(ids, start=1)
    ]


def _file_name(name: str) -> str:
    """An id as the name of a file: as it is, where that can be; others for others."""
    if not re.fullmatch(r"\w[\w.@ -]*", name):
        name = quote(name, safe="", errors="surrogatepass").replace(".", "%2E")
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{name.encode()[: _LONGEST_NAME // 2].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()}"


def _held_row(table: Path, file: Path, value: object, label: object, split: object, row: int) -> Example:
    """An example that the table holds, written to a file of its own; one in words is called `.txt` as well."""
    if not isinstance(value, str | bytes):
        return Example(table, "", error=f"row {row}: no example")
    content = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    file = file.with_name(f"{file.name}.txt") if isinstance(value, str) else file
    file.write_bytes(content)
    return _labelled(file, label, split, row)


def _read_table(table: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        if table.suffix.lower() == ".csv":
            return pd.read_csv(table, dtype=str, keep_default_na=False)
        if table.suffix.lower() == ".jsonl":
            return pd.read_json(table, lines=True, dtype=False, convert_dates=False)
        return pd.read_parquet(table)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read as a table: {' '.join(str(error).split())}") from None


def _table_row(table: Path, path: str, label: object, split: object, row: int) -> Example:
    location = PurePosixPath(path)
    target = table.parent / path
    climbs = os.path.normpath(path).split("/")[0] == ".."
    if not path or location.is_absolute() or climbs or _leads_away(target, table.parent):
        return Example(table, _text(label), error=f"row {row}: path {path!r} is empty or leaves the table's folder")
    return _labelled(target, label, split, row)


def _text(label: object) -> str:
    return "" if label is None or label != label else str(label)


def _labelled(target: Path, label: object, split: object, row: int) -> Example:
    text = _text(label)
    if not text:
        return Example(target, "", error=f"row {row}: no label")
    if split is None or split != split or split == "":
        return Example(target, text)
    known = _SPLIT_FOLDERS.get(str(split).lower())
    if known is None:
        return Example(target, text, error=f"row {row}: split {split!r} is not one of {', '.join(SPLITS)}")
    return Example(target, text, split=known)


def _has_structure(entry: Path) -> bool:
    return entry.is_dir() or entry.name.lower().endswith(_TABLE_SUFFIXES)


def _single_folder_inside(folder: Path) -> Path:
    """Archives often wrap all in one folder; step into it, unless it is itself a class or a split."""
    children = [entry for entry in folder.iterdir() if not _is_junk(entry.name)]
    if len(children) == 1 and children[0].is_dir() and any(map(_has_structure, children[0].iterdir())):
        return children[0]
    return folder
