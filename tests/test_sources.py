"""Every layout of a data source, and every way in which one can be wrong."""

import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from refit.data.sources import list_examples
from refit.errors import DataError

from .conftest import draw, write_image_folder


def summary(source: Path, unpack_to: Path | None = None) -> set[tuple[str, str, str | None]]:
    examples = list_examples(source, unpack_to or source.parent / "unpacked")
    return {(example.path.name, example.label, example.split) for example in examples if example.error is None}


def test_class_folders(tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "photos", per_class=2)
    (source / "cat" / "deeper").mkdir()
    draw(1).save(source / "cat" / "deeper" / "x.png")
    (source / "cat" / ".hidden").write_text("")
    (source / "cat" / "Thumbs.db").write_text("")
    names = {(name, label) for name, label, _ in summary(source)}
    assert names == {("000.png", "cat"), ("001.png", "cat"), ("x.png", "cat"), ("000.png", "dog"), ("001.png", "dog")}


def test_split_folders(tmp_path: Path) -> None:
    for split in ("train", "validation", "Test"):
        write_image_folder(tmp_path / "photos" / split, per_class=1)
    assert {split for _, _, split in summary(tmp_path / "photos")} == {"train", "val", "test"}


def test_a_file_beside_split_folders_is_an_error_of_that_row(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for split in ("train", "test"):
        write_image_folder(source / split, per_class=1)
    (source / "README.md").write_text("how these were taken")
    examples = list_examples(source, tmp_path / "u")
    assert {(example.split, example.error) for example in examples} == {
        (None, "not inside a split folder"), ("train", None), ("test", None)
    }  # fmt: skip


def test_a_train_folder_beside_other_folders_is_refused(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "photos" / "train", per_class=1)
    write_image_folder(tmp_path / "photos", ("raw",), per_class=1)
    with pytest.raises(DataError, match="has the split folder train and, beside it, raw; expected either split folder"):
        list_examples(tmp_path / "photos", tmp_path / "u")


def test_train_may_be_a_class(tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "photos", ("bus", "train"), per_class=1)
    assert {(label, split) for _, label, split in summary(source)} == {("bus", None), ("train", None)}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_table(tmp_path: Path, suffix: str, inside: bool) -> None:
    folder = write_image_folder(tmp_path / "photos", per_class=1)
    table = pd.DataFrame({"path": ["cat/000.png", "dog/000.png"], "label": ["c", "007"], "split": ["test", ""]})
    file = folder / f"labels{suffix}"
    table.to_csv(file, index=False) if suffix == ".csv" else table.to_parquet(file)
    found = list_examples(folder if inside else file, tmp_path / "unpacked")
    assert [(example.label, example.split) for example in found] == [("c", "test"), ("007", None)]
    assert all(example.path.is_file() for example in found)


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_archive(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    folder = write_image_folder(tmp_path / "photos", per_class=2)
    archive = tmp_path / f"photos.{suffix}"
    names = {file: file.relative_to(tmp_path if wrapped else folder) for file in sorted(folder.rglob("*.png"))}
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for file, name in names.items():
                packed.write(file, name)
    else:
        with tarfile.open(archive, "w:gz" if suffix == "tar.gz" else "w") as packed_tar:
            for file, name in names.items():
                packed_tar.add(file, name)
    assert summary(archive, tmp_path / "unpacked") == summary(folder)


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("../../escaped.png", b"x")
        packed.writestr("/tmp/escaped-absolute.png", b"x")
        packed.writestr("cat/a.png", b"x")
    tar = tmp_path / "evil.tar"
    with tarfile.open(tar, "w") as packed_tar:
        for name in ("../escaped.png", "cat/b.png"):
            packed_tar.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed_tar.addfile(link)
    for source in (archive, tar):
        unpacked = tmp_path / f"unpacked-{source.suffix}"
        found = list_examples(source, unpacked / "in")
        assert len(found) == 1
        assert not list(tmp_path.rglob("escaped*"))
        assert not list(unpacked.rglob("link.png"))


def test_a_link_out_of_the_source_is_an_error_of_that_row(tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "photos", per_class=1)
    (tmp_path / "secret.png").write_bytes(b"x")
    (source / "cat" / "leak.png").symlink_to(tmp_path / "secret.png")
    errors = {example.path.name: example.error for example in list_examples(source, tmp_path / "u")}
    assert errors["leak.png"] == "a link that leaves the data source"
    assert errors["000.png"] is None


def link_to_dvc_cache(file: Path, cache: Path) -> None:
    """What DVC leaves with `cache.type symlink`."""
    stored = cache / "files" / "md5" / "ab" / f"{abs(hash(file.name)):030x}"
    stored.parent.mkdir(parents=True, exist_ok=True)
    file.rename(stored)
    file.symlink_to(stored)


@pytest.mark.parametrize("table", [True, False])
def test_links_into_a_dvc_cache_are_followed(tmp_path: Path, table: bool) -> None:
    source = write_image_folder(tmp_path / "photos", per_class=1)
    for file in source.rglob("*.png"):
        link_to_dvc_cache(file, tmp_path / "cache")
    if table:
        pd.DataFrame({"path": ["cat/000.png"], "label": ["c"]}).to_csv(source / "labels.csv", index=False)
    assert [example.error for example in list_examples(source, tmp_path / "u")] == [None] * (1 if table else 2)


def test_a_path_out_of_the_table_is_refused_even_into_a_dvc_cache(tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "photos", per_class=1)
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"x")
    link_to_dvc_cache(outside, tmp_path / "cache")
    pd.DataFrame({"path": ["../outside.png"], "label": ["c"]}).to_csv(source / "labels.csv", index=False)
    assert "leaves the table's folder" in str(list_examples(source, tmp_path / "u")[0].error)


def test_links_that_lead_nowhere_and_linked_folders_are_errors_of_their_rows(tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "photos", per_class=1)
    write_image_folder(tmp_path / "elsewhere", per_class=1)
    (source / "eel").symlink_to(tmp_path / "elsewhere" / "cat")
    (source / "cat" / "loop.png").symlink_to(source / "cat" / "loop.png")
    errors = {example.path.name: example.error for example in list_examples(source, tmp_path / "u")}
    assert errors == {
        "000.png": None,
        "eel": "a linked folder, which is not followed; put the folder itself here",
        "loop.png": "a link that leaves the data source",
    }


def test_a_folder_that_cannot_be_read_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_image_folder(tmp_path / "photos", per_class=1)
    original = os.scandir

    def scandir(folder: Any) -> Any:
        if Path(folder).name == "dog":
            raise PermissionError(13, "Permission denied", str(folder))
        return original(folder)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read any folder
    with pytest.raises(DataError, match=r"photos/dog in the data source cannot be read: Permission denied"):
        list_examples(source, tmp_path / "u")


def test_a_name_that_is_not_utf8_is_an_error_of_that_row(tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "photos", per_class=1)
    folder = os.fsencode(source) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102
    (source / "cat" / "000.png").rename(os.fsdecode(folder + b"/\xff.png"))
    bad = next(example for example in list_examples(source, tmp_path / "u") if example.error)
    assert (bad.path.name, bad.label, bad.error) == ("�.png", "caf�", "the file's name is not UTF-8; rename it")


def test_rows_of_a_table_that_cannot_be_used(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "photos", per_class=1)
    rows = [
        ("../x.png", "c", ""),
        ("/etc/passwd", "c", ""),
        ("", "c", ""),
        ("cat/000.png", "", ""),
        ("dog/000.png", "d", "dev"),
    ]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "labels.csv", index=False)
    errors = sorted(str(example.error) for example in list_examples(folder, tmp_path / "u"))
    assert [error.split(":")[0] for error in errors] == ["row 1", "row 2", "row 3", "row 4", "row 5"]
    assert "split 'dev' is not one of train, val, test" in errors[4]


def test_a_stray_image_is_an_error_of_that_row(tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "photos", per_class=1)
    draw(5).save(source / "stray.png")
    errors = {example.path.name: example.error for example in list_examples(source, tmp_path / "u")}
    assert errors["stray.png"] == "not inside a class folder"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda source: None, "does not exist; set `data.source`"),
        (lambda source: source.mkdir(), "holds no examples"),
        (lambda source: source.write_text("x"), "neither a folder nor a table"),
    ],
)
def test_a_source_that_is_none(tmp_path: Path, make: object, expected: str) -> None:
    source = tmp_path / "photos"
    make(source)  # type: ignore[operator]
    with pytest.raises(DataError, match=expected):
        list_examples(source, tmp_path / "unpacked")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"file,label\nx,y\n", "has no column path; it has: file, label"),
        ("a.csv", b"", "cannot be read as a table"),
        ("a.parquet", b"PAR1 no", "cannot be read as a table"),
        ("a.zip", b"PK no", "is damaged or locked"),
        ("a.tar", b"no", "is damaged or locked"),
        ("a.tar.xz", b"\xfd7zXZ\x00" + b"no" * 40, "is damaged or locked"),
    ],
)
def test_a_damaged_table_or_archive(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        list_examples(tmp_path / name, tmp_path / "unpacked")


def test_an_archive_whose_data_is_damaged(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("cat/a.png", bytes(range(256)) * 8)
    content = bytearray(archive.read_bytes())
    content[45:60] = b"\xff" * 15  # inside the compressed data
    archive.write_bytes(content)
    with pytest.raises(DataError, match="is damaged or locked"):
        list_examples(archive, tmp_path / "unpacked")


def test_a_name_that_is_both_a_file_and_a_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("cat", "x")
        packed.writestr("cat/a.png", "x")
    with pytest.raises(DataError, match=r"a\.zip cannot be unpacked: .*cat"):
        list_examples(tmp_path / "a.zip", tmp_path / "unpacked")
