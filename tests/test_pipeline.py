"""The whole chain, with the real parts: DVC, git, a Prefect server, an MLflow server. Each runs once.

One DAG, two drivers: `dvc repro` in one clone, the flow in another; both must leave the same bytes.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refit.params import read_yaml
from refit.paths import STAGE_OUTPUTS

from .conftest import change_params
from .services import clone, dvc, environment, mlflow_server, origin, post, prefect_api, refit, run

__all__ = ["mlflow_server", "origin", "prefect_api"]  # fixtures


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


def stages_run(said: str) -> list[str]:
    """`environment` always runs: it only looks which versions are installed."""
    return re.findall(r"Running stage '(\w+)'", said)


def test_after_the_flow_dvc_recomputes_nothing(by_flow: tuple[Path, dict[str, str], Any]) -> None:
    folder, env, _ = by_flow
    assert stages_run(dvc("repro", cwd=folder, env=env)) == ["environment"]


def test_after_dvc_the_flow_recomputes_nothing(by_dvc: Path) -> None:
    """Without a Prefect server, too: the flow brings its own."""
    env = environment(by_dvc.parent)
    said = refit("retrain", cwd=by_dvc, env=env)
    assert stages_run(said) == ["environment"]
    assert said.count("didn't change, skipping") == len(STAGE_OUTPUTS) - 1
    assert "models:/digits-candidates/1" in said
    again = refit("retrain", cwd=by_dvc, env=env)
    assert "models:/digits-candidates/1  (this content was registered before)" in again
    assert "Unchanged('it was registered, with a comparison with the present champion'" in again
    assert "Starting temporary server" not in said + again, "Prefect's own would take twice as long"


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
    assert stages_run(dvc("repro", cwd=other, env=env)) == ["environment"]


def test_the_flow_run_tells_its_story_in_prefect(by_flow: tuple[Path, dict[str, str], dict[str, Any]]) -> None:
    _, env, summary = by_flow
    flow_runs = post(env["PREFECT_API_URL"], "flow_runs/filter", limit=200)
    assert [flow_run["state"]["type"] for flow_run in flow_runs] == ["COMPLETED"]
    assert flow_runs[0]["name"].startswith("retrain digits 20")
    task_runs = post(env["PREFECT_API_URL"], "task_runs/filter", limit=200)
    assert {task_run["name"] for task_run in task_runs} >= set(STAGE_OUTPUTS)
    shown = post(env["PREFECT_API_URL"], "artifacts/filter", limit=200)
    artifacts = {artifact["key"]: artifact["data"] for artifact in shown}
    assert "## Data validation passed" in artifacts["validation"]
    assert "## Evaluation on" in artifacts["evaluation"]
    assert summary["links"]["version"] in artifacts["mlflow-version"]
    logs = "\n".join(log["message"] for log in post(env["PREFECT_API_URL"], "logs/filter", limit=200))
    assert "> python -m tasks.finetune" in logs
    assert "epoch   1/1" in logs


def test_the_version_on_the_server_predicts(by_flow: tuple[Path, dict[str, str], dict[str, Any]]) -> None:
    folder, env, summary = by_flow
    image = "data/sample/3/0003.png"
    there = json.loads(
        refit("predict", image, "--model", summary["uri"], "--json", "--probabilities", cwd=folder, env=env)
    )
    here = json.loads(refit("predict", image, "--json", "--probabilities", cwd=folder, env=env))
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
    for plot in ("Loss by epoch", "Confusion on the test examples", "Calibration on the test examples"):
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
    assert said.strip().splitlines()[-1].startswith("error: the data is not good enough to train on: 1 of 1 examples")
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


def test_the_first_clean_commit_takes_over_a_version_made_before_it(
    by_flow: tuple[Path, dict[str, str], dict[str, Any]], origin: Path, tmp_path: Path
) -> None:
    """`refit retrain`, then `refit retrain --commit`: the version names the commit that holds its dvc.lock."""
    folder = clone(origin, tmp_path / "late")
    env = by_flow[1] | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/late.db"}
    dvc("remote", "add", "--default", "--local", "storage", str(by_flow[0].parent / "storage"), cwd=folder, env=env)
    first = json.loads(run_quietly("retrain", "--json", cwd=folder, env=env))
    second = json.loads(run_quietly("retrain", "--commit", "--json", cwd=folder, env=env))
    assert second["version"] == first["version"]
    assert not second["is_new"]
    assert second["git_commit"] == run("git", "rev-parse", "HEAD", cwd=folder, env=env).strip() != first["git_commit"]
    assert "dvc.lock" in run("git", "show", "--name-only", "--format=", "HEAD", cwd=folder, env=env)


def run_quietly(*arguments: str, cwd: Path, env: dict[str, str]) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "flows", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_prefect_server_that_is_down_is_said_in_one_line(by_dvc: Path) -> None:
    env = environment(by_dvc.parent, PREFECT_API_URL="http://127.0.0.1:9/api")
    said = refit("retrain", cwd=by_dvc, env=env, expected=12)
    assert said.startswith("error: the Prefect server at http://127.0.0.1:9/api does not answer")
    assert len(said.strip().splitlines()) == 1


def test_a_terminated_command_takes_its_stage_along(by_dvc: Path) -> None:
    env = environment(by_dvc.parent)
    manifest = by_dvc / "data" / "manifest.parquet"
    before = manifest.read_bytes()
    manifest.unlink()
    (by_dvc / ".dvc" / "cache").rename(by_dvc / ".dvc" / "cache.away")  # so that it has to run
    command = [sys.executable, "-m", "flows", "validate"]
    with subprocess.Popen(command, cwd=by_dvc, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("> python -m tasks."):
                process.send_signal(signal.SIGTERM)
                break
        process.stderr.read()
    assert process.returncode == 143
    running = subprocess.run(["pgrep", "-af", "tasks.ingest|tasks.sample"], capture_output=True, text=True, check=False)
    assert str(by_dvc) not in "".join(str(Path(f"/proc/{pid}/cwd").readlink()) for pid in _pids(running.stdout))
    (by_dvc / ".dvc" / "cache.away").rename(by_dvc / ".dvc" / "cache")
    dvc("checkout", "--force", cwd=by_dvc, env=env)
    assert manifest.read_bytes() == before


def _pids(listing: str) -> list[str]:
    found = [line.split()[0] for line in listing.splitlines()]
    return [pid for pid in found if Path(f"/proc/{pid}/cwd").exists()]
