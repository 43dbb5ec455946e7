"""The manifest: one row per image, a split that never moves, and no image that can stop the run."""

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, features
from scipy.stats import chisquare
from sklearn.datasets import load_digits

from refit.data import inspection
from refit.data.children import inspect_in_children
from refit.data.sources import Example, list_examples
from refit.modality.image.duplicates import hashes_of
from refit.modality.image.files import inspect
from refit.params import SPLITS, Data, Params, load_params
from tasks import ingest
from tasks.ingest import build_manifest, split_of
from tasks.validate import judge

from .conftest import draw, write_image_folder


def manifest_of(source: Path, data: Data) -> pd.DataFrame:
    return build_manifest(list_examples(source, source.parent / "unpacked"), data)


def test_the_stage_writes_the_promised_columns(images: Path, edit_params: Callable[..., Params]) -> None:
    edit_params(data__source="data/images")
    ingest.main()
    manifest = pd.read_parquet("data/manifest.parquet")
    judge(manifest, load_params())  # refuses any other columns
    assert len(manifest) == 24
    assert manifest["path"].iloc[0] == "data/images/cat/000.png"
    row = manifest.iloc[0]
    assert (row["width"], row["height"], row["mode"], row["format"]) == (24, 20, "RGB", "PNG")
    assert manifest["error"].isna().all()


def test_an_image_never_changes_side_when_others_come(images: Path) -> None:
    data = load_params().data
    before = manifest_of(images, data).set_index("path")["split"]
    write_image_folder(images, ("cat", "dog", "ant"), per_class=40)
    after = manifest_of(images, data).set_index("path")["split"]
    assert (after[before.index] == before).all()
    assert set(after) == {"train", "val", "test"}


def test_a_group_stays_on_one_side(images: Path) -> None:
    data = load_params().data
    examples = [replace(example, group=f"patient {n % 5}") for n, example in enumerate(list_examples(images, images))]
    manifest = build_manifest(examples, data)
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
    assert len({split_of(f"{n:064x}", "a writer", None, set(), data) for n in range(50)}) == 1


def test_a_table_may_name_groups(images: Path) -> None:
    lines = [f"cat/{n:03d}.png,cat,{'p1' if n < 6 else ''}" for n in range(12)]
    (images / "labels.csv").write_text("path,label,group\n" + "\n".join(lines))
    manifest = manifest_of(images, load_params().data)
    assert list(manifest["group"]) == ["p1"] * 6 + [""] * 6
    assert manifest["split"].head(6).nunique() == 1


@pytest.mark.parametrize("looks", ["smooth", "digits"])
def test_no_class_is_skewed_by_its_looks(looks: str) -> None:
    """Pearson's chi-square of each class against the shares that are asked for, by the bytes of real small pictures."""
    data = load_params().data
    shares = np.array([1 - data.test_fraction - data.val_fraction, data.val_fraction, data.test_fraction])
    pictures, classes = digits() if looks == "digits" else smooth()
    for label in np.unique(classes):
        sides = [
            split_of(hashlib.sha256(picture.tobytes()).hexdigest(), "", None, set(), data)
            for picture in pictures[classes == label]
        ]
        counts = np.array([sides.count(side) for side in SPLITS])
        assert chisquare(counts, shares * counts.sum()).pvalue > 0.01, label


def digits() -> tuple[np.ndarray, np.ndarray]:
    images, targets = load_digits(return_X_y=True)
    return images.astype(np.uint8), targets


def smooth() -> tuple[np.ndarray, np.ndarray]:
    """Classes of pictures that differ in a gray level only."""
    levels = np.random.default_rng(5).normal(0, 2, (3000, 8, 8)) + np.repeat([60, 120, 180], 1000)[:, None, None]
    return levels.astype(np.uint8), np.repeat([0, 1, 2], 1000)


def test_the_shares_are_those_asked_for() -> None:
    data = Data(modality="image", source="x", test_fraction=0.3, val_fraction=0.2)
    sides = [split_of(f"{number:064x}", "", None, set(), data) for number in range(4000)]
    assert abs(sides.count("test") / 4000 - 0.3) < 0.03
    assert abs(sides.count("val") / 4000 - 0.2) < 0.03


@pytest.mark.parametrize(
    ("given_splits", "given", "allowed"),
    [
        ({"train", "val", "test"}, "train", {"train"}),
        ({"train", "val", "test"}, "test", {"test"}),
        ({"train", "test"}, "train", {"train", "val"}),
        ({"train", "val"}, "train", {"train", "test"}),
        ({"train", "val"}, "val", {"val"}),
    ],
)
def test_given_splits_are_kept_and_missing_ones_come_out_of_train(
    given_splits: set[str], given: str, allowed: set[str]
) -> None:
    data = Data(modality="image", source="x", test_fraction=0.3, val_fraction=0.3)
    assert {split_of(f"{number:064x}", "", given, given_splits, data) for number in range(500)} == allowed


def bad_files(folder: Path) -> dict[str, str]:
    """Files that are no usable image, and what is to be said of each."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    draw(3, 200, 200).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    contents = {
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"these are not the pixels you are looking for", "not an image (text)"),
        "page.jpg": (b"<html><body>404</body></html>", "a page saved as a picture"),
        "dvc.png": (b"outs:\n- md5: 123\n", "dvc pull"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "noise.png": (bytes(range(256)), "not an image (unknown format)"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged image"),
        "head.jpg": (jpeg[:40], "image"),
        "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    expected = {name: reason for name, (_, reason) in contents.items()}
    return expected | {"pipe.png": "not a regular file", "gone.png": "No such file"}


def test_every_bad_file_becomes_a_row_with_a_reason(images: Path) -> None:
    expected = bad_files(images / "cat")
    manifest = manifest_of(images, load_params().data)
    errors = {Path(path).name: error for path, error in zip(manifest["path"], manifest["error"], strict=True)}
    for name, reason in expected.items():
        assert reason in errors[name], name
    assert manifest["error"].isna().sum() == 24
    assert "0x" not in "".join(manifest["error"].dropna()), "a memory address would change from run to run"


HOSTILE = """
import os, signal, time
from pathlib import Path
from refit.modality.image import files

original = files.inspect

def inspect(path: Path):
    if path.name == "002.png" and path.parent.name == "cat":
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    if path.name == "004.png":
        time.sleep(600)
    if path.name == "005.png":
        bytearray(2**40)
    return original(path)

files.inspect = inspect
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders, in the child processes, that die of one picture, hang on others, or eat memory."""
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "sitecustomize.py").write_text(HOSTILE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hostile"))


@pytest.mark.usefixtures("hostile")
def test_a_decoder_that_dies_or_hangs_takes_only_its_own_file(images: Path) -> None:
    paths = [example.path for example in list_examples(images, images)]
    found = list(inspect_in_children(paths, "image", seconds=5))
    errors = {path.relative_to(images).as_posix(): one for path, one in zip(paths, found, strict=True) if one.error}
    assert set(errors) == {"cat/002.png", "cat/004.png", "cat/005.png", "dog/004.png", "dog/005.png"}
    assert str(errors["cat/002.png"].error).startswith("the process that decoded it died")
    assert (errors["cat/004.png"].error, errors["cat/004.png"].rule) == ("takes longer than 5 s to decode", "bomb")
    assert str(errors["cat/005.png"].error).startswith("not enough memory to decode it; the next")
    assert [errors[name].is_accident for name in sorted(errors)] == [True, False, True, False, True]


def test_orientation_is_applied_and_metadata_does_not_hide_a_copy(tmp_path: Path) -> None:
    picture = draw(9, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "again.png", optimize=True, compress_level=1)
    turned, plain, again = (inspect(tmp_path / f"{name}.png") for name in ("turned", "plain", "again"))
    assert (turned.width, turned.height) == (40, 60)
    assert (plain.width, plain.height) == (60, 40)
    assert plain.sha256 != again.sha256
    assert plain.content_sha256 == again.content_sha256 != turned.content_sha256


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(1, 64, 64).save(tmp_path / "a.png")
    monkeypatch.setattr("refit.modality.image.files.MAX_PIXELS", 1000)
    assert inspect(tmp_path / "a.png").error == "64 x 64 pixels, more than 1,000 in all"


def test_the_hash_is_the_same_on_every_machine(tmp_path: Path) -> None:
    pattern = (np.multiply.outer(np.arange(40), np.arange(50)) % 251).astype(np.uint8)
    Image.fromarray(pattern).save(tmp_path / "a.png")
    found = inspect(tmp_path / "a.png")
    hashes = hashes_of(np.array([list(found.signature)], dtype=np.uint8), range(88))
    assert [f"{each:016x}" for each in (hashes[0, 0], hashes[0, 44])] == ["666771783c3f0f80", "3332362d696a5ad5"]
    assert hashlib.sha256(hashes.tobytes()).hexdigest().startswith("66e4d1fb64473960")


def test_a_content_is_inspected_only_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_params().data
    bad = bad_files(images / "cat")
    first = manifest_of(images, data)
    decoded: list[str] = []
    original = inspection.inspect_some

    def counted(fresh: list[Example], name: str) -> object:
        decoded.extend(example.path.name for example in fresh)
        return original(fresh, name)

    monkeypatch.setattr(inspection, "inspect_some", counted)
    draw(4000).save(images / "dog" / "new.png")
    (images / "dog" / "001.png").rename(images / "cat" / "moved.png")
    second = manifest_of(images, data)
    assert set(decoded) == {"new.png", *bad}, "the new one, and what may have been an accident"
    kept = second[second["path"].isin(first["path"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first[first["path"].isin(kept["path"])].reset_index(drop=True))


def test_what_is_known_is_of_this_code_only(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of(images, load_params().data)
    assert len(inspection.recall("image")) == 24
    monkeypatch.setattr(inspection, "sha256_of_file", lambda path: "f" * 64)
    assert inspection.recall("image") == {}


@pytest.mark.parametrize("decoder", ["pil", "libjpeg_turbo", "zlib_ng", "webp", "libtiff"])
def test_what_is_known_is_of_these_decoders_only(images: Path, monkeypatch: pytest.MonkeyPatch, decoder: str) -> None:
    manifest_of(images, load_params().data)
    assert len(inspection.recall("image")) == 24
    original = features.version
    monkeypatch.setattr(features, "version", lambda name: "99.9" if name == decoder else original(name))
    assert inspection.recall("image") == {}
