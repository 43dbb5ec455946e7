"""Scheduled retraining with real workers: a Prefect server, process workers with homes of their own, a bare git
repository, a DVC remote folder, data imported from a bucket (a folder). One story, told in order, set up by the very
commands of docs/operations.md.
"""

import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, change_params, draw, write_image_folder
from .pages import command, commands, filled
from .services import dvc, environment, origin, post, prefect_api, refit, run

__all__ = ["origin", "prefect_api"]  # fixtures

PAGE = "docs/operations.md"
SECONDS_FOR_A_RUN = 420  # a bound for a hung test, not a speed that is asked for
SILENCE_SECONDS = 12


@dataclass
class Team:
    """A team's set-up on one machine, and its running workers."""

    folder: Path
    env: dict[str, str]
    workers: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def bucket(self) -> Path:
        return self.folder / "bucket"

    def start_worker(self, name: str, pool: str) -> None:
        """As the page says, under a name."""
        start = filled(command(PAGE, f"--pool {pool}"), {"http://<mlflow>": self.env["MLFLOW_TRACKING_URI"]})
        self._start(name, ["sh", "-c", f"exec env {start} --name {name}"])

    def start_container(self, name: str, pool: str) -> None:
        """As deploy/compose.yaml does."""
        self._start(name, [sys.executable, str(ROOT / "deploy/worker.py"), f"--pool={pool}", f"--name={name}"])

    def _start(self, name: str, worker: list[str]) -> None:
        home = self.folder / name
        home.mkdir()
        with (home / "log").open("w") as log:
            self.workers[name] = subprocess.Popen(
                worker,
                cwd=home, env=self.env | {"HOME": str(home), "PREFECT_HOME": str(home / ".prefect")},
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def type(self, *lines: str) -> str:
        """Type commands of the page, in the project's folder."""
        script = "\n".join(filled(line, self.says) for line in lines)
        return run("bash", "-e", "-c", script, cwd=self.folder / "seed", env=self.env)

    @property
    def says(self) -> dict[str, str]:
        """What the page says, and what it is here."""
        return {
            "s3://bucket/refit": str(self.folder / "storage"), "s3://bucket/photos": str(self.bucket),
            "<git address>": str(self.folder / "origin.git"), "http://<server>:4200/api": self.env["PREFECT_API_URL"],
        }  # fmt: skip

    def kill(self, name: str) -> None:
        """SIGKILL the worker and all that it started, as a power cut would."""
        for pid in _family(self.workers.pop(name).pid):
            os.kill(pid, signal.SIGKILL)

    def api(self, path: str, **body: Any) -> Any:
        return post(self.env["PREFECT_API_URL"], path, **body)

    def runs(self, flow: str) -> list[dict[str, Any]]:
        found = self.api("flow_runs/filter", flows={"name": {"any_": [flow]}}, sort="START_TIME_ASC", limit=100)
        return [entry for entry in found if entry["deployment_id"]]

    def begin(self) -> str:
        """Ask for a scheduled run now."""
        deployment = self.api("deployments/filter", deployments={"name": {"any_": ["scheduled"]}})[0]["id"]
        return str(self.api(f"deployments/{deployment}/create_flow_run", state={"type": "SCHEDULED"})["id"])

    def state(self, run_id: str) -> dict[str, Any]:
        return dict(self.api("flow_runs/filter", flow_runs={"id": {"any_": [run_id]}})[0]["state"])

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + SECONDS_FOR_A_RUN
        while not (found := condition()):
            logs = "".join((self.folder / name / "log").read_text()[-3000:] for name in self.workers)
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{logs}"
            time.sleep(1)
        return found

    def finish(self, run_id: str) -> dict[str, Any]:
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        self.wait(lambda: self.state(run_id)["type"] in final, f"the end of {run_id}")
        return self.state(run_id)

    def logs(self, run_id: str) -> str:
        found = self.api("logs/filter", logs={"flow_run_id": {"any_": [run_id]}}, limit=200, sort="TIMESTAMP_ASC")
        return "\n".join(entry["message"] for entry in found)

    def all_logs(self, flow: str) -> list[str]:
        return [self.logs(entry["id"]) for entry in self.runs(flow)]

    def branches(self) -> list[str]:
        listed = run("git", "for-each-ref", "--sort=committerdate", "--format=%(refname:short)", "refs/heads/retrain",
                     cwd=self.folder / "origin.git", env=self.env)  # fmt: skip
        return listed.split()

    def saved_states(self) -> list[Path]:
        """The lists of states on the DVC remote; a training's first one is empty."""
        return [file for file in (self.folder / "storage").glob("refit-state/*/*.json") if file.name > "000001.json"]

    def training(self, of: int) -> str | None:
        """The id of the `of`-th training, once it has made an epoch: the first, or where it goes on."""
        runs = self.runs("finetune")
        return runs[of]["id"] if len(runs) > of and re.search(r"epoch +\d+/\d", self.logs(runs[of]["id"])) else None


def _family(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


def mlflow_runs(team: Team, asked: str = "") -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(team.env["MLFLOW_TRACKING_URI"])
    (experiment,) = client.search_experiments(filter_string="name = 'pets'")
    return list(client.search_runs([experiment.experiment_id], asked))


@contextmanager
def stopped_server(team: Team) -> Iterator[None]:
    """The Prefect server hangs meanwhile."""
    port = team.env["PREFECT_API_URL"].split(":")[-1].split("/")[0]
    listed = subprocess.run(["pgrep", "-f", f"server start.*--port {port}"], capture_output=True, text=True, check=True)
    family = [member for pid in listed.stdout.split() for member in _family(int(pid))]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def unreachable_storage(team: Team) -> Iterator[None]:
    """The DVC remote cannot be read or written meanwhile."""
    storage = team.folder / "storage"
    storage.rename(team.folder / "storage.away")
    storage.write_text("a folder was here")
    try:
        yield
    finally:
        storage.unlink()
        (team.folder / "storage.away").rename(storage)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, prefect_api: str, origin: Path) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    env = environment(
        folder, PREFECT_API_URL=prefect_api, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db",
        REFIT_STATE_SECONDS="0.1",
    )  # fmt: skip
    team = Team(folder, env)
    write_image_folder(team.bucket, per_class=60)
    seed = folder / "seed"
    run("git", "clone", "--quiet", "--bare", str(origin), str(folder / "origin.git"), cwd=folder, env=env)
    run("git", "clone", "--quiet", str(folder / "origin.git"), str(seed), cwd=folder, env=env)
    run("git", "checkout", "--quiet", "-B", "main", cwd=seed, env=env)
    run("git", "push", "--quiet", "--set-upstream", "origin", "main", cwd=seed, env=env)
    changes = {
        "data.source": "data/photos", "finetune.epochs": 12, "validate.min_examples_per_class.val": 1,
        "register.model_name": "pets", "register.experiment": "pets", "flow.training_deployment": "finetune/gpu",
        "flow.worker_silence_seconds": SILENCE_SECONDS,
    }  # fmt: skip
    change_params(seed / "params.yaml", changes)
    set_up = [line for heading in ("1. The project knows its remotes", "2. A server, three pools, the deployments")
              for line in commands(PAGE, heading)]  # fmt: skip
    team.type(*(line for line in set_up if "server start" not in line))  # it runs: `prefect_api`
    team.start_worker("cpu-1", "cpu")
    yield team
    for name in list(team.workers):
        team.kill(name)


@pytest.fixture(scope="module")
def first(team: Team) -> dict[str, Any]:
    """The first run: its training worker is killed in the middle; another one comes, and cannot reach the storage."""
    team.start_worker("gpu-1", "gpu")
    (run_id,) = re.findall(r"UUID: (\S+)", team.type(command(PAGE, "deployment run")))
    team.wait(lambda: team.training(0), "the first training")
    team.wait(team.saved_states, "its state on the remote")
    team.kill("gpu-1")
    with unreachable_storage(team):
        team.start_worker("gpu-2", "gpu")
        team.wait(
            lambda: any("trying again in 10 s" in said for said in team.all_logs("finetune")), "a pull that fails"
        )
    return {"id": run_id, "state": team.finish(run_id)}


def test_a_killed_worker_costs_time_and_nothing_else(team: Team, first: dict[str, Any]) -> None:
    assert first["state"]["type"] == "COMPLETED", team.logs(first["id"])
    assert [entry["state"]["type"] for entry in team.runs("finetune")] == ["CRASHED", "COMPLETED"]
    assert "stopped reporting: its worker is gone" in team.logs(first["id"])
    assert "sent to finetune/gpu" in team.logs(first["id"])
    assert "`dvc pull` failed" in team.all_logs("finetune")[1]


def test_the_second_worker_goes_on_where_the_first_was_lost(team: Team, first: dict[str, Any]) -> None:
    lost, second = team.all_logs("finetune")
    assert "the training goes on from what another worker saved" not in lost
    assert "the training goes on from what another worker saved" in second
    assert re.search(r"going on after [\d,]+ steps", second), "and the training takes it up"
    assert not list((team.folder / "storage").glob("refit-state/*/*")), "nothing of it is left"


def test_the_whole_training_is_one_run_in_mlflow(team: Team, first: dict[str, Any]) -> None:
    """Begun by the first worker, continued by the second, completed by the registration."""
    import mlflow

    client = mlflow.MlflowClient(team.env["MLFLOW_TRACKING_URI"])
    (found,) = mlflow_runs(team)
    assert found.info.run_id == client.get_model_version_by_alias("pets-candidates", "candidate").run_id
    assert found.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(found.info.run_id, "train_loss")] == [*range(1, 13)]


def test_the_branch_is_exactly_that_run_to_anybody(team: Team, first: dict[str, Any], tmp_path: Path) -> None:
    (branch,) = team.branches()
    other = tmp_path / "other"
    run(
        "git",
        "clone",
        "--quiet",
        "--branch",
        branch,
        str(team.folder / "origin.git"),
        str(other),
        cwd=tmp_path,
        env=team.env,
    )
    dvc("pull", cwd=other, env=team.env)
    said = dvc("repro", cwd=other, env=team.env)
    assert re.findall(r"Running stage '(\w+)'", said) == ["environment"]
    # The same as if it had run in one place: training here again changes nothing.
    card = (other / "models" / "model.json").read_bytes()
    dvc("repro", "--force", "--single-item", "finetune", cwd=other, env=team.env)
    assert run("git", "status", "--porcelain", cwd=other, env=team.env) == ""
    assert (other / "models" / "model.json").read_bytes() == card


def test_run_version_and_commit_name_each_other(team: Team, first: dict[str, Any]) -> None:
    import mlflow

    client = mlflow.MlflowClient(team.env["MLFLOW_TRACKING_URI"])
    version = client.get_model_version_by_alias("pets-candidates", "candidate")
    tip = run("git", "rev-parse", team.branches()[0], cwd=team.folder / "origin.git", env=team.env).strip()
    assert version.tags["refit.git_commit"] == tip
    assert version.tags["refit.git_dirty"] == "false"
    assert version.tags["prefect.flow_run_id"] == first["id"]
    assert version.tags["prefect.server_id"], "so that no other server ends its run"


def test_nothing_new_is_nothing_to_do(team: Team, first: dict[str, Any]) -> None:
    before = len(team.runs("finetune"))
    run_id = team.begin()
    state = team.finish(run_id)
    assert (state["type"], state["name"]) == ("COMPLETED", "NothingToDo"), team.logs(run_id)
    assert "neither data nor params nor code are new since models:/pets-candidates/1" in state["message"]
    assert len(team.runs("finetune")) == before
    assert "Running stage" not in team.logs(run_id)
    assert len(team.branches()) == 1


def test_new_data_is_reported_and_trained_on(team: Team, first: dict[str, Any]) -> None:
    for number in range(3):
        draw(5000 + number).save(team.bucket / "cat" / f"new-{number}.png")
    (team.bucket / "dog" / "000.png").unlink()
    shutil.move(team.bucket / "dog" / "001.png", team.bucket / "cat" / "moved.png")
    trainings = len(team.runs("finetune"))
    run_id = team.begin()
    team.wait(lambda: team.training(trainings), "the training on new data")
    with stopped_server(team):
        time.sleep(SILENCE_SECONDS + 3)  # longer than a worker may be silent: but it is the server that is
    assert team.finish(run_id)["type"] == "COMPLETED", team.logs(run_id)
    assert len(team.runs("finetune")) == trainings + 1
    artifacts = team.api("artifacts/filter", flow_runs={"id": {"any_": [run_id]}})
    (changes,) = [entry["data"] for entry in artifacts if entry["key"] == "data-changes"]
    assert "122 examples (before: 120): 3 added, 1 removed, 1 relabelled" in changes
    assert "relabelled: data/photos/cat/moved.png: dog -> cat" in changes
    assert len(team.branches()) == 2


@pytest.mark.slow  # pytest -m "slow or not slow" tests/test_worker.py; how four processes take turns counts
def test_a_container_that_is_stopped_saves_the_state_and_cancelling_stops_the_training(
    team: Team, first: dict[str, Any]
) -> None:
    """One training in two acts: `docker stop` of its worker, then, on the next one, the run is cancelled."""
    team.kill("gpu-2")
    team.start_container("gpu-3", "gpu")
    trainings = len(team.runs("finetune"))
    seed = team.folder / "seed"
    change_params(seed / "params.yaml", {"finetune.epochs": 20_000})  # too many to end by themselves
    run("git", "commit", "--quiet", "--all", "--message", "train for long", cwd=seed, env=team.env)
    run("git", "push", "--quiet", str(team.folder / "origin.git"), "main", cwd=seed, env=team.env)
    run_id = team.begin()
    stopped = team.wait(lambda: team.training(trainings), "another training")
    before = [state.name for state in team.saved_states()]
    team.workers["gpu-3"].terminate()
    team.workers.pop("gpu-3").wait(60)
    assert team.finish(stopped)["type"] == "CRASHED"
    assert [state.name for state in team.saved_states()] > before, "saved after the signal"
    team.start_worker("gpu-4", "gpu")
    training = team.wait(lambda: team.training(trainings + 1), "its continuation")
    assert "the training goes on from what another worker saved" in team.logs(training)
    team.api(f"flow_runs/{run_id}/set_state", state={"type": "CANCELLING"}, force=False)
    assert team.finish(run_id)["type"] == "CANCELLED"
    assert team.finish(training)["type"] == "CANCELLED"
    (state,) = team.saved_states()
    assert any(path.endswith("/state.safetensors") for path in json.loads(state.read_text())["files"]), (
        "for the next run"
    )
    (killed,) = mlflow_runs(team, "attributes.status = 'KILLED'")
    assert killed.data.metrics["train_loss"], "with its curves so far"
    for name in team.workers:
        commands = subprocess.run(
            ["ps", "-o", "args=", "-p", ",".join(map(str, _family(team.workers[name].pid)))],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "tasks.finetune" not in commands
    assert not [
        entry for flow in ("retrain", "finetune") for entry in team.runs(flow) if entry["state"]["type"] == "RUNNING"
    ]


def test_an_approval_waits_until_a_reviewer_decides_in_the_registry(team: Team, first: dict[str, Any]) -> None:
    """No process waits; whoever reaches Prefect only makes it look again. [A bare request moved the champion.]"""
    import mlflow

    team.start_worker("review-1", "review")
    client = mlflow.MlflowClient(team.env["MLFLOW_TRACKING_URI"])

    def ask(flow: str, **parameters: Any) -> str:
        deployment = team.api("deployments/filter", flows={"name": {"any_": [flow]}})[0]["id"]
        asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(team.api(f"deployments/{deployment}/create_flow_run", **asked)["id"])

    def waits(after: int) -> bool:
        run = team.api("flow_runs/filter", flow_runs={"id": {"any_": [run_id]}})[0]
        return run["run_count"] > after and run["state"]["name"] == "AwaitingDecision"

    run_id = ask("approve", version="1", look_every_minutes=60)
    team.wait(lambda: waits(0), "the first look")
    team.wait(lambda: len(_family(team.workers["review-1"].pid)) == 1, "the process of the run to be gone")
    artifacts = team.api("artifacts/filter", flow_runs={"id": {"any_": [run_id]}})
    (shown,) = [entry["data"] for entry in artifacts if entry["key"] == "decision"]
    digest = client.get_model_version("pets-candidates", "1").tags["refit.evidence"]
    assert f"refit promote 1 --evidence {digest[:12]}" in shown
    answer = {"decision": "promote", "reason": "x", "evidence": digest, "reviewer": "ann", "is_forced": True}
    assert team.api(f"flow_runs/{run_id}/resume", run_input=answer)["status"] in ("REJECT", "ABORT")
    now = {"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.datetime.now(datetime.UTC).isoformat()}}
    team.api(f"flow_runs/{run_id}/set_state", state=now, force=True)
    team.wait(lambda: waits(1), "another look")
    forced = ask("promote", version="1", reason="x", evidence=digest, is_forced=True)
    assert team.finish(forced)["type"] == "FAILED"
    team.wait(lambda: "nothing is decided from Prefect" in team.logs(forced), "the reason, which is logged by the way")
    assert not client.search_registered_models("name='pets'"), "nothing is decided yet"
    said = refit("promote", "1", "--reason", "it is good", "--evidence", digest[:12], "--force",
                 cwd=team.folder / "seed", env=team.env)  # fmt: skip
    assert "models:/pets/1 is the champion" in said
    team.api(f"flow_runs/{run_id}/set_state", state=now, force=True)
    state = team.finish(run_id)
    assert (state["type"], state["name"]) == ("COMPLETED", "Promoted"), team.logs(run_id)
    assert "it is good" in state["message"]
