"""Outputs appear whole or not at all; errors know their exit code."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from refit import errors, paths
from refit.errors import ERRORS_BY_EXIT_CODE, RefitError, WorkspaceError
from refit.files import publish_json, publish_table, publish_text, publishing, sha256_of_json

from .conftest import ROOT


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out" / "a.txt"
    publish_text(target, "old")
    with pytest.raises(ZeroDivisionError), publishing(target) as partial:
        partial.write_text("half of the n")
        _ = 1 / 0
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_while_writing_a_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publishing(tmp_path / "sample") as partial:
        partial.mkdir()
        (partial / "a.txt").write_text("half of the n")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    publish_json(target, {"old": True})
    code = (
        "import os, signal, sys; from pathlib import Path; from refit.files import publishing\n"
        "with publishing(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('{'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert json.loads(target.read_text()) == {"old": True}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a folder should be")
    with pytest.raises(WorkspaceError, match=r"cannot write .*models/model.json"):
        publish_json(tmp_path / "models" / "model.json", {})


def test_a_read_only_folder_is_named(read_only_folder: Path) -> None:
    with pytest.raises(WorkspaceError, match=rf"make {read_only_folder}/ writable"):
        publish_json(read_only_folder / "model.json", {})
    assert list(read_only_folder.iterdir()) == []


def test_weights_that_cannot_be_written_are_named(read_only_folder: Path) -> None:
    with (
        pytest.raises(WorkspaceError, match=rf"cannot write .*Permission denied.*make {read_only_folder}/ writable"),
        publishing(read_only_folder / "model.safetensors") as partial,
    ):
        save_file({"x": np.zeros(1)}, partial)


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    publish_text(target, "old")

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(WorkspaceError, match="No space left on device"):
        publish_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    publish_json(tmp_path / "a.json", {"b": 1, "a": "ä"})
    publish_json(tmp_path / "b.json", {"a": "ä", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sha256_of_json({"b": 1, "a": 2}) == sha256_of_json({"a": 2, "b": 1})
    for name in ("a", "b"):
        publish_table(tmp_path / f"{name}.parquet", pd.DataFrame({"x": [1, 2], "y": ["p", "q"]}))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        publish_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda: pd.read_parquet(paths.ACCEPTED), "data/accepted.parquet is missing; run `dvc repro validate`"),
        (paths.BASE_CARD.read_text, "checkpoints/base.json is missing; run `dvc repro fetch`"),
        (lambda: load_file(paths.BASE_WEIGHTS), "checkpoints/base.safetensors is missing; run `dvc repro fetch`"),
    ],
)
def test_a_missing_input_names_the_stage_that_makes_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    read: Callable[[], Any],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        errors.run_stage(read)
    assert left.value.code == WorkspaceError.exit_code
    assert capsys.readouterr().err == f"error: {expected}\n"
    with pytest.raises(FileNotFoundError):  # a mistake of ours
        errors.run_stage(lambda: Path("elsewhere").read_text() and None)


def test_every_error_has_its_own_exit_code_and_is_drawn() -> None:
    tree = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RefitError)]
    assert sorted(ERRORS_BY_EXIT_CODE) == sorted(kind.exit_code for kind in tree)
    assert len({kind.exit_code for kind in tree}) == len(tree)
    for kind in tree:
        assert kind.__doc__
        assert kind.meaning
        assert len(vars(kind).keys() & {"exit_code", "meaning"}) == 2, "not its parent's"


def test_the_drawn_tree_is_the_tree() -> None:
    """Names, codes and who is below whom, as the docstring draws them (a code may stand on the next line)."""
    above: list[type[RefitError]] = []
    drawn: dict[str, int] = {}
    for indent, name, code in re.findall(r"^ {4}([│├└─ ]*)(\w+Error)[\s│]+(\d+)", str(errors.__doc__), re.MULTILINE):
        kind = getattr(errors, name)
        depth = len(indent) // 4
        above[depth:] = [kind]
        assert kind.__bases__ == ((above[depth - 1] if depth else Exception),), name
        drawn[name] = int(code)
    assert drawn == {kind.__name__: code for code, kind in ERRORS_BY_EXIT_CODE.items()}
