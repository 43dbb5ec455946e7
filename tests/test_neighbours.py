"""A set that grows, shrinks and changes sides is searched for what is new only, and the same is found."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from refit.data import duplicates, memory, neighbours
from refit.data.duplicates import near_duplicates
from refit.data.neighbours import MOST_PER_EXAMPLE, Remembered, search
from refit.modality.contract import Duplicates
from refit.modality.image import duplicates as pictures

from .test_duplicates import cropped, jpeg, noisy, scene, signatures_of


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Duplicates:
    """Signatures that are the hashes themselves: two whole views, two windows."""
    asked: list[int] = []

    def hashes_of(signatures: np.ndarray, views: Sequence[int]) -> np.ndarray:
        asked.append(len(signatures))
        return np.ascontiguousarray(np.ascontiguousarray(signatures).view(np.uint64)[:, list(views)])

    def same(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        both = signatures[candidates[:, 0]].astype(int).sum(axis=1) * 7 + signatures[candidates[:, 1]][:, 0]
        return np.asarray((both + candidates[:, 2]) % 3 > 0)

    def closer(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return np.asarray(signatures[candidates[:, 1], 3] % 2 == 0)

    for function in (hashes_of, same, closer):
        function.__module__ = __name__
    return SimpleNamespace(  # type: ignore[return-value]
        RADII=(7, 3, 3, 7), IS_BY_VIEW=request.param, hashes_of=hashes_of, same=same, closer=closer, asked=asked
    )


def crowd(draws: np.random.Generator, count: int) -> np.ndarray:
    """(count, 32) uint8: four hashes each, all near one of a few, some equal."""
    hashes = np.random.default_rng(1).integers(0, 2**64, (6, 4), dtype=np.uint64)[draws.integers(0, 6, count)]
    for _ in range(4):
        flips = np.uint64(1) << draws.integers(0, 64, hashes.shape, dtype=np.uint64)
        hashes ^= np.where(draws.random(hashes.shape) < 0.7, flips, np.uint64(0))
    hashes[::5, 0] = hashes[:1, 0]
    return np.ascontiguousarray(hashes).view(np.uint8)


def changing(draws: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Signatures and sides of a set that grows, shrinks, is shuffled and has other splits."""
    signatures, sides = crowd(draws, 120), draws.integers(0, 3, 120)
    for _ in range(8):
        stays = draws.random(len(signatures)) < draws.choice([0.7, 0.97, 1.0])
        new = crowd(draws, int(draws.choice([0, 1, 40])))
        signatures = np.concatenate([signatures[stays], new, signatures[:2]])
        sides = np.concatenate([sides[stays], draws.integers(0, 3, len(new) + 2)])
        order = draws.permutation(len(signatures))
        signatures, sides = signatures[order], sides[order]
        sides[:3] = 0
        yield signatures, sides


@pytest.mark.parametrize("kind", [False, True], indirect=True, ids=["whole", "by view"])
@pytest.mark.parametrize("seed", range(2))
def test_what_is_remembered_changes_nothing(
    kind: Duplicates, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(neighbours, "_ENOUGH", 12)
    monkeypatch.setattr(neighbours, "MOST_PER_EXAMPLE", 4)
    sizes = set()
    for signatures, sides in changing(np.random.default_rng(seed)):
        known = near_duplicates(signatures, kind, sides, tmp_path)
        assert np.array_equal(known, near_duplicates(signatures, kind, sides))
        sizes.add(len(known))
    assert len(sizes) > 3


@pytest.mark.parametrize("kind", [False], indirect=True)
def test_the_nearest_are_kept_and_no_other(kind: Duplicates, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order they are found, and however few are held on the way."""
    monkeypatch.setattr(neighbours, "_ENOUGH", 10**6)
    hashes = np.ascontiguousarray(crowd(np.random.default_rng(5), 200)).view(np.uint64)
    nothing = memory.nothing(4)
    before = Remembered(
        np.empty(0, dtype=np.int64), nothing.was_searched, nothing.hashes, nothing.num_like, nothing.candidates
    )
    everyone = np.ones(len(hashes), dtype=bool)
    found, _ = search(everyone, hashes, range(4), kind, before)
    monkeypatch.setattr(neighbours, "_MOST_HELD", 300)
    assert np.array_equal(found, search(everyone, hashes, range(4), kind, before)[0])
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None, :, :1])  # (one, another, view)
    near = np.where(distance <= kind.RADII, distance.astype(int), 99).min(axis=2)
    near = np.minimum(near, near.T)
    np.fill_diagonal(near, 99)
    expected = set()
    for one, row in enumerate(near):
        order = sorted((int(row[other]), other) for other in np.flatnonzero(row < 99))
        expected |= {(min(one, other), max(one, other)) for _, other in order[:MOST_PER_EXAMPLE]}
    assert {(min(a, b), max(a, b)) for a, b in found[:, :2].tolist()} == expected


@pytest.mark.parametrize("kind", [False], indirect=True)
def test_only_what_is_new_is_looked_at(kind: Duplicates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_WORTH_KEEPING", 0)
    signatures = crowd(np.random.default_rng(2), 150)
    near_duplicates(signatures, kind, store=tmp_path)
    kind.asked.clear()  # type: ignore[attr-defined]
    near_duplicates(np.concatenate([signatures, crowd(np.random.default_rng(3), 2)]), kind, store=tmp_path)
    assert kind.asked == [2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [False], indirect=True)
@pytest.mark.parametrize("damage", ["cut", "one byte", "another code"])
def test_a_damaged_memory_is_none(
    kind: Duplicates, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_WORTH_KEEPING", 0)
    signatures = crowd(np.random.default_rng(2), 150)
    pairs = near_duplicates(signatures, kind, store=tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "another code":
        monkeypatch.setattr(memory, "_CODE", ("labels.py",))
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 3] ^= 1
        file.write_bytes(content)
    kind.asked.clear()  # type: ignore[attr-defined]
    assert np.array_equal(near_duplicates(signatures, kind, store=tmp_path), pairs)
    assert kind.asked == [150]  # type: ignore[attr-defined]


def test_pictures_are_seen_the_same_whoever_is_looked_at_with_them() -> None:
    originals = [scene(seed).resize((96, 96)) for seed in range(20)]
    copies = [cropped(one, 0.05, 1) for one in originals]
    signatures = signatures_of([*originals, *copies, *(jpeg(noisy(one), 60) for one in originals)])
    rows = np.array([[one, one + other, view] for one in range(20) for other in (20, 40) for view in (0, 7, 51)])
    together = pictures._laid_over(signatures, rows), pictures._difference(signatures, rows)
    for place in (0, 7, 50, 119):
        alone = pictures._laid_over(signatures, rows[place : place + 1])
        assert [part[0] for part in alone] == [part[place] for part in together[0]]
        assert pictures._difference(signatures, rows[place : place + 1])[0] == together[1][place]
