"""A training's state travels through the DVC remote: a real one, a folder, with kills and with trouble."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.tools import state_mirror
from flows.tools.state_mirror import FOLDER, Mirror, mirrored
from refit.files import publishing, sha256_of_file
from refit.paths import STATES

from .conftest import ROOT

KEY = "5" * 64
FINGERPRINT = "a" * 64
LOG = logging.getLogger("test")

TRAINING = """
import itertools, logging, sys, time
from pathlib import Path
from flows.tools import state_mirror
from tests.test_state_mirror import FINGERPRINT, KEY, generation, save

state_mirror._SECONDS_BETWEEN, state_mirror._MAX_SHARE = 0.001, 1.0
with state_mirror.mirrored(KEY, logging.getLogger("test")):
    print("going on after", generation(Path.cwd()), flush=True)
    for number in itertools.count(generation(Path.cwd()) + 1):
        save(number, num_bytes=1_000_000)
        time.sleep(0.003)
"""


def save(number: int, num_bytes: int = 100, fingerprint: str = FINGERPRINT) -> None:
    """As the training does: what the state names, the state, and away with what it no longer names."""
    folder = STATES / fingerprint
    best = folder / f"best-{number // 3}.safetensors"
    if not best.exists():
        with publishing(best) as partial:
            partial.write_bytes(f"{number // 3:08d}".encode() * (num_bytes // 8))
    with publishing(folder / "state.safetensors") as partial:
        partial.write_bytes(f"{number:08d}".encode() * (num_bytes // 8))
    for old in folder.glob("best-*"):
        if old != best:
            old.unlink()


def generation(clone: Path) -> int:
    """Which state is there, whole: all of it of one moment; 0 for none."""
    folder = clone / STATES / FINGERPRINT
    if not folder.exists():
        return 0
    content = (folder / "state.safetensors").read_bytes()
    number = int(content[:8])
    assert content == content[:8] * (len(content) // 8)
    assert (folder / f"best-{number // 3}.safetensors").read_bytes()[:8] == f"{number // 3:08d}".encode()
    return number


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Go to a new workspace with the same remote."""
    monkeypatch.setattr(state_mirror, "_SECONDS_BETWEEN", 0.01)

    def make(name: str) -> Path:
        (tmp_path / name / ".dvc").mkdir(parents=True)
        (tmp_path / name / ".dvc" / "config").write_text(
            f"[core]\n    no_scm = true\n    analytics = false\n    remote = storage\n"
            f"['remote \"storage\"']\n    url = {tmp_path / 'storage'}\n"
        )
        monkeypatch.chdir(tmp_path / name)
        return tmp_path / name

    return make


def remote(tmp_path: Path) -> list[str]:
    return sorted(file.name for file in (tmp_path / "storage").glob(f"{FOLDER}/{KEY}/*"))


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_the_next_worker_goes_on_and_the_last_one_clears_up(clone: Callable[[str], Path], tmp_path: Path) -> None:
    first = clone("first")
    with pytest.raises(KeyboardInterrupt), mirrored(KEY, LOG):
        save(4)
        wait_for(lambda: len(remote(tmp_path)) == 3)
        save(5)
        raise KeyboardInterrupt  # cancelled: what was saved last goes there too
    second = clone("second")
    with mirrored(KEY, LOG) as mirror:
        assert generation(second) == generation(first) == 5
        save(6)
        wait_for(lambda: sha256_of_file(STATES / FINGERPRINT / "state.safetensors") in remote(tmp_path))
        save(7)  # with the best weights of before, so that no copy sees two of them
        wait_for(lambda: len(remote(tmp_path)) == 3)  # the list, the state, its best weights: nothing piles up
        shutil.rmtree(STATES)
        mirror.forget()
    assert remote(tmp_path) == []
    third = clone("third")
    with mirrored(KEY, LOG):
        assert generation(third) == 0


def test_an_object_store_will_do(clone: Callable[[str], Path]) -> None:
    """Without folders, and without renaming."""
    from dvc_objects.fs.memory import MemoryFileSystem

    store = MemoryFileSystem(global_store=False)
    folder = store.join("/bucket/refit", FOLDER, KEY)
    for number in (1, 2):
        here = clone(f"clone-{number}")
        mirror = Mirror(store, folder, LOG)
        mirror.start()
        assert generation(here) == number - 1
        save(number)
        mirror.stop()
    assert len(list(store.find("/bucket"))) == 3
    mirror.forget()
    assert list(store.find("/bucket")) == []


def test_another_training_does_not_get_it(clone: Callable[[str], Path]) -> None:
    clone("first")
    with mirrored(KEY, LOG):
        save(1)
    second = clone("second")
    with mirrored("6" * 64, LOG):
        assert generation(second) == 0


def test_a_kill_at_any_moment_leaves_the_last_whole_state(clone: Callable[[str], Path], tmp_path: Path) -> None:
    """SIGKILL in the middle of uploads, and each time a new clone goes on from a later state of one moment."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    reached = 0
    for number in range(4):
        here = clone(f"clone-{number}")
        with subprocess.Popen(
            [sys.executable, "-c", TRAINING], cwd=here, env=env, stdout=subprocess.PIPE, text=True
        ) as training:
            assert training.stdout
            assert training.stdout.readline() == f"going on after {reached}\n"
            before = remote(tmp_path)
            wait_for(lambda: remote(tmp_path) != before and any(name > "000001" for name in remote(tmp_path)))  # noqa: B023
            time.sleep(0.1 + 0.037 * number)
            training.kill()
        there = clone(f"look-{number}")
        with mirrored(KEY, LOG):
            assert generation(there) > reached
        reached = generation(there)


def test_what_is_not_whole_is_passed_over(clone: Callable[[str], Path], tmp_path: Path) -> None:
    clone("first")
    with mirrored(KEY, LOG):
        save(1)
    place = tmp_path / "storage" / FOLDER / KEY
    (place / "000009.json").write_text('{"written": "2026-01-01T00:00')
    second = clone("second")
    with mirrored(KEY, LOG):
        assert generation(second) == 1
    state = sha256_of_file(STATES / FINGERPRINT / "state.safetensors")
    (place / state).write_bytes(b"cut o")
    third = clone("third")
    with mirrored(KEY, LOG):
        assert generation(third) == 0
        save(2)
    fourth = clone("fourth")
    with mirrored(KEY, LOG):
        assert generation(fourth) == 2, "a list that was cut off does not hide later ones"


@pytest.mark.parametrize(
    "path", ["../../evil.safetensors", f"{FINGERPRINT}/../../x.safetensors", f"{FINGERPRINT}/a.py"]
)
def test_the_remote_cannot_write_elsewhere(clone: Callable[[str], Path], tmp_path: Path, path: str) -> None:
    first = clone("first")
    with mirrored(KEY, LOG):
        save(1)
    place = tmp_path / "storage" / FOLDER / KEY
    newest = place / max(name for name in remote(tmp_path) if name.endswith(".json"))
    content = json.loads(newest.read_text())
    content["files"][path] = content["files"].pop(f"{FINGERPRINT}/best-0.safetensors")
    newest.write_text(json.dumps(content))
    shutil.rmtree(first)
    here = clone("second")
    with mirrored(KEY, LOG):
        pass
    assert [file.name for file in here.rglob("*") if file.is_file() and ".dvc" not in file.parts] == []
    assert not list(tmp_path.rglob("evil*"))


def test_a_remote_that_is_away_is_said_once_and_nothing_else(
    clone: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clone("first")
    (tmp_path / "storage").write_text("no folder")
    with mirrored(KEY, LOG) as mirror:
        for number in range(3):
            save(number)
            time.sleep(0.05)
        mirror.forget()
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith("the training's state is not kept on the DVC remote now")
    assert said.endswith("the training itself goes on")


def test_a_state_here_that_is_newer_stays(clone: Callable[[str], Path]) -> None:
    clone("first")
    with mirrored(KEY, LOG):
        save(1)
    second = clone("second")
    time.sleep(0.01)
    save(2)
    with mirrored(KEY, LOG):
        assert generation(second) == 2


def test_states_that_nobody_comes_back_to_go_away(clone: Callable[[str], Path], tmp_path: Path) -> None:
    clone("first")
    with mirrored(KEY, LOG):
        save(1)
    for file in (tmp_path / "storage" / FOLDER / KEY).glob("*.json"):
        content = json.loads(file.read_text()) | {"written": "2020-01-01T00:00:00+00:00"}
        file.write_text(json.dumps(content))
    clone("second")
    with mirrored("6" * 64, LOG):
        save(1)
    assert remote(tmp_path) == []


def test_without_a_remote_there_is_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    monkeypatch.chdir(tmp_path)
    with mirrored(KEY, LOG) as mirror:
        save(1)
        mirror.forget()
