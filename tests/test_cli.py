"""The command line: help for everything, one line for a mistake, the documented exit codes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from flows import cli, commits, pipeline
from flows.cli import main
from tasks.errors import ERRORS_BY_EXIT_CODE, CheckpointError, DataError, RefitError, WorkspaceError

from .conftest import ROOT, change_params, draw


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (project / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    monkeypatch.setattr(cli, "_STARTED_IN", project)
    return project


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("command", [None, *main.commands])
def test_every_command_and_option_has_help(command: str | None) -> None:
    shown = call(*([command] if command else []), "--help")
    assert shown.exit_code == 0
    parameters = (main.commands[command] if command else main).params
    for parameter in parameters:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_the_exit_codes_in_the_help_are_those_of_the_errors() -> None:
    listed = {int(code) for code in re.findall(r"(?<!\d)(\d+)  [a-zA-Z]", call("--help").stdout)}
    assert listed == {0, 130} | set(ERRORS_BY_EXIT_CODE)


def test_outside_a_project_the_way_in_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("status")
    assert result.exit_code == 8
    assert "no project here" in result.stderr
    assert "--project" in result.stderr


def test_a_project_is_found_from_within_and_by_option(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "data" / "deep").mkdir(parents=True)
    change_params(here / "params.yaml", {"finetune.epochs": 0})
    for arguments in (["status"], ["--project", str(here), "status"]):
        monkeypatch.chdir(here / "data" / "deep" if len(arguments) == 1 else "/")
        result = call(*arguments)
        assert (result.exit_code, result.stderr) == (
            2,
            "error: params.yaml: `finetune.epochs` is 0, it should be greater than or equal to 1\n",
        )


@pytest.mark.parametrize("command", ["retrain", "validate", "status"])
def test_a_mistake_in_params_is_said_before_anything_is_started(here: Path, command: str) -> None:
    change_params(here / "params.yaml", {"finetune.model": "resnet19"})
    result = call(command)
    assert result.exit_code == 2
    assert "did you mean `resnet1" in result.stderr
    assert sorted(path.name for path in here.iterdir()) == ["dvc.yaml", "params.yaml"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "cannot be read: No such file"), (b"", "empty file"), (b"hello", "not an image (text)")],
)
def test_predict_names_the_file_that_is_no_image(here: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        (here / "a.png").write_bytes(content)
    result = call("predict", "a.png")
    assert result.exit_code == 3
    assert "a.png" in result.stderr
    assert expected in result.stderr


def test_predict_without_a_model_says_how_to_get_one(here: Path) -> None:
    draw(1).save(here / "a.png")
    result = call("predict", "a.png")
    assert result.exit_code == 4
    assert "models/model.safetensors is missing; `dvc pull`" in result.stderr


def test_register_without_outputs_says_how_to_get_them(here: Path) -> None:
    result = call("register", "--json")
    assert result.exit_code == 8
    assert "run `dvc repro` or `refit retrain`" in result.stderr
    assert result.stdout == ""


# How the flow reads what DVC says


@pytest.mark.parametrize(
    ("lines", "kind", "message"),
    [
        (
            [
                "> python -m tasks.validate",
                "error: the data is bad",
                "ERROR: failed to reproduce 'validate': exited with 3",
            ],
            DataError,
            "the data is bad",
        ),
        (["error: no", "ERROR: failed to reproduce 'fetch': failed to run: x, exited with 4"], CheckpointError, "no"),
        (["ERROR: failed to reproduce 'finetune': failed to run: x, exited with -9"], RefitError, "exited with -9"),
        (["ERROR: './dvc.yaml' is invalid."], WorkspaceError, "stage s failed: './dvc.yaml' is invalid."),
        ([], WorkspaceError, "no output"),
    ],
)
def test_a_failed_stage_is_the_error_that_it_said(lines: list[str], kind: type[RefitError], message: str) -> None:
    error = pipeline._as_error("s", lines)
    assert type(error) is kind
    assert message in str(error)


def test_a_locked_workspace_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        ["ERROR: Unable to acquire lock. Most likely another DVC process is running"],
        ["ERROR: 'data' is busy, it is being blocked by:"],
        [],
    ]

    def locked_twice(_command: list[str], lines: list[str], _log: object) -> int:
        lines += answers.pop(0)
        return 1 if lines else 0

    monkeypatch.setattr(pipeline, "_run", locked_twice)
    monkeypatch.setattr(pipeline, "_SECONDS_BETWEEN_LOCK_ATTEMPTS", 0.0)
    said: list[str] = []
    pipeline.reproduce("ingest", said.append)
    assert answers == []
    assert said == ["ingest: another DVC process works in this folder; waiting for it"] * 2


def test_an_interruption_stops_the_stage_and_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    work = f"subprocess.run(['sh', '-c', 'sleep 30; touch {marker}'])"
    code = f"import subprocess; print('go', flush=True); {work}"

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt):
        pipeline._run([sys.executable, "-c", code], [], interrupt)
    alive = subprocess.run(["pgrep", "-f", f"touch {marker}"], capture_output=True, check=False)
    assert alive.returncode == 1


# A run is a commit


@pytest.fixture
def repository(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@example.org")
    (here / "code.py").write_text("1\n")
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        subprocess.run(["git", *arguments], check=True)
    return here


def test_a_commit_holds_the_run_and_nothing_else(repository: Path) -> None:
    (repository / "dvc.lock").write_text("a: 1\n")
    (repository / "code.py").write_text("2\n")
    (repository / "stray.txt").write_text("x")
    change_params(repository / "params.yaml", {"finetune.epochs": 3})
    sha = commits.commit_run("A run")
    shown = subprocess.run(
        ["git", "show", "--name-only", "--format=%s", sha], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["A", "run", "dvc.lock", "params.yaml"]
    assert commits.commit_run("Again") == sha, "nothing to commit: the present commit is the run's"


def test_changed_code_is_refused(repository: Path) -> None:
    commits.require_clean_code()
    change_params(repository / "params.yaml", {"finetune.epochs": 3})
    commits.require_clean_code()
    (repository / "code.py").write_text("2\n")
    with pytest.raises(WorkspaceError, match=r"code\.py changed since the last commit"):
        commits.require_clean_code()


def test_status_says_that_the_registry_is_down_and_goes_on() -> None:
    from flows.status import describe

    found = {"would_run": ["finetune"], "registry_error": "MLflow at x failed: no connection", "candidate": None}
    assert describe(found).splitlines() == [
        "Would run   finetune and what follows",
        "Registry    MLflow at x failed: no connection",
    ]
    assert json.dumps(found)
