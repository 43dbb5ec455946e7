"""Two registrations of one content at the same time, in one workspace and in two, make one version."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from refit import paths
from refit.errors import TrackingUnavailableError
from refit.locks import one_at_a_time
from refit.params import load_params
from refit.records import digest_of_record
from refit.registry import claims, local_registry, tracking
from tasks.register import register_candidate

from .conftest import ROOT, change_params
from .services import mlflow_server
from .test_tracking import client

__all__ = ["mlflow_server"]  # a fixture

# Locks


HOLD = """
import sys
from refit.locks import one_at_a_time
with one_at_a_time(), one_at_a_time():
    print("held", file=sys.stderr, flush=True)
    sys.stdin.read()
"""


@contextmanager
def child(code: str, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=cwd, env=env, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_second_waits_and_says_so_until_the_first_is_gone(tmp_path: Path) -> None:
    with child(HOLD, tmp_path) as first:
        assert first.stderr.readline() == "held\n"
        with child(HOLD, tmp_path) as second:
            assert "waiting for another `refit` that compares or registers here" in second.stderr.readline()
            first.kill()
            assert second.stderr.readline() == "held\n"


# Two processes


# Whoever is about to make a version stays there until the other one is as far, or waits.
REGISTER = """
import json, logging, os, sys
from pathlib import Path
import mlflow
from refit.gate.evidence import ServingCheck
from refit.registry import tracking
from tasks import register
from tasks.register import register_candidate
register.serving_check = lambda *arguments: ServingCheck(1, True, 0.0, 1.0, 1.0, 1.0, {})

def arrive(*_record):
    (Path(asked["meet"]) / str(os.getpid())).touch()
    return True

def create(*arguments):
    arrive()
    while len(list(Path(asked["meet"]).iterdir())) < 2:
        pass
    return original(*arguments)

original, tracking._create_version = tracking._create_version, create
for name in ("refit.locks", "refit.registry.claims"):
    logging.getLogger(name).addFilter(arrive)
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    os.chdir(asked["folder"])
    os.environ["MLFLOW_TRACKING_URI"] = asked["uri"]
    try:
        found = register_candidate()
    finally:
        arrive()
    print(json.dumps([found.version.version, found.is_new]), flush=True)
"""


@pytest.fixture(scope="module")
def registrars() -> Iterator[list["subprocess.Popen[str]"]]:
    with ExitStack() as stack:
        found = [stack.enter_context(child(REGISTER, ROOT)) for _ in range(2)]
        for process in found:
            assert process.stdout.readline() == "ready\n"
        yield found


@pytest.mark.parametrize("place", ["one workspace", "two copies"])
@pytest.mark.parametrize("registry", ["database", "server"])
def test_two_processes_register_once(
    registrars: list[Any],
    trained: Path,
    place: str,
    registry: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_server = registry == "server"
    uri = request.getfixturevalue("mlflow_server") if is_server else f"sqlite:///{trained}/mlflow.db"
    name = f"race-{place.split()[0]}"
    change_params(paths.PARAMS, {"register.model_name": name, "register.experiment": name})
    folders = [trained, trained]
    if place == "two copies":
        folders[1] = trained.parent / "copy"
        shutil.copytree(trained, folders[1])
    local_registry.ready(uri)  # else they would meet where it is made
    meet = trained.parent / "meet"
    meet.mkdir()
    for process, folder in zip(registrars, folders, strict=True):
        process.stdin.write(json.dumps({"folder": str(folder), "uri": uri, "meet": str(meet)}) + "\n")
        process.stdin.flush()
    lines = [process.stdout.readline() for process in registrars]
    for line, process in zip(lines, registrars, strict=True):
        assert line, process.stderr.read()
    answers = [json.loads(line) for line in lines]
    assert sorted(answers) == [["1", False], ["1", True]]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert [found.version for found in client().search_model_versions(f"name='{name}-candidates'")] in (["1"], [1])
    tags = client().get_registered_model(f"{name}-candidates").tags
    assert not [key for key in tags if key.startswith(claims.TAG)], "nobody claims it any more"


# Claims


@pytest.fixture
def claimed_elsewhere(trained: Path, no_probe: None) -> str:
    """The key of a claim that another workspace has made to the content that is here."""
    with tracking.connected(load_params().register) as mlflow_client:
        digest = registered_digest()
        mlflow_client.create_registered_model("pets-candidates")
        key = f"{claims.TAG}{digest}.elsewhere"
        mlflow_client.set_registered_model_tag("pets-candidates", key, "process 7 on another machine abcd")
    return key


def registered_digest() -> str:
    from tasks import register

    return digest_of_record(register._read_run().digests)


def test_who_sees_another_claim_waits(
    claimed_elsewhere: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited = []

    def wait(_seconds: float) -> None:
        tags = client().get_registered_model("pets-candidates").tags
        waited.append([key for key in tags if key.startswith(claims.TAG)])
        if len(waited) == 3:
            client().delete_registered_model_tag("pets-candidates", claimed_elsewhere)

    monkeypatch.setattr(claims.time, "sleep", wait)
    assert register_candidate().is_new
    assert waited == [[claimed_elsewhere]] * 3, "it withdraws its own while it waits"
    assert caplog.text.count("waiting for process 7 on another machine: the same content") == 1


def test_a_claim_that_never_changes_is_of_a_dead_process(
    claimed_elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_SECONDS_A_CLAIM_LIVES", 0.0)
    assert register_candidate().is_new
    assert claimed_elsewhere not in client().get_registered_model("pets-candidates").tags


def test_a_claim_that_a_killed_process_left_in_this_workspace_does_not_block(trained: Path, no_probe: None) -> None:
    with one_at_a_time():
        key = f"{claims.TAG}{registered_digest()}.{claims._workspace()}"
    with tracking.connected(load_params().register) as mlflow_client:
        mlflow_client.create_registered_model("pets-candidates")
        mlflow_client.set_registered_model_tag("pets-candidates", key, "process 7 here abcd")
    assert register_candidate().is_new
    assert client().get_registered_model("pets-candidates").tags == {}


def test_who_was_taken_for_dead_makes_no_version(
    trained: Path, no_probe: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{claims.TAG}{registered_digest()}.elsewhere"
    original = tracking._log_evidence

    def overtaken(*arguments: Any) -> str:
        client().set_registered_model_tag("pets-candidates", key, "process 7 on another machine abcd")
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(TrackingUnavailableError, match=r"process 7 .* took over"):
        patch.setattr(tracking, "_log_evidence", overtaken)
        register_candidate()
    assert client().search_model_versions("name='pets-candidates'") == []
    client().delete_registered_model_tag("pets-candidates", key)
    assert register_candidate().is_new
