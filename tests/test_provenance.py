"""Which code made a version: fails closed, and what is said can be applied again."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from flows import reproduce
from flows.tools import commits
from refit.errors import EvidenceError, WorkspaceError
from refit.files import sha256_of_json
from refit.gate.evidence import GitState
from refit.params import load_params
from refit.registry import versions
from refit.registry.provenance import NONE, UNKNOWN, Provenance, doubt_of, git_state, untracked_source
from tasks import register

from .conftest import commit_all
from .services import dvc


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], check=True, capture_output=True).stdout


@pytest.fixture
def repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean commit of params.yaml, three files of ours and a binary one."""
    (project / "tasks").mkdir()
    (project / "tasks" / "a.py").write_text("A = 1\n")
    (project / "windows.txt").write_bytes(b"one\r\ntwo\r\n")
    (project / "latin.txt").write_bytes("grün\n".encode("latin-1"))
    (project / "picture.bin").write_bytes(bytes(range(256)))
    commit_all(project, monkeypatch, "params.yaml", "tasks", "windows.txt", "latin.txt", "picture.bin")
    return project


def test_a_clean_commit_is_exact(repository: Path) -> None:
    (repository / "tasks" / "a.py").touch()
    (repository / "notes.txt").write_text("no code\n")
    (repository / "tasks" / "__pycache__").mkdir()
    (repository / "tasks" / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    state = git_state()
    assert state == Provenance(git("rev-parse", "HEAD").decode().strip(), False, "")
    assert state.is_exact
    assert state.tags == {"refit.git_commit": state.commit, "refit.git_dirty": "false"}


def test_outside_of_git_the_commit_is_none_and_nothing_is_clean(project: Path) -> None:
    assert git_state() == Provenance(NONE, None, "")
    assert not git_state().is_exact
    assert git_state().tags["refit.git_dirty"] == UNKNOWN


def refuse_as_another_user(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # "dubious ownership"


def take_git_away(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))


def damage(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / ".git" / "HEAD").write_text("")


def lose_objects(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(repository / ".git" / "objects")
    (repository / ".git" / "objects").mkdir()


def hang(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (repository / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{repository}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("refit.registry.provenance._SECONDS", 0.05)


@pytest.mark.parametrize("break_it", [refuse_as_another_user, take_git_away, damage, lose_objects, hang])
def test_what_git_does_not_tell_is_unknown(
    repository: Path, break_it: Callable[[Path, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(repository, monkeypatch)
    state = git_state()
    assert (state.is_dirty, state.diff, state.is_exact) == (None, "", False)
    assert state.tags["refit.git_dirty"] == state.evidence.dirty == UNKNOWN
    assert state.commit == UNKNOWN or break_it is lose_objects
    if break_it is not hang:  # nobody who waits for a commit wants it to be given up
        with pytest.raises(WorkspaceError, match="git"):
            commits.require_clean_code()


@pytest.mark.parametrize(
    "name", ["extra.py", "deep/er/extra.py", "fast.so", "tasks/extra.py", "tasks/hidden.py", "flows/hidden.pyd"]
)
def test_untracked_source_that_can_be_imported_is_a_change(repository: Path, name: str) -> None:
    with (repository / ".gitignore").open("a") as ignored:
        ignored.write("hidden.*\n")
    git("commit", "--quiet", "--all", "--message", "ignore")
    assert git_state().is_exact
    (repository / name).parent.mkdir(parents=True, exist_ok=True)
    (repository / name).write_bytes(b"\0")
    assert untracked_source() == [name]
    state = git_state()
    assert state.is_dirty
    assert name in state.diff
    with pytest.raises(WorkspaceError, match=rf"{name} changed since the last commit"):
        commits.require_clean_code()


def test_what_is_installed_or_ignored_elsewhere_is_no_source_of_ours(repository: Path) -> None:
    (repository / ".refit").mkdir()
    (repository / ".refit" / "x.py").write_text("")
    (repository / "env" / "lib" / "site-packages").mkdir(parents=True)
    (repository / "env" / "lib" / "site-packages" / "x.py").write_text("")
    assert untracked_source() == []
    assert git_state().is_exact


@pytest.mark.parametrize("folder", [".", "tasks"])
def test_settings_of_dvc_are_no_code_and_a_secret_in_them_reaches_no_patch(
    folder: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository / folder)
    config = Path(".dvc", "config")
    config.parent.mkdir()
    config.write_text("[core]\n    autostage = false\n")
    git("add", "--force", str(config))
    git("commit", "--quiet", "--message", "DVC")
    config.write_text("['remote \"s\"']\n    secret_access_key = s3cret\n")
    assert git_state().is_exact
    with (repository / "params.yaml").open("a") as file:
        file.write("# a change\n")
    assert "+# a change" in git_state().diff
    assert "s3cret" not in git_state().diff


@pytest.mark.parametrize("hide", ["--assume-unchanged", "--skip-worktree"])
def test_a_change_that_git_was_told_to_overlook_is_one(repository: Path, hide: str) -> None:
    git("update-index", hide, "params.yaml")
    with (repository / "params.yaml").open("a") as file:
        file.write("# a change\n")
    assert git("status", "--porcelain") == b""
    assert "+# a change" in git_state().diff


def test_the_difference_makes_the_same_files_of_the_commit_whatever_they_are(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Binary files, foreign line ends and encodings, new and deleted files, and a user's own settings of git."""
    changed = {
        "windows.txt": b"one\r\n2\r\n",
        "latin.txt": "grüner\n".encode("latin-1"),
        "picture.bin": bytes(reversed(range(256))),
        "tasks/new.py": b"",
        "tasks/fast.so": b"\x7fELF\0\xff",
        "ein Ümlaut.py": b"A = 1",
    }
    for name, content in changed.items():
        (repository / name).write_bytes(content)
    (repository / "tasks" / "a.py").unlink()
    settings = tmp_path / "gitconfig"
    settings.write_text(
        "[diff]\n    noprefix = true\n    context = 0\n    external = /bin/true\n[color]\n    ui = always\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    index = (repository / ".git" / "index").read_bytes()
    state = git_state()
    assert (repository / ".git" / "index").read_bytes() == index, "the user's index stays"
    git("clone", "--quiet", str(repository), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    Path("change.diff").write_bytes(state.diff.encode())
    git("apply", "change.diff")
    assert {name: Path(name).read_bytes() for name in changed} == changed
    assert not Path("tasks/a.py").exists()


@pytest.mark.parametrize(
    ("commit", "dirty", "expected"),
    [
        ("f" * 40, False, None),
        ("f" * 40, True, r"changes that commit ffffffffffff does not hold: commit them .*`refit register`.*--commit`"),
        ("f" * 40, UNKNOWN, "git did not tell"),
        (UNKNOWN, UNKNOWN, "git did not tell"),
        (NONE, UNKNOWN, "outside of git"),
        (NONE, False, "outside of git"),  # as it was written before
    ],
)
def test_only_a_known_clean_commit_leaves_no_doubt(
    commit: str, dirty: bool | Literal["unknown"], expected: str | None
) -> None:
    doubt = doubt_of(GitState(commit, dirty, sha256_of_json("")))
    assert (doubt is None) if expected is None else re.search(expected, str(doubt))


@pytest.mark.usefixtures("no_probe")
def test_untracked_source_comes_along_when_a_version_is_made_again(committed: Path, tmp_path: Path) -> None:
    (committed / "extra.py").write_bytes("# größer\r\n".encode("latin-1"))
    version = register.register_candidate().version
    clone = tmp_path / "clone"
    git("clone", "--quiet", str(committed), str(clone))
    said: list[str] = []
    reproduce._apply_changes(version, versions.bundle_of(version, load_params().register), clone, said.append)
    assert "extra.py" in said[0]
    assert (clone / "extra.py").read_bytes() == (committed / "extra.py").read_bytes()


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize("commit", [NONE, UNKNOWN, "f" * 40])
def test_what_no_commit_holds_is_not_made_again_from_something_else(
    trained: Path, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "git_state", lambda: Provenance(commit, None, ""))
    register.register_candidate()
    with pytest.raises(EvidenceError, match=r"pets-candidates/1 cannot be made again: .*`refit register` names that"):
        reproduce.reproduce("1", print)


STEALS = (
    "import os, pathlib, sys\npathlib.Path({seen!r}).write_text(os.environ['AWS_SECRET_ACCESS_KEY'])\nsys.exit(0)\n"
)


@pytest.mark.parametrize("below", ["", "tasks"])
def test_data_is_brought_by_nothing_that_a_commit_or_a_patch_says(
    below: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a module of the name of DVC, nor settings that send the secrets elsewhere; and none of them is left."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    env = dict(os.environ)
    dvc("init", "--quiet", "--no-scm", cwd=repository, env=env)
    Path("data.txt").write_text("what was learned from")
    dvc("add", "--quiet", "data.txt", cwd=repository, env=env)
    dvc("remote", "add", "--quiet", "--default", "storage", str(tmp_path / "storage"), cwd=repository, env=env)
    dvc("push", "--quiet", cwd=repository, env=env)
    cache = "[cache]\n    type = copy\n"
    Path(".dvc/config.local").write_text(
        f"[core]\n    checksum_jobs = 1\n{cache}['remote \"more\"']\n    url = /s3cret\n"
    )

    clone, seen = tmp_path / "clone", tmp_path / "seen"
    for name in (".dvc", "tasks"):
        (clone / name).mkdir(parents=True)
    of_commit = (
        f"[core]\n    no_scm = true\n    remote = storage\n['remote \"storage\"']\n    url = {tmp_path}/theirs\n"
    )
    (clone / ".dvc" / "config").write_text(of_commit)
    (clone / below / "dvc.py").write_text(STEALS.format(seen=str(seen)))
    shutil.copy("data.txt.dvc", clone)
    said: list[str] = []
    reproduce._bring_data(repository / below, clone / below, said.append)
    assert said == ["dvc pull"]
    assert (clone / "data.txt").read_text() == "what was learned from"
    assert not seen.exists()
    assert (clone / ".dvc" / "config").read_text() == of_commit
    assert (clone / ".dvc" / "config.local").read_text() == cache


@pytest.mark.parametrize(
    "dependency",
    [
        "{path: data, repo: {url: 'https://x.example', remote: {url: 'webdav://x', bearer_token_command: 'id'}}}",
        "{path: 's3://x/data', \"fs\\x5fconfig\": {endpointurl: 'https://x.example'}}",
    ],
)
def test_data_that_says_itself_how_it_is_brought_is_brought_by_who_read_it(tmp_path: Path, dependency: str) -> None:
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    for folder in (own, theirs / "deep"):
        folder.mkdir(parents=True)
    (theirs / "fine.dvc").write_text("deps:\n- path: s3://bucket/data\nouts:\n- path: fine\n")
    reproduce._require_no_addresses(own, theirs)
    (theirs / "deep" / "data.dvc").write_text(f"deps:\n- {dependency}\nouts:\n- path: data\n")
    with pytest.raises(WorkspaceError, match=r"deep/data\.dvc of the version says itself how its data is brought"):
        reproduce._require_no_addresses(own, theirs)
    shutil.copytree(theirs / "deep", own / "deep")
    reproduce._require_no_addresses(own, theirs)


def test_a_project_below_its_repository_is_found_in_the_clone(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git("rev-parse", "HEAD").decode().strip()
    monkeypatch.chdir(repository / "tasks")
    assert reproduce._clone(commit, tmp_path / "clone") == tmp_path / "clone" / "tasks"
    assert (tmp_path / "clone" / "tasks" / "a.py").exists()


TRAINS = """
import subprocess, sys, time
training = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("begun", "w").write(str(training.pid))
time.sleep(600)
"""


def test_a_training_ends_with_what_asked_for_it(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def interrupt() -> None:
        while not (begun.exists() and begun.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may ignore it
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            reproduce._run([sys.executable, "-c", TRAINS], tmp_path, is_group=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)
