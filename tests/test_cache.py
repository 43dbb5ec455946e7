"""What is kept of decoded examples and of features: found again, verified, shared, bounded."""

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from refit.errors import ParamsError, WorkspaceError
from refit.training.cache import Kept, Shelf, Unkept

ROW = (3, 4)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(count: int) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in range(count)]


class Producer:
    """Row i is full of i; remembers what it was asked for."""

    def __init__(self, piece: int = 3) -> None:
        self.piece, self.made = piece, list[int]()

    def __call__(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(indices), self.piece):
            part = indices[start : start + self.piece]
            self.made += part.tolist()
            yield np.stack([np.full(ROW, index, dtype=np.float32) for index in part])


def shelf(key: str = "a") -> Shelf:
    return Shelf("decoded", key * 64)


def require(rows: object, expected: list[int]) -> None:
    assert isinstance(rows, Kept | Unkept)
    found = rows.gather(np.arange(len(rows)))
    assert found.shape == (len(expected), *ROW)
    assert found[:, 0, 0].tolist() == expected


def test_a_row_is_computed_once_whoever_asks_in_whatever_order() -> None:
    first = Producer()
    require(shelf().rows(names(10), first), list(range(10)))
    assert first.made == list(range(10))
    again = Producer()
    rows = shelf().rows(names(10)[::-1], again)
    assert again.made == []
    require(rows, list(range(9, -1, -1)))
    assert rows.gather(np.array([2, 2, 0]))[:, 0, 0].tolist() == [7, 7, 9]


def test_only_what_is_new_is_computed() -> None:
    shelf().rows(names(10), Producer())
    grown = Producer()
    require(shelf().rows(names(13), grown), list(range(13)))
    assert grown.made == [10, 11, 12]


def test_one_example_twice_is_computed_once() -> None:
    producer = Producer()
    both = [names(2)[0], names(2)[1], names(2)[0]]
    assert shelf().rows(both, producer).gather(np.arange(3))[:, 0, 0].tolist() == [0, 1, 0]
    assert producer.made == [0, 1]


def test_another_key_is_another_shelf() -> None:
    shelf("a").rows(names(3), Producer())
    other = Producer()
    shelf("b").rows(names(3), other)
    assert other.made == [0, 1, 2]


DAMAGES: list[tuple[str, Callable[[bytes], bytes], list[int]]] = [
    ("rows.bin", lambda data: data[:100] + b"\xff" + data[101:], [2]),  # a row has 48 bytes
    ("rows.bin", lambda data: data[:-1], [9]),
    ("rows.bin", lambda data: b"", list(range(10))),
    ("index.bin", lambda data: data[:-1], [9]),
    ("index.bin", lambda data: data[:85] + b"\xff" + data[86:], list(range(10))),  # a record has 40
    ("index.bin", lambda data: data[40:80] + data[:40] + data[80:], list(range(10))),
    ("index.bin", lambda data: b"", list(range(10))),
    ("index.bin", lambda data: data + b"half a record", []),
    ("layout.json", lambda data: b"", list(range(10))),
    ("layout.json", lambda data: b'{"shape": [3], "dtype": "no such"}', list(range(10))),
]


@pytest.mark.parametrize(("file", "damage", "made"), DAMAGES)
def test_what_is_damaged_is_computed_anew(
    file: str, damage: Callable[[bytes], bytes], made: list[int], folder: Path
) -> None:
    shelf().rows(names(10), Producer())
    path = shelf().folder / file
    path.write_bytes(damage(path.read_bytes()))
    again = Producer()
    require(shelf().rows(names(10), again), list(range(10)))
    assert again.made == made
    third = Producer()
    require(shelf().rows(names(10), third), list(range(10)))
    assert third.made == []


def test_the_shelf_that_was_used_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("REFIT_CACHE_GB", str(3 * 10 * 48 / 1e9))
    for age, key in ((30, "a"), (10, "b"), (20, "c")):
        shelf(key).rows(names(9), Producer())
        os.utime(shelf(key).folder / "layout.json", (1e9 - age, 1e9 - age))
    held = shelf("a").rows(names(9), Producer())
    os.utime(shelf("a").folder / "layout.json", (1e9 - 30, 1e9 - 30))
    shelf("d").rows(names(9), Producer())
    left = {path.name[8] for path in folder.iterdir() if path.name.startswith("decoded-")}
    assert "d" in left
    assert "a" not in left
    require(held, list(range(9)))  # whoever had it open goes on


def test_more_than_the_cache_may_hold_is_computed_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_CACHE_GB", "0")
    producer = Producer()
    rows = shelf().rows(names(5), producer)
    assert isinstance(rows, Unkept)
    require(rows, list(range(5)))
    require(rows, list(range(5)))
    assert rows.gather(np.array([], dtype=np.int64)).shape == (0, *ROW)


def test_a_shelf_never_holds_more_than_the_cache_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_CACHE_GB", str(11 * 48 / 1e9))
    for call in range(4):
        some = [hashlib.sha256(b"%d/%d" % (call, place)).digest() for place in range(8)]
        rows = shelf().rows(some, Producer())
        require(rows, list(range(8)))
        assert (shelf().folder / "rows.bin").stat().st_size == 8 * 48
        assert not isinstance(rows, Unkept)
        del rows


def test_what_is_in_use_stays_where_more_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training examples and then those of validation, which together are too many: the same in each run."""
    monkeypatch.setenv("REFIT_CACHE_GB", str(11 * 48 / 1e9))
    val = [hashlib.sha256(b"val %d" % place).digest() for place in range(4)]
    for expected in (list(range(8)), []):
        producer = Producer()
        train, more = shelf().rows(names(8), producer), shelf().rows(val, Producer())
        assert producer.made == expected
        assert isinstance(more, Unkept)
        require(train, list(range(8)))
        require(more, list(range(4)))
        del train, more


def test_a_shelf_of_which_little_is_wanted_any_more_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_CACHE_GB", str(11 * 48 / 1e9))
    shelf().rows(names(11), Producer())
    wanted = [*names(2), hashlib.sha256(b"new").digest()]
    rows = shelf().rows(wanted, Producer())
    assert rows.gather(np.arange(3))[:, 0, 0].tolist() == [0, 1, 2]
    assert (shelf().folder / "rows.bin").stat().st_size == 3 * 48


def test_a_shelf_that_grows_a_little_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_CACHE_GB", str(100 * 48 / 1e9))
    shelf("b").rows(names(15), Producer())
    shelf("a").rows(names(55), Producer())
    shelf("a").rows(names(56), Producer())
    assert (shelf("b").folder / "rows.bin").exists()


@pytest.mark.parametrize("text", ["a lot", "12GB", "inf", "-1"])
def test_a_limit_that_is_no_number_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_CACHE_GB", text)
    with pytest.raises(ParamsError, match=f"REFIT_CACHE_GB is '{text}'"):
        shelf().rows(names(1), Producer())


def test_a_cache_that_cannot_be_written_is_named(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(WorkspaceError, match=r"cannot be used .*REFIT_CACHE"):
        shelf().rows(names(1), Producer())


def fill(queue: "multiprocessing.Queue[int]", start: int) -> None:
    producer = Producer(piece=1)
    wanted = names(60)[start:] + names(60)[:start]
    rows = shelf().rows(wanted, lambda indices: producer((indices + start) % 60))
    assert rows.gather(np.arange(60))[:, 0, 0].tolist() == [(place + start) % 60 for place in range(60)]
    queue.put(len(producer.made))


def test_four_processes_that_want_the_same_compute_it_once() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=fill, args=(queue, start)) for start in (0, 7, 30, 59)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert sum(queue.get() for _ in processes) == 60
