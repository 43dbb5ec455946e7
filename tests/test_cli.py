"""The command line: help for everything, one line for a mistake, the documented exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from flows.cli import main, start
from flows.tools import commits, dvc_process, pipeline
from refit.errors import (
    ERRORS_BY_EXIT_CODE,
    EXIT_CODES,
    REPRODUCED,
    CheckpointError,
    DataError,
    RefitError,
    WorkspaceError,
)

from .conftest import ROOT, change_params, draw


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (project / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    monkeypatch.setattr(start, "STARTED_IN", project)
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
    listed = dict(re.findall(r"^ +(\d+)  (\w.*)$", call("--help").stdout, re.MULTILINE))
    assert {int(code): meaning for code, meaning in listed.items()} == EXIT_CODES
    assert set(EXIT_CODES) == {0, 130, 143} | set(ERRORS_BY_EXIT_CODE) | set(REPRODUCED.values())


@pytest.mark.parametrize("outcome", ["identical", "equivalent", "different"])
def test_an_outcome_of_reproduce_is_never_taken_for_a_failure(
    here: Path, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import reproduce

    found = reproduce.Reproduction("v", "c", outcome, None, {}, {}, {})  # type: ignore[arg-type]
    monkeypatch.setattr(reproduce, "reproduce", lambda *_arguments: found)
    code = call("reproduce", "1").exit_code
    assert (code == 0) == (outcome == "identical")
    assert code not in ERRORS_BY_EXIT_CODE
    assert code != call("reproduce").exit_code, "a mistake on the command line"
    assert f"{code} {outcome}" in call("reproduce", "--help").stdout


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


def test_a_validation_that_ends_before_its_report_says_why(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(stage: str, say: Callable[[str], None], **_options: object) -> None:
        say("Running stage 'validate':")
        raise DataError("data/exceptions.csv: row 1, reason: must not be empty")

    (here / "data/sample").mkdir(parents=True)
    monkeypatch.setattr(pipeline, "reproduce", broken)
    result = call("validate")
    assert (result.exit_code, result.stderr.count("row 1, reason")) == (DataError.exit_code, 1)


def test_what_is_verified_is_looked_for_where_the_user_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "below" / "release").mkdir(parents=True)
    (here / "below" / "key.pem").write_text("no key")
    monkeypatch.setattr(start, "STARTED_IN", here / "below")
    result = call("verify", "release", "--key", "key.pem")
    assert result.exit_code in ERRORS_BY_EXIT_CODE, result.stderr
    assert "does not exist" not in result.stderr


def test_predict_takes_folders_lists_and_standard_input_and_one_bad_file_costs_the_others_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.cli.start.STARTED_IN", trained)
    folder = trained / "some"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("b.png", "deep/a.png", "deep/c.png")):
        draw(number).save(folder / name)
    (folder / "broken.png").write_text("no image")
    (folder / ".hidden").write_text("left out")
    (trained / "list").write_text("some/b.png\nsome/deep/a.png\n")

    result = call("predict", "some", "--json", "--probabilities")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert [Path(entry["file"]).name for entry in found] == ["b.png", "broken.png", "a.png", "c.png"]
    assert "not an image (text)" in found[1]["error"]
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1)
    assert result.stderr.splitlines()[-1] == "error: 1 of 4 files could not be labelled"
    assert "broken.png: not an image (text)" in result.stderr

    rows = call("predict", "--list", "list", "--csv", "--probabilities").stdout.splitlines()
    assert rows[0] == "file,label,probability,cat,dog"
    assert len(rows) == 3
    assert call("predict", "some/b.png", "--csv").stdout.splitlines()[0] == "file,label,probability"
    given = CliRunner().invoke(main, ["predict", "-"], input=(folder / "b.png").read_bytes())
    assert given.exit_code == 0, given.output
    assert given.stdout.split("\t")[:2] == ["-", found[0]["label"]]
    assert call("predict").exit_code == 2


def test_predict_without_a_model_says_how_to_get_one(here: Path) -> None:
    draw(1).save(here / "a.png")
    result = call("predict", "a.png")
    assert result.exit_code == 4
    assert "models/model.safetensors is missing" in result.stderr
    assert "`dvc pull` brings it back" in result.stderr


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

    def locked_twice(*_: object) -> tuple[int, list[str]]:
        lines = answers.pop(0)
        return (1 if lines else 0), lines

    monkeypatch.setattr(dvc_process, "run", locked_twice)
    monkeypatch.setattr(pipeline, "_has_remote", lambda: False)
    monkeypatch.setattr(pipeline, "_SECONDS_BETWEEN_LOCK_ATTEMPTS", 0.0)
    said: list[str] = []
    pipeline.reproduce("ingest", said.append)
    assert answers == []
    assert said == ["ingest: another DVC process works in this folder; waiting for it"] * 2


@pytest.fixture
def stage(here: Path) -> Callable[[str], None]:
    """A project of one stage `work`, which runs this shell command."""
    (here / ".dvc").mkdir()
    (here / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")

    def write(command: str) -> None:
        (here / "dvc.yaml").write_text(json.dumps({"stages": {"work": {"cmd": command, "outs": ["out"]}}}))

    return write


def test_dvc_is_started_once_and_says_whether_there_was_anything_to_do(stage: Callable[[str], None]) -> None:
    stage("echo working && echo a > out")
    process = dvc_process.start()
    said: list[str] = []
    assert pipeline.reproduce("work", said.append)
    assert "working" in said
    assert not pipeline.reproduce("work", said.append)
    assert dvc_process.start() is process


def test_a_stage_has_the_environment_and_folder_of_the_caller(
    stage: Callable[[str], None], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dvc_process.start()
    monkeypatch.setenv("REFIT_TEST", "of the caller")
    stage("echo $REFIT_TEST > out")
    pipeline.reproduce("work", print)
    assert (here / "out").read_text() == "of the caller\n"


def test_a_stage_does_not_read_the_requests(stage: Callable[[str], None], here: Path) -> None:
    stage("cat > out")
    pipeline.reproduce("work", print)
    assert (here / "out").read_text() == ""


def test_a_mistake_in_what_is_asked_does_not_end_dvc(stage: Callable[[str], None]) -> None:
    stage("echo a > out")
    process = dvc_process.start()
    status, lines = dvc_process.run(["repro", "--nonsense"], lambda line: None)
    assert status != 0
    assert any("--nonsense" in line for line in lines)
    assert process.poll() is None


def test_an_interruption_stops_the_stage_and_its_children(stage: Callable[[str], None], tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    stage(f"echo go && sh -c 'sleep 30; touch {marker}'")

    def interrupt(line: str) -> None:
        if line == "go":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.reproduce("work", interrupt)
    alive = subprocess.run(["pgrep", "-f", f"touch {marker}"], capture_output=True, check=False)
    assert alive.returncode == 1
    stage("echo a > out")
    assert pipeline.reproduce("work", print), "the next stage gets a new process"


SAVES = """
import signal, sys, time

def save(*_):
    time.sleep(1)
    open(sys.argv[1], "w").write("saved")
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
print("go", flush=True)
time.sleep(60)
"""
STAYS = """
import signal, time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("go", flush=True)
time.sleep(60)
"""


def test_a_stopped_stage_may_save_its_state(stage: Callable[[str], None], here: Path) -> None:
    """DVC itself ends at the first signal, long before."""
    (here / "work.py").write_text(SAVES)
    stage(f"echo begin && {sys.executable} work.py state")
    said: list[str] = []

    def interrupt(line: str) -> None:
        said.append(line)
        if line == "go":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.reproduce("work", interrupt)
    assert (here / "state").read_text() == "saved"
    assert said[-1] == "stopping; what trains may save its state first (20 s)"


def test_a_stage_that_will_not_stop_is_killed(
    stage: Callable[[str], None], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_process, "SECONDS_TO_SAVE", 0.3)
    (here / "stays.py").write_text(STAYS)
    stage(f"{sys.executable} {here}/stays.py")

    def interrupt(line: str) -> None:
        if line == "go":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.reproduce("work", interrupt)
    alive = subprocess.run(["pgrep", "-f", f"{here}/stays.py"], capture_output=True, check=False)
    assert alive.returncode == 1


def test_a_stage_whose_dvc_is_killed_has_failed(stage: Callable[[str], None]) -> None:
    stage("kill -9 $PPID")
    with pytest.raises(RefitError, match="stage work failed"):
        pipeline.reproduce("work", print)


def test_a_stage_that_takes_too_long_is_stopped(stage: Callable[[str], None], tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    stage(f"sh -c 'sleep 30; touch {marker}'")
    with pytest.raises(WorkspaceError, match=r"was stopped after .* hours; raise `flow\.stage_timeout_hours`"):
        pipeline.reproduce("work", print, timeout_seconds=2)
    alive = subprocess.run(["pgrep", "-f", f"touch {marker}"], capture_output=True, check=False)
    assert alive.returncode == 1


def test_with_a_remote_it_is_also_said_that_nothing_changed(stage: Callable[[str], None], here: Path) -> None:
    stage("echo a > out")
    with (here / ".dvc" / "config").open("a") as config:
        config.write(f"    remote = storage\n['remote \"storage\"']\n    url = {here / 'storage'}\n")
    said: list[str] = []
    assert pipeline.reproduce("work", said.append)
    assert not pipeline.reproduce("work", said.append)
    assert said[-1] == "Stage 'work' didn't change, skipping"


BROKEN = """
import os
from flows.tools import dvc_child

def broken(arguments, folder, environment):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what DVC does with a broken pipe, wherever it comes from
    return 141

dvc_child.command = broken
dvc_child.main()
"""


def test_a_broken_pipe_within_dvc_is_an_exit_status() -> None:
    request = json.dumps({"arguments": [], "folder": "", "environment": {}, "mark": "end "})
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN], input=f"{request}\n" * 2, capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ended.stdout.splitlines() == ["end 141", "end 141"]


def test_the_process_of_dvc_needs_no_file_of_the_project(stage: Callable[[str], None]) -> None:
    """A worker checks out commits that may have another one, or none."""
    stage("echo a > out")
    process = dvc_process.start()
    assert pipeline.reproduce("work", print)
    assert isinstance(process.args, list)
    assert "flows" not in [word for line in process.args[-1].splitlines() if "import" in line for word in line.split()]


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
    from flows.cli.status import Status, describe

    found = Status("digits", ("finetune",), None, None, "MLflow at x failed: no connection")
    assert describe(found).splitlines() == [
        "Would run   finetune and what follows",
        "Registry    MLflow at x failed: no connection",
    ]


def test_a_missing_data_source_is_said_with_the_way_out(here: Path) -> None:
    (here / ".dvc").mkdir()
    (here / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    change_params(here / "params.yaml", {"data.source": "data/nope"})
    for command in ("retrain", "validate"):
        result = call(command)
        assert result.exit_code == 3
        assert "the data source data/nope does not exist; set `data.source` in params.yaml" in result.stderr


def test_an_old_report_is_not_shown_as_this_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "reports").mkdir()
    (here / "reports" / "validation.json").write_text('{"passed": true}')

    def fail_in_ingest(_target: str, log: Callable[[str], None], **_options: object) -> None:
        log("Running stage 'ingest':")
        raise DataError("the data source holds no examples")

    monkeypatch.setattr(pipeline, "reproduce", fail_in_ingest)
    monkeypatch.setattr(pipeline, "require_source", lambda source: None)
    result = call("validate", "--json")
    assert (result.exit_code, result.stdout) == (3, "")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_has_its_exit_code(
    here: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, code: int
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A background job of a script (`make test &`) has SIGINT ignored from its start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(pipeline, "require_source", lambda source: None)
    monkeypatch.setattr(pipeline, "reproduce", lambda *arguments, **options: os.kill(os.getpid(), sent))
    try:
        assert call("validate").exit_code == code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_lock_is_waited_for_when_dvc_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.lock import LockError

    monkeypatch.setattr(pipeline, "_SECONDS_BETWEEN_LOCK_ATTEMPTS", 0.0)
    monkeypatch.chdir(ROOT)
    answers = [LockError("busy"), LockError("busy"), "answer"]

    def question(_repo: object) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert pipeline._ask(question) == "answer"


def test_code_that_git_does_not_know_is_refused(repository: Path) -> None:
    (repository / "tasks").mkdir()
    (repository / "tasks" / "new.py").write_text("1\n")
    with pytest.raises(WorkspaceError, match=r"tasks/new\.py changed since the last commit"):
        commits.require_clean_code()


def test_a_project_may_lie_in_a_folder_of_a_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "deep").mkdir()
    (repository / "deep" / "params.yaml").write_text("a: 1\n")
    subprocess.run(["git", "add", "--all"], check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "deep"], check=True)
    monkeypatch.chdir(repository / "deep")
    (repository / "deep" / "params.yaml").write_text("a: 2\n")
    commits.require_clean_code()
    before = commits.head()
    assert commits.commit_run("A run") != before


def test_data_that_nobody_else_could_get_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"data/mine": None, "data/sample": "sample", "data/photos": "data/photos.dvc"}
    monkeypatch.setattr(pipeline, "_owner_of", owners.get)
    pipeline.require_tracked_source("data/sample")
    with pytest.raises(WorkspaceError, match=r"`dvc add data/mine` first"):
        pipeline.require_tracked_source("data/mine")
    (repository / "data" / "photos").mkdir(parents=True)
    monkeypatch.setattr(pipeline, "is_unchanged", lambda target: False)
    with pytest.raises(WorkspaceError, match=r"data/photos has changed since data/photos\.dvc was written"):
        pipeline.require_tracked_source("data/photos")


@pytest.mark.parametrize("kind", list(ERRORS_BY_EXIT_CODE.values()))
def test_the_flow_retries_what_may_help_and_nothing_else(
    kind: type[RefitError], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.tools import policy

    monkeypatch.setattr(policy, "RETRY_DELAYS_SECONDS", [0.0, 0.0])
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise kind("x")

    with pytest.raises(kind):
        policy.retried(fail, lambda message: None)
    assert len(calls) == (3 if kind.retryable else 1)
    from prefect.states import Failed

    assert policy.may_help(None, None, Failed(data=kind("x"))) == kind.retryable  # type: ignore[arg-type]
