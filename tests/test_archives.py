"""Archives that would fill the disk or the memory are refused, and leave nothing behind."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from refit.data import archives
from refit.data.archives import unpack
from refit.errors import DataError

ZEROS = bytes(2**20)


def zip_of(archive: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return archive


def tar_of(archive: Path, files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    mode = f"w:{archive.suffix[1:]}" if archive.suffix != ".tar" else "w"
    with tarfile.open(archive, mode) as packed:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), kind
            packed.addfile(member, io.BytesIO(content))
    return archive


@pytest.fixture
def most_unpacked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many bytes lay unpacked when they were removed."""
    found: list[int] = []
    original = archives.shutil.rmtree

    def counted(folder: Path, ignore_errors: bool) -> None:
        found.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
        original(folder, ignore_errors)

    monkeypatch.setattr(archives.shutil, "rmtree", counted)
    return lambda: max(found)


def test_a_zip_bomb_of_42_kilobytes_is_refused_before_anything_is_unpacked(
    tmp_path: Path, most_unpacked: Callable[[], int]
) -> None:
    archive = zip_of(tmp_path / "bomb.zip", {f"cat/{number}.bmp": ZEROS for number in range(41)})
    assert archive.stat().st_size < 50_000
    with pytest.raises(DataError, match=r"bomb\.zip of 4.,... bytes would unpack to 42,991,616 .*name the folder in"):
        unpack(archive, tmp_path / "unpacked")
    assert most_unpacked() == 0
    assert not (tmp_path / "unpacked").exists()


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_tar_bomb_is_refused_while_it_is_read(tmp_path: Path, most_unpacked: Callable[[], int], suffix: str) -> None:
    archive = tar_of(tmp_path / f"bomb.tar.{suffix}", {f"cat/{number}.bmp": ZEROS for number in range(20)})
    limit = max(archives.MAX_RATIO * archive.stat().st_size, 2**20)
    assert limit < 20 * len(ZEROS)
    with pytest.raises(DataError, match=f"allowed are {limit:,} .100 times its size"):
        unpack(archive, tmp_path / "unpacked")
    assert most_unpacked() <= limit
    assert not (tmp_path / "unpacked").exists()


@pytest.mark.parametrize("kind", [b"?", tarfile.SYMTYPE, tarfile.DIRTYPE])
def test_what_is_not_unpacked_counts_too(tmp_path: Path, kind: bytes) -> None:
    archive = tar_of(tmp_path / "bomb.tar.gz", {"skipped": ZEROS * 20}, kind)
    with pytest.raises(DataError, match="would unpack to"):
        unpack(archive, tmp_path / "unpacked")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_name_of_megabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    archive = tar_of(tmp_path / "bomb.tar", {"x": bytes(2**21), "cat/a.png": b"x"}, kind)
    with pytest.raises(DataError, match="has a header of 2,097,152 bytes; unpack it yourself"):
        unpack(archive, tmp_path / "unpacked")


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_an_archive_of_too_many_members_is_refused(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    files = {f"cat/{number}.png": b"x" for number in range(4)}
    archive = make(tmp_path / f"many.{make.__name__[:3]}", files)
    with pytest.raises(DataError, match=r"many\.(zip|tar) holds more than 3 members"):
        unpack(archive, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
    unpack(make(tmp_path / f"few.{make.__name__[:3]}", dict(list(files.items())[:3])), tmp_path / "unpacked")
    assert len(list((tmp_path / "unpacked" / "cat").iterdir())) == 3


def test_a_sparse_file_counts_as_what_it_claims_to_be(tmp_path: Path) -> None:
    archive = tmp_path / "sparse.tar"
    headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,0"}
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as packed:
        member = tarfile.TarInfo("cat/a.png")
        member.pax_headers = headers
        packed.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match=r"would unpack to 1,099,511,627,776"):
        unpack(archive, tmp_path / "unpacked")


@pytest.mark.parametrize("hidden_in", ["names", "a sparse file"])
def test_bytes_that_no_member_counts_are_counted(tmp_path: Path, hidden_in: str) -> None:
    archive = tmp_path / "bomb.tar.gz"
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as packed:
        for number in range(20):
            member = tarfile.TarInfo(f"cat/{number}.png")
            if hidden_in == "names":
                member.pax_headers = {"comment": "x" * (2**20 - 2000)}
                packed.addfile(member)
            else:
                member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": "0", "GNU.sparse.map": "0,0"}
                member.size = len(ZEROS)
                packed.addfile(member, io.BytesIO(ZEROS))
    with pytest.raises(DataError, match="would unpack to"):
        unpack(archive, tmp_path / "unpacked")


@pytest.mark.parametrize("start", [20_000, 5 * (5120 + 512)], ids=["in a file", "in a header"])
def test_a_damaged_archive_leaves_nothing_unpacked(tmp_path: Path, start: int) -> None:
    archive = tar_of(tmp_path / "cut.tar", {f"cat/{number}.png": bytes(5000) for number in range(9)})
    archive.write_bytes(archive.read_bytes()[: start + 100])
    with pytest.raises(DataError, match="damaged or locked"):
        unpack(archive, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_want_of_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(zipfile.ZipFile, "extract", short)
    with pytest.raises(DataError, match=r"not enough memory to unpack .*a\.zip"):
        unpack(zip_of(tmp_path / "a.zip", {"cat/a.png": b"x"}), tmp_path / "unpacked")
