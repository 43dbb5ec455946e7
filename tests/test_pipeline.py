"""The whole chain, with the real parts: DVC, git, a Prefect server, an MLflow server. Each runs once.

One DAG, two drivers: `dvc repro` in one clone, the flow in another; both must leave the same bytes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tasks.params import read_yaml
from tasks.paths import STAGE_OUTPUTS

from .conftest import ROOT, change_params

SECONDS_TO_START = 240  # a slow machine's first start of a server
IDENTITY = {
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.org", "GIT_CONFIG_GLOBAL": os.devnull,
}  # fmt: skip


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    return {
        **kept, **IDENTITY, "HOME": str(home), "PREFECT_HOME": str(home / ".prefect"), "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(SECONDS_TO_START),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", **more,
    }  # fmt: skip


def run(*command: str, cwd: Path, env: dict[str, str], expected: int = 0) -> str:
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == expected, f"{command}: {result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def refit(*arguments: str, cwd: Path, env: dict[str, str], expected: int = 0) -> str:
    return run(sys.executable, "-m", "flows", *arguments, cwd=cwd, env=env, expected=expected)


def dvc(*arguments: str, cwd: Path, env: dict[str, str]) -> str:
    return run(sys.executable, "-m", "dvc", *arguments, cwd=cwd, env=env)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(command: list[str], health: str, cwd: Path, env: dict[str, str]) -> Iterator[None]:
    with (
        (cwd / "server.log").open("w") as log,
        subprocess.Popen(
            command, cwd=cwd, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        ) as server,
    ):
        try:
            deadline = time.monotonic() + SECONDS_TO_START
            while True:
                try:
                    urlopen(health, timeout=5).close()
                    break
                except (URLError, OSError):
                    assert server.poll() is None, (cwd / "server.log").read_text()
                    assert time.monotonic() < deadline, (cwd / "server.log").read_text()
                    time.sleep(0.5)
            yield
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    settings = environment(home, PREFECT_SERVER_ANALYTICS_ENABLED="false", PREFECT_UI_ENABLED="false")
    for _ in serve(command, f"http://127.0.0.1:{port}/api/health", home, settings):
        yield f"http://127.0.0.1:{port}/api"


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server."""
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "artifacts"),
    ]  # fmt: skip
    settings = environment(home, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    for _ in serve(command, f"http://127.0.0.1:{port}/health", home, settings):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this code and quick params, as a team would clone it."""
    origin, home = tmp_path_factory.mktemp("origin"), tmp_path_factory.mktemp("home")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")) and name != "dvc.lock":
            (origin / name).parent.mkdir(parents=True, exist_ok=True)
            (origin / name).write_bytes((ROOT / name).read_bytes())
    change_params(origin / "params.yaml", {"finetune.epochs": 1, "evaluate.bootstrap_samples": 100})
    env = environment(home)
    run("git", "init", "--quiet", cwd=origin, env=env)
    run("git", "add", "--all", cwd=origin, env=env)
    run("git", "commit", "--quiet", "--message", "start", cwd=origin, env=env)
    return origin


def clone(origin: Path, target: Path) -> Path:
    run("git", "clone", "--quiet", str(origin), str(target), cwd=origin, env=environment(origin))
    return target


@pytest.fixture(scope="module")
def by_dvc(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that `dvc repro` has driven."""
    folder = clone(origin, tmp_path_factory.mktemp("clones") / "by-dvc")
    dvc("repro", cwd=folder, env=environment(folder.parent))
    return folder


@pytest.fixture(scope="module")
def by_flow(
    origin: Path, tmp_path_factory: pytest.TempPathFactory, prefect_api: str, mlflow_server: str
) -> tuple[Path, dict[str, str], dict[str, Any]]:
    """A clone that the flow has driven, against both servers, ending in a commit; with what it said."""
    folder = clone(origin, tmp_path_factory.mktemp("clones") / "by-flow")
    env = environment(folder.parent, PREFECT_API_URL=prefect_api, MLFLOW_TRACKING_URI=mlflow_server)
    dvc("remote", "add", "--default", "--local", "storage", str(folder.parent / "storage"), cwd=folder, env=env)
    said = subprocess.run(
        [sys.executable, "-m", "flows", "retrain", "--commit", "--json"],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    return folder, env, json.loads(said.stdout)


def test_both_drivers_leave_the_same_lock_and_the_same_bytes(by_dvc: Path, by_flow: tuple[Path, Any, Any]) -> None:
    folder = by_flow[0]
    assert (by_dvc / "dvc.lock").read_bytes() == (folder / "dvc.lock").read_bytes()
    for paths in STAGE_OUTPUTS.values():
        for path in paths:
            if (by_dvc / path).is_file():
                assert (by_dvc / path).read_bytes() == (folder / path).read_bytes(), path
    outs = read_yaml(by_dvc / "dvc.lock")["stages"]["finetune"]["outs"]
    assert "models/model.safetensors" in {out["path"] for out in outs}


def test_after_the_flow_dvc_recomputes_nothing(by_flow: tuple[Path, dict[str, str], Any]) -> None:
    folder, env, _ = by_flow
    assert "Running stage" not in dvc("repro", cwd=folder, env=env)


def test_after_dvc_the_flow_recomputes_nothing(by_dvc: Path) -> None:
    """Without a Prefect server, too: the flow brings its own."""
    env = environment(by_dvc.parent)
    said = refit("retrain", cwd=by_dvc, env=env)
    assert "Running stage" not in said
    assert said.count("unchanged: nothing to do") == len(STAGE_OUTPUTS)
    assert "models:/digits-candidates/1" in said
    again = refit("retrain", cwd=by_dvc, env=env)
    assert "models:/digits-candidates/1  (this content was registered before)" in again


def test_the_run_is_a_commit_and_names_its_version(by_flow: tuple[Path, dict[str, str], dict[str, Any]]) -> None:
    folder, env, summary = by_flow
    head = run("git", "rev-parse", "HEAD", cwd=folder, env=env).strip()
    assert summary["git_commit"] == head
    committed = run("git", "show", "--name-only", "--format=%s", head, cwd=folder, env=env).splitlines()
    assert committed[0].startswith("Retrain digits: test accuracy 0.")
    assert {"dvc.lock", "metrics/evaluation.json"} <= set(committed)
    assert run("git", "status", "--porcelain", cwd=folder, env=env) == ""
    assert summary["links"]["run"].startswith(env["MLFLOW_TRACKING_URI"])


def test_anybody_gets_exactly_that_run_by_git_and_dvc(
    by_flow: tuple[Path, dict[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    folder, env, _ = by_flow
    other = clone(folder, tmp_path / "other")
    dvc("remote", "add", "--default", "--local", "storage", str(folder.parent / "storage"), cwd=other, env=env)
    dvc("pull", cwd=other, env=env)
    for name in ("models/model.safetensors", "data/manifest.parquet", "reports/evaluation.html"):
        assert (other / name).read_bytes() == (folder / name).read_bytes()
    assert "Running stage" not in dvc("repro", cwd=other, env=env)


def test_the_flow_run_tells_its_story_in_prefect(by_flow: tuple[Path, dict[str, str], dict[str, Any]]) -> None:
    _, env, summary = by_flow
    flow_runs = post(env["PREFECT_API_URL"], "flow_runs/filter")
    assert [flow_run["state"]["type"] for flow_run in flow_runs] == ["COMPLETED"]
    assert flow_runs[0]["name"].startswith("retrain digits 20")
    task_runs = post(env["PREFECT_API_URL"], "task_runs/filter")
    assert {task_run["name"] for task_run in task_runs} >= set(STAGE_OUTPUTS)
    artifacts = {artifact["key"]: artifact["data"] for artifact in post(env["PREFECT_API_URL"], "artifacts/filter")}
    assert "## Data validation passed" in artifacts["validation"]
    assert "## Evaluation on" in artifacts["evaluation"]
    assert summary["links"]["version"] in artifacts["mlflow-version"]
    logs = "\n".join(log["message"] for log in post(env["PREFECT_API_URL"], "logs/filter"))
    assert "> python -m tasks.finetune" in logs
    assert "epoch   1/1" in logs


def post(api: str, path: str) -> list[dict[str, Any]]:
    from urllib.request import Request

    body = json.dumps({"limit": 200}).encode()
    request = Request(f"{api}/{path}", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_the_version_on_the_server_predicts(by_flow: tuple[Path, dict[str, str], dict[str, Any]]) -> None:
    folder, env, summary = by_flow
    image = "data/digits/3/0003.png"
    there = json.loads(refit("predict", image, "--model", summary["uri"], "--json", cwd=folder, env=env))
    here = json.loads(refit("predict", image, "--json", cwd=folder, env=env))
    assert there[0]["label"] == here[0]["label"]
    assert there[0]["probabilities"] == pytest.approx(here[0]["probabilities"])


def test_status_knows_what_would_run_and_what_is_registered(
    by_flow: tuple[Path, dict[str, str], dict[str, Any]],
) -> None:
    folder, env, summary = by_flow
    said = json.loads(refit("status", "--json", cwd=folder, env=env))
    assert said["would_run"] == []
    assert said["candidate"]["uri"] == summary["uri"]
    assert said["champion"] is None
    assert said["candidate"]["metrics"]["test_accuracy"] == summary["overall"]["accuracy"]["value"]


def test_an_experiment_is_compared_as_dvc_users_expect(by_dvc: Path) -> None:
    env = environment(by_dvc.parent)
    run("git", "add", "--all", cwd=by_dvc, env=env)
    run("git", "commit", "--quiet", "--message", "run", cwd=by_dvc, env=env)
    said = dvc("exp", "run", "--set-param", "finetune.learning_rate=1e-5", cwd=by_dvc, env=env)
    assert "Running stage 'finetune'" in said
    assert "Running stage 'ingest'" not in said
    difference = json.loads(dvc("metrics", "diff", "--json", cwd=by_dvc, env=env).strip())
    assert difference["metrics/evaluation.json"]["accuracy.value"]["diff"] < 0
    shown = dvc("plots", "show", "--out", str(by_dvc.parent / "plots"), cwd=by_dvc, env=env)
    page = (by_dvc.parent / "plots" / "index.html").read_text()
    assert "index.html" in shown
    for plot in ("Loss by epoch", "Confusion on the test images", "Calibration on the test images"):
        assert plot in page
    run("git", "checkout", "--quiet", "--", ".", cwd=by_dvc, env=env)
    dvc("checkout", "--force", cwd=by_dvc, env=env)


def test_an_mlflow_that_is_down_costs_nothing_but_a_second_command(
    by_flow: tuple[Path, dict[str, str], dict[str, Any]], mlflow_server: str
) -> None:
    """The registration fails, retries are cut short here; the model is kept; `refit register` completes it."""
    folder, env, summary = by_flow
    down = env | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    weights = (folder / "models/model.safetensors").read_bytes()
    said = refit("register", cwd=folder, env=down, expected=9)
    assert "MLflow at http://127.0.0.1:9 failed: no connection" in said
    assert "`refit register` completes the registration" in said
    assert "Traceback" not in said
    assert (folder / "models/model.safetensors").read_bytes() == weights
    assert summary["uri"] in refit("register", cwd=folder, env=env)


def test_bad_data_stops_the_flow_with_one_line_and_no_retry(
    by_flow: tuple[Path, dict[str, str], dict[str, Any]], origin: Path, tmp_path: Path
) -> None:
    folder = clone(origin, tmp_path / "bad")
    (folder / "data" / "mine" / "cat").mkdir(parents=True)
    (folder / "data" / "mine" / "cat" / "a.jpg").write_text("no image")
    change_params(folder / "params.yaml", {"data.source": "data/mine"})
    said = refit("retrain", cwd=folder, env=by_flow[1] | {"HOME": str(tmp_path)}, expected=3)
    assert said.strip().splitlines()[-1].startswith("error: the data is not good enough to train on: 1 of 1 images")
    assert "Traceback" not in said
    assert "AwaitingRetry" not in said
    assert "data/mine/cat/a.jpg" in (folder / "reports" / "validation.html").read_text()
    assert not (folder / "models/model.safetensors").exists()


def test_code_that_is_not_committed_is_no_proof(by_flow: tuple[Path, dict[str, str], dict[str, Any]]) -> None:
    folder, env, _ = by_flow
    source = folder / "tasks" / "finetune.py"
    before = source.read_text()
    source.write_text(before + "# changed\n")
    said = refit("retrain", "--commit", cwd=folder, env=env, expected=8)
    assert "tasks/finetune.py changed since the last commit" in said
    source.write_text(before)
