"""Every layout of a data source, and every way in which one can be wrong."""

import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from tasks.errors import DataError
from tasks.sources import list_examples

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
    ],
)
def test_a_damaged_table_or_archive(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        list_examples(tmp_path / name, tmp_path / "unpacked")
