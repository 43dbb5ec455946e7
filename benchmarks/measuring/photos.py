"""The photos of a benchmark: a folder with train, val and test, in each a folder per class.

    counts = lay_out(Path("hymenoptera"), Path("photos"), Draw(num_photos=245))
    lay_out_synthetic(Path("photos"), 10_000)

Which photo goes where follows from its bytes and the seed. Where more photos are asked for than there are, the rest
are copies of *training* photos with small changes of pixels, the same each time: enough to measure speed and memory
by, while the test stays what it was.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from refit.errors import DataError

TEST_FRACTION, VAL_FRACTION = 0.2, 0.1
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SYNTHETIC_CLASSES = 10
_AT_ONCE = 64  # files per message to a worker


@dataclass(frozen=True)
class Draw:
    """Which photos are taken, and which of them for what."""

    num_photos: int | None = None  # of all three splits; None: all that there are
    per_class: int | None = None  # at most so many for training, the same for each class; None: all
    test: Path | None = None  # a folder of class folders that is the test; None: a fifth of the photos
    seed: int = 0


def lay_out(source: Path, target: Path, draw: Draw) -> dict[str, int]:
    """Lay out photos of a folder of class folders; gives how many each split has.

    Raises:
        DataError: too few photos for each split to have one of each class.
    """
    by_class = _by_class(source, draw.seed)
    wanted = _shares({label: len(files) for label, files in by_class.items()}, draw.num_photos)
    counts = {"train": 0, "val": 0, "test": 0}
    replicas: list[tuple[Path, Any, int]] = []
    for label, files in by_class.items():
        drawn = files[: wanted[label]]
        for split, some in _splits(drawn, draw, label, source).items():
            counts[split] += len(some)
            _copy(some, target / split / label)
            if split == "train" and wanted[label] > len(files):
                folder = target / split / label
                replicas += _planned(some, folder, wanted[label] - len(files))
    if draw.test is not None:
        for label, files in _by_class(draw.test, draw.seed).items():
            _copy(files, target / "test" / label)
            counts["test"] += len(files)
    _in_processes(_replicate, replicas)
    counts["train"] += len(replicas)
    return counts


def lay_out_synthetic(target: Path, num_photos: int, size: int = 224) -> dict[str, int]:
    """Small JPEG files (about 4 kB) of random colours, no two alike: for memory and speed, not for learning."""
    counts = {"val": num_photos // 20, "test": num_photos // 20}
    counts["train"] = num_photos - sum(counts.values())
    files = [
        (target / split / f"class{number % SYNTHETIC_CLASSES}" / f"{number:07}.jpg", size, number + shift * num_photos)
        for shift, (split, count) in enumerate(counts.items())
        for number in range(count)
    ]
    for folder in {path.parent for path, _, _ in files}:
        folder.mkdir(parents=True)
    _in_processes(_synthesize, files)
    return counts


def _by_class(source: Path, seed: int) -> dict[str, list[Path]]:
    """The photos of each class, in an order that their bytes and the seed decide."""
    folders = sorted(folder for folder in source.iterdir() if folder.is_dir())
    found = {
        folder.name: sorted(
            (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES),
            key=lambda path: hashlib.sha256(f"{seed}/".encode() + path.read_bytes()).digest(),
        )
        for folder in folders
    }
    if len(found) < 2 or not all(found.values()):
        raise DataError(f"{source} is not a folder of class folders with photos in each ({', '.join(SUFFIXES)})")
    return found


def _shares(available: dict[str, int], num_photos: int | None) -> dict[str, int]:
    """How many photos of each class, in proportion to what there is."""
    if num_photos is None:
        return available
    total, taken, wanted, seen = sum(available.values()), 0, {}, 0
    for label, count in available.items():
        seen += count
        wanted[label] = num_photos * seen // total - taken
        taken += wanted[label]
    return wanted


def _splits(files: list[Path], draw: Draw, label: str, source: Path) -> dict[str, list[Path]]:
    num_test = 0 if draw.test is not None else max(1, round(len(files) * TEST_FRACTION))
    num_val = max(1, round(len(files) * VAL_FRACTION))
    train = files[num_test + num_val :]
    if not train:
        raise DataError(f"{len(files)} photos of {label} from {source} are too few; ask for more by --photos")
    return {"test": files[:num_test], "val": files[num_test : num_test + num_val], "train": train[: draw.per_class]}


def _copy(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        (folder / path.name).write_bytes(path.read_bytes())


def _planned(originals: list[Path], folder: Path, count: int) -> list[tuple[Path, Any, int]]:
    """(original, copy, number of the change), as evenly as it goes."""
    return [
        (original, folder / f"{original.stem}-{number}.jpg", number)
        for number, original in ((i // len(originals) + 1, originals[i % len(originals)]) for i in range(count))
    ]


def _replicate(original: Path, target: Path, number: int) -> None:
    """A crop that is up to an eighth smaller, and up to 15 % brighter or darker."""
    random = np.random.default_rng([number, *hashlib.sha256(original.read_bytes()).digest()[:8]])
    image = Image.open(original).convert("RGB")
    left, top, right, bottom = random.integers(0, 1 + np.array([*image.size, *image.size]) // 16)
    image = image.crop((left, top, image.width - right, image.height - bottom))
    ImageEnhance.Brightness(image).enhance(random.uniform(0.85, 1.15)).save(target, "JPEG", quality=92)


def _synthesize(target: Path, size: int, number: int) -> None:
    colours = np.random.default_rng(number).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((size, size), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=60)
    target.write_bytes(buffer.getvalue())


def _in_processes(act: Callable[[Path, Any, int], None], calls: list[tuple[Path, Any, int]]) -> None:
    if calls:
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(act, *zip(*calls, strict=True), chunksize=_AT_ONCE))
