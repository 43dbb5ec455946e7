"""What the benchmarks count with. The trainings themselves are run by hand: docs/benchmarks.md."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refit.errors import DataError, WorkspaceError
from refit.params import load_params

from .conftest import ROOT

FOLDER = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As for a script of that folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("measuring", "peers", "training", "recipes")]:
        del sys.modules[name]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 12 pictures of noise."""
    random = np.random.default_rng(0)
    for label in ("ants", "bees"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pairs_alternate() -> None:
    from measuring.pairs import abba

    assert list(abba("a", "b", 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


@pytest.mark.parametrize(
    ("num", "low", "high", "level"), [(1, 0, 0, 0.0), (5, 0, 4, 0.9375), (6, 0, 5, 0.96875), (9, 1, 7, 0.9609375)]
)
def test_the_sign_tests_interval(num: int, low: float, high: float, level: float) -> None:
    """The last: one of nine cut at each end, 1 - 2 * (1 + 9) / 512."""
    from measuring.pairs import of_median

    found = of_median([float(value) for value in reversed(range(num))])
    assert (found.middle, found.low, found.high, found.level) == ((num - 1) / 2, low, high, level)


def test_students_interval() -> None:
    from measuring.pairs import of_mean

    found = of_mean([1.0, 2.0, 3.0])
    assert found.text(".3f") == "2.000 (-0.484 to 4.484)"  # 4.303 (2 degrees of freedom) / sqrt(3)
    assert of_mean([1.0]).text() == "1.00"


def test_photos_are_laid_out_the_same_each_time_and_apart(photos: Path, tmp_path: Path) -> None:
    from measuring.photos import Draw, lay_out

    counts = lay_out(photos, tmp_path / "first", Draw(seed=3))
    lay_out(photos, tmp_path / "second", Draw(seed=3))
    lay_out(photos, tmp_path / "other", Draw(seed=4))
    first = contents(tmp_path / "first")
    assert counts == {"train": 18, "val": 2, "test": 4}
    assert first == contents(tmp_path / "second") != contents(tmp_path / "other")
    assert len(set(first.values())) == 24  # each photo once, in one split


def test_what_is_missing_is_made_of_training_photos(photos: Path, tmp_path: Path) -> None:
    from measuring.photos import Draw, lay_out

    lay_out(photos, tmp_path / "as-they-are", Draw())
    counts = lay_out(photos, tmp_path / "more", Draw(num_photos=100))
    lay_out(photos, tmp_path / "again", Draw(num_photos=100))
    few, many = contents(tmp_path / "as-they-are"), contents(tmp_path / "more")
    assert counts == {"train": 94, "val": 2, "test": 4}
    assert few.items() <= many.items()
    assert {name.split("/")[0] for name in many.keys() - few.keys()} == {"train"}
    assert len(set(many.values())) == 100
    assert many == contents(tmp_path / "again")


def test_a_test_folder_of_its_own_is_the_test(photos: Path, tmp_path: Path) -> None:
    from measuring.photos import Draw, lay_out

    counts = lay_out(photos, tmp_path / "laid-out", Draw(per_class=5, test=photos))
    assert counts == {"train": 10, "val": 2, "test": 24}


def test_too_few_photos_are_refused(photos: Path, tmp_path: Path) -> None:
    from measuring.photos import Draw, lay_out

    with pytest.raises(DataError, match="2 photos of ants"):
        lay_out(photos, tmp_path / "laid-out", Draw(num_photos=4))


def test_a_process_is_measured_with_its_children(tmp_path: Path) -> None:
    """The child holds 200 MB and computes; the parent only waits."""
    from measuring.processes import measure

    child = (
        "import time, numpy as np; held = np.ones(25_000_000); begun = time.process_time()\n"
        "while time.process_time() - begun < 0.7: held[:1000] += 1"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    usage = measure([sys.executable, "-c", code], tmp_path, {}, tmp_path / "log")
    assert usage.cpu_seconds >= 0.7
    assert usage.peak_rss_mb > 200
    assert usage.own_mb > 200
    assert not usage.was_ended


def test_a_process_that_fails_or_never_ends(tmp_path: Path) -> None:
    from measuring.processes import measure

    with pytest.raises(WorkspaceError, match="no such luck"):
        measure([sys.executable, "-c", "raise SystemExit('no such luck')"], tmp_path, {}, tmp_path / "log")
    endless = [sys.executable, "-c", "while True: pass"]
    assert measure(endless, tmp_path, {}, tmp_path / "log", limit_seconds=0.3).was_ended


@pytest.mark.parametrize("strategy", ["full", "head", "lp_ft", "staged", "auto"])
def test_refits_settings_are_settings(tmp_path: Path, strategy: str) -> None:
    """A key that params.yaml no longer has would be refused by its reader."""
    from measuring.refit_project import Setting, configure, settings_of

    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"weights")
    setting = Setting(base, "resnet18", strategy, 1, 8, 0.001, 64, 1, 0)
    configure(tmp_path, settings_of(setting))
    assert load_params(tmp_path / "params.yaml").finetune.model == "resnet18"


def test_every_rival_is_there_and_short() -> None:
    from training import ROWS, ROWS_OF_TEXTS

    for module in {row.module for row in (*ROWS, *ROWS_OF_TEXTS)} - {"refit"}:
        text = (FOLDER / "peers" / f"{module}.py").read_text()
        assert "refit" not in {name.split(".")[0] for name in imported(text)}
        assert len(text.splitlines()) < 100, module


def imported(text: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
