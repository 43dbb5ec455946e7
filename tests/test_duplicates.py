"""Near-duplicates: what is found of copies, what is believed of look-alikes, and who leaves for whom."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_digits

from refit.data import duplicates
from refit.data.duplicates import leaks, near_duplicates
from refit.data.hamming import Index
from refit.modality.image import duplicates as pictures
from refit.modality.image.files import _signature
from refit.params import Params
from tasks import ingest, validate

from .test_validate import manifest as manifest_with

SEEDS = range(60)


def scene(seed: int) -> Image.Image:
    """A picture with structure at all sizes, as photos have (amplitude falls with frequency)."""
    draws = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(128), indexing="ij")
    spectrum = draws.normal(size=(3, 96, 128)) / np.maximum(np.hypot(rows, columns), 1 / 128) ** 1.3
    colours = np.fft.ifft2(spectrum * np.exp(2j * np.pi * draws.random((3, 96, 128)))).real
    layers = 0.7 * colours[:1] + 0.3 * colours  # channels are alike
    layers = 128 + 45 * (layers - layers.mean()) / layers.std()
    return Image.fromarray(np.clip(layers, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(picture: Image.Image, share: float, seed: int) -> Image.Image:
    width, height = (round(side * (1 - share)) for side in picture.size)
    draws = np.random.default_rng(seed)
    left, top = draws.integers(0, picture.width - width + 1), draws.integers(0, picture.height - height + 1)
    return picture.crop((left, top, left + width, top + height))


def noisy(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture).astype(int)
    return Image.fromarray((pixels + np.random.default_rng(1).integers(-3, 4, pixels.shape)).clip(0, 255).astype("u1"))


CHANGES: dict[str, tuple[Callable[[Image.Image, int], Image.Image], float]] = {
    "re-encoded": (lambda picture, _: jpeg(picture, 50), 1.0),
    "resized": (lambda picture, _: picture.resize((77, 60), Image.Resampling.LANCZOS), 1.0),
    "flipped": (lambda picture, _: jpeg(ImageOps.mirror(picture), 80), 1.0),
    "noisy": (lambda picture, _: noisy(picture), 1.0),
    "brightened": (lambda picture, _: ImageEnhance.Brightness(picture).enhance(1.3), 0.95),
    "darkened": (lambda picture, _: ImageEnhance.Brightness(picture).enhance(0.7), 1.0),
    "cropped by 5 %": (lambda picture, seed: cropped(picture, 0.05, seed), 0.95),
    "cropped by 10 %": (lambda picture, seed: cropped(picture, 0.10, seed), 0.85),
}


def signatures_of(some: list[Image.Image]) -> np.ndarray:
    return np.array([list(_signature(picture)) for picture in some], dtype=np.uint8)


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_and_nothing_else(change: str) -> None:
    apply, least = CHANGES[change]
    originals = [scene(seed) for seed in SEEDS]
    pairs = near_duplicates(
        signatures_of([*originals, *(apply(picture, seed) for seed, picture in enumerate(originals))]), pictures
    )
    true = [right - left == len(originals) for left, right in pairs]
    assert all(true)
    assert sum(true) >= least * len(originals)


def test_digits_that_look_alike_are_not_taken_for_copies() -> None:
    pixels = np.rint(load_digits().data.reshape(-1, 8, 8)[:600] * (255 / 16)).astype(np.uint8)
    originals = [Image.fromarray(each).convert("RGB") for each in pixels]
    copies = [noisy(each) for each in originals[:100]]
    pairs = near_duplicates(signatures_of([*originals, *copies]), pictures)
    true = [right - left == len(originals) for left, right in pairs]
    assert sum(true) == 100
    assert len(true) - sum(true) <= 3


def cell(seed: int) -> Image.Image:
    """One of a make: all have one grid on one ground, and each two scratches of its own."""
    rows, columns = np.mgrid[:160, :160]
    corners = np.abs(rows - 80) + np.abs(columns - 80) > 135
    ground = 170 + 30 * np.cos(rows / 50) - 70 * (rows % 53 < 5) - 110 * corners
    draws = np.random.default_rng(seed)
    for _ in range(2):
        top, left = draws.integers(10, 110), draws.integers(20, 140)
        ground = ground - 35 * ((np.abs(columns - left) < 1.5) & (rows >= top) & (rows < top + 40))
    return Image.fromarray(np.clip(ground + draws.normal(0, 2, ground.shape), 0, 255).astype("u1")).convert("RGB")


def test_cells_of_one_make_are_not_the_same_and_their_copies_are(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = [cell(seed) for seed in range(16)]
    copies = [jpeg(one, 60) for one in originals[:4]] + [one.resize((96, 96)) for one in originals[4:8]]
    signatures = signatures_of([*originals, *copies])
    pairs = near_duplicates(signatures, pictures)
    assert [right - left for left, right in pairs] == [16] * len(pairs)
    assert len(pairs) >= 6
    monkeypatch.setattr(duplicates, "LOOK_ALIKES", 10**6)
    assert len(near_duplicates(signatures, pictures)) > 100, "the second look takes them for one"


def test_flat_pictures_are_not_all_the_same_one() -> None:
    assert {_signature(Image.new("RGB", (64, 64), (level, level, level))) for level in range(0, 250, 10)} == {b""}


def test_a_set_without_candidates_is_searched_too() -> None:
    assert near_duplicates(signatures_of([scene(1), scene(2)]), pictures).shape == (0, 2)


@pytest.mark.parametrize("radius", [7, 11])
def test_the_index_misses_nothing(radius: int) -> None:
    draws = np.random.default_rng(3)
    hashes = draws.integers(0, 2**64, 3000, dtype=np.uint64)
    hashes[1000:] = hashes[:2000] ^ (np.uint64(1) << draws.integers(0, 64, 2000, dtype=np.uint64))  # near ones
    for _ in range(9):
        hashes[1500:] ^= np.uint64(1) << draws.integers(0, 64, 1500, dtype=np.uint64)
    queries = hashes[::7]
    found = {
        (int(q), int(p))
        for numbers, positions in Index(hashes).within(queries, radius)
        for q, p in zip(numbers, positions, strict=True)
    }
    distance = np.bitwise_count(queries[:, None] ^ hashes[None])
    assert found == {(int(q), int(p)) for q, p in np.argwhere(distance <= radius)}


def usable(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "split", "content_sha256", "group"], index=range(10, 10 + len(rows)))


def test_train_gives_way_and_test_never() -> None:
    table = usable(
        ("a", "train", "1", ""), ("b", "test", "1", ""), ("c", "val", "2", ""), ("d", "train", "3", ""),
        ("e", "train", "4", "p"), ("f", "test", "5", "p"), ("g", "train", "6", ""), ("h", "test", "7", ""),
    )  # fmt: skip
    found = leaks(table, np.array([[2, 3], [2, 7], [3, 6], [0, 3]]))
    assert dict(zip(found["row"], found["reason"], strict=True)) == {
        10: "leak: the same as test example b",
        12: "leak: a near-duplicate of test example h",
        13: "leak: a near-duplicate of val example c",
        14: "leak: in one group with test example f",
    }
    assert list(found["twin"]) == ["b", "h", "c", "f"]


def test_a_leak_leaves_train_with_its_reason_whatever_gave_the_split(
    project: Path, edit_params: Callable[..., Params]
) -> None:
    for split, offset, count in (("train", 0, 12), ("val", 100, 4), ("test", 200, 8)):
        for label in ("cat", "dog"):
            folder = project / "data" / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                scene(offset + number + 1000 * (label == "dog")).save(folder / f"{number}.png")
    hidden = jpeg(ImageOps.mirror(scene(203)), 80)
    hidden.save(project / "data/images/train/cat/hidden.jpg")
    edit_params(data__source="data/images")
    ingest.main()
    validate.main()
    rejected = pd.read_parquet("data/rejected.parquet")
    assert list(rejected["path"]) == ["data/images/train/cat/hidden.jpg"]
    assert list(rejected["reason"]) == ["leak: a near-duplicate of test example data/images/test/cat/3.png"]
    assert "signature" not in pd.read_parquet("data/accepted.parquet").columns


def test_near_duplicates_of_one_split_are_named_and_stay(edit_params: Callable[..., Params]) -> None:
    signatures = [_signature(picture) for picture in (scene(1), jpeg(scene(1), 60), scene(2), noisy(scene(2)))]
    rows = [
        {"split": "train", "label": label, "signature": one}
        for one, label in zip(signatures, ("cat", "cat", "cat", "dog"), strict=True)
    ]
    verdict = validate.judge(manifest_with(*rows), edit_params())
    assert verdict.failures == ()
    assert len(verdict.accepted) == 64
    assert list(verdict.findings[["rule", "row", "twin"]].itertuples(index=False, name=None)) == [
        ("near_two_labels", 62, "data/1003.png"),
        ("near_two_labels", 63, "data/1002.png"),
        ("near_duplicate", 61, "data/1000.png"),
    ]
    assert verdict.findings["reason"][0] == (
        "nearly the same under several labels (cat, dog; this one cat): data/1003.png"
    )


def test_what_validate_searched_is_remembered(
    project: Path, edit_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    signatures = [_signature(picture) for picture in (scene(1), jpeg(scene(1), 60), scene(2))]
    table = manifest_with(*({"split": "train", "label": "cat", "signature": one} for one in signatures))
    params = edit_params()
    first = validate.judge(table, params)
    store = project / ".refit/duplicates"
    assert not store.exists(), "a small set is searched for in no time"
    monkeypatch.setattr(duplicates, "_WORTH_KEEPING", 1)
    store.mkdir(parents=True)
    of_other_code = store / "0123456789abcdef.npz"
    of_other_code.touch()
    validate.judge(table, params)
    assert len(list(store.iterdir())) == 1
    assert not of_other_code.exists()
    monkeypatch.setattr(pictures, "same", lambda _signatures, rows: np.zeros(len(rows), dtype=bool))
    pd.testing.assert_frame_equal(validate.judge(table, params).findings, first.findings)


def test_many_copies_of_one_picture_cost_no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 copies that have one hash the first stands for all, and those that judge come first."""
    looks: list[int] = []
    believe = pictures.same
    monkeypatch.setattr(pictures, "same", lambda some, rows: looks.append(len(rows)) or believe(some, rows))
    copies = signatures_of([scene(1)] * 300 + [scene(2), ImageOps.mirror(scene(1))])
    pairs = near_duplicates(copies, pictures)
    assert sum(looks) <= 2 * 302
    assert [0, 299] in pairs.tolist()
    assert {(n, 301) for n in range(300)} <= set(map(tuple, pairs.tolist())), "what the first is like, all are like"
    assert len(pairs) == 299 + 300
    assert 300 not in pairs


def test_copies_in_two_splits_do_not_stop_the_run(edit_params: Callable[..., Params]) -> None:
    table = manifest_with({"content_sha256": f"{4:064x}", "label": "dog", "split": "train"})
    verdict = validate.judge(table, edit_params())
    assert verdict.failures == ()
    assert list(verdict.rejected["reason"]) == ["leak: the same as test example data/4.png"]


def test_a_large_set_is_searched_for_whole_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "VIEWS_UP_TO", 3)
    originals = [scene(seed) for seed in range(3)]
    signatures = signatures_of([*originals, ImageOps.mirror(originals[1]), cropped(originals[2], 0.1, 1)])
    assert near_duplicates(signatures, pictures).tolist() == [[1, 3]]
