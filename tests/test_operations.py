"""What an operator relies on: notifications that arrive, orphans that are found, one retraining at a time."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any
from urllib.parse import urljoin
from urllib.request import urlopen

import pandas as pd
import pytest
from click.testing import CliRunner

from refit.data.changes import run_changes
from refit.params import load_params, read_yaml
from refit.registry import tracking
from refit.reports.changes import changes_markdown
from tasks import promote as decisions
from tasks.promote import review

from .conftest import ROOT, change_params, write_image_folder
from .services import environment, prefect_api, refit, run
from .test_promote import candidate, champion, passing
from .test_validate import manifest
from .texts import table_of_texts

__all__ = ["passing", "prefect_api"]

SECONDS_TO_ARRIVE = 90


class Sink(ThreadingHTTPServer):
    """An HTTP address that keeps what it is sent."""

    def __init__(self) -> None:
        self.received: Queue[dict[str, Any]] = Queue()
        super().__init__(("127.0.0.1", 0), _Keep)


class _Keep(BaseHTTPRequestHandler):
    server: Sink

    def do_POST(self) -> None:
        self.server.received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink() as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def env(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("operator"), PREFECT_API_URL=prefect_api)


MAKE_BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook
message = {"subject": "{{subject}}", "body": "{{body}}"}
Webhook(name="sink", url=sys.argv[1], json_data=message).save("sink", overwrite=True)
"""

EMIT = """
import sys
from prefect import flow
from prefect.events import emit_event
from refit.errors import TrainingError

resource = {"prefect.resource.id": "refit.model.pets", "prefect.resource.name": "pets"}
for event in ("refit.data.rejected", "refit.candidate.waiting", "refit.model.promoted"):
    emit_event(event, resource=resource, payload={"message": f"about {event}"})

@flow(name="retrain", flow_run_name="retrain pets today")
def retrain():
    raise TrainingError("the loss is nan")

try:
    retrain()
except TrainingError:
    pass
"""


def python(code: str, *arguments: str, env: dict[str, str]) -> None:
    run(sys.executable, "-c", code, *arguments, cwd=ROOT, env=env)


@pytest.fixture(scope="module")
def automations(env: dict[str, str], sink: Sink) -> None:
    python(MAKE_BLOCK, f"http://127.0.0.1:{sink.server_port}/hook", env=env)
    for _ in range(2):  # applied again, it replaces: nobody is told twice
        said = refit("notifications", "custom-webhook/sink", cwd=ROOT, env=env)
    assert len(said.splitlines()) == len(read_yaml(ROOT / "deploy/automations.yaml"))


@pytest.mark.usefixtures("automations")
def test_notifications_arrive(env: dict[str, str], sink: Sink) -> None:
    python(EMIT, env=env)
    received = [sink.received.get(timeout=SECONDS_TO_ARRIVE) for _ in range(4)]
    messages = {message["subject"]: message["body"] for message in received}
    assert messages["pets: data rejected"] == "about refit.data.rejected"
    assert messages["pets: a candidate waits for review"] == "about refit.candidate.waiting"
    assert messages["pets: a new champion"] == "about refit.model.promoted"
    assert "the loss is nan" in messages["retrain pets today: Failed"]
    assert len(received) == len(messages) == 4


@pytest.mark.usefixtures("automations", "no_processes")
def test_every_way_to_decide_moves_the_champion_and_is_told(
    passing: Path, prefect_api: str, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import promote
    from flows.cli import main

    def told() -> str:
        return str(sink.received.get(timeout=SECONDS_TO_ARRIVE)["body"])

    def decide(*arguments: str) -> None:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert "nobody was told" not in result.output

    def evidence_of(number: str) -> str:
        return review(number).digest

    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    # Of a server with a password, which this one has not: tests/test_decisions.py.
    monkeypatch.setattr(promote.forms, "require_allowed", lambda: "Prefect")
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        number = candidate(0.7)
        promote.promote(number, "by a form", evidence_of(number), is_dry_run=True)
        assert champion() is None
        promote.promote(number, "by a form", evidence_of(number))
        assert "models:/pets/1 is the champion" in told()
        number = candidate(0.8)
        promote.reject(number, "no", evidence_of(number))
        assert champion().version == "1"
        number = candidate(0.9)
        decide("promote", number, "--reason", "by a command", "--evidence", evidence_of(number))
        assert "by a command" in told(), "and not of the rejection, nor of the trial"
        promote.rollback("by a form again")
        assert "by a form again" in told()
        assert champion().version == "1"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        result = CliRunner().invoke(main, ["rollback", "--to", "2", "--reason", "nobody hears it"])
    assert result.exit_code == 0
    assert "nobody was told of it: the Prefect server at http://127.0.0.1:9/api does not answer" in result.stderr
    assert champion().version == "2"
    assert sink.received.empty()


@pytest.mark.usefixtures("automations", "no_processes")
def test_a_champion_moved_in_mlflow_is_told_of_once(
    passing: Path, prefect_api: str, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.watch import watch

    def told() -> str:
        return str(sink.received.get(timeout=SECONDS_TO_ARRIVE)["body"])

    def move(number: str) -> None:
        with tracking.connected(load_params().register):
            MlflowClient().set_registered_model_alias("pets", "champion", number)

    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        for accuracy in (0.7, 0.9):
            number = candidate(accuracy)
            decisions.promote(number, "better", review(number).digest)
        assert watch() == "models:/pets/2, as it was decided"
        move("1")
        for _ in range(2):
            assert watch().startswith("models:/pets/1 is the champion, and models:/pets/2 was decided on")
        assert "models:/pets/1 is the champion" in told()
        decisions.rollback("2", "nobody decided on it")
        assert watch() == "models:/pets/2, as it was decided"
        move("1")
        watch()
        assert "models:/pets/1 is the champion" in told(), "the same move again is another one"
    assert sink.received.empty(), "each was told once"


SERVE = """
import os, sys
from flows.tools.local_server import serve_locally

require_server = serve_locally()
require_server()
from prefect import flow

@flow
def tiny():
    pass

tiny()
print(os.environ["PREFECT_API_URL"], flush=True)
sys.stdin.read()
"""


def test_the_own_server_ends_with_the_command_even_if_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVE]
    env = environment(tmp_path, http_proxy="http://127.0.0.1:9")  # which is not for this machine's own servers
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        port = int(address.removesuffix("/api").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)):
            pass
        process.kill()
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.1)
    pytest.fail("the server is still there")


def test_an_own_server_that_does_not_start_is_said(trained: Path, tmp_path: Path) -> None:
    env = environment(tmp_path)
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "prefect.db").write_text("this is no database")
    said = refit("retrain", cwd=trained, env=env, expected=12)
    assert "error: the temporary Prefect server did not start" in said
    assert "Is its database" in said
    assert "file is not a database" in said


def test_no_server_and_none_allowed_is_said(trained: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false")
    said = refit("retrain", cwd=trained, env=env, expected=12)
    assert "error: no Prefect server is named" in said
    assert "Traceback" not in said


def test_a_block_that_is_not_there_is_named(env: dict[str, str]) -> None:
    said = refit("notifications", "slack-webhook/nobody", cwd=ROOT, env=env, expected=2)
    assert "the Prefect server has no block 'slack-webhook/nobody'" in said
    assert "Traceback" not in said


ORPHAN = """
from prefect import flow, get_client
from prefect.states import Running
from uuid import UUID

@flow(name="retrain")
def retrain():
    from flows.tools.liveness import reconcile
    return reconcile(silence_seconds=0)

with get_client(sync_client=True) as client:
    orphan = client.create_flow_run(retrain, name="orphan", state=Running())
    print(retrain())
    state = client.read_flow_run(orphan.id).state
    print(state.type.value, state.message)
    print(retrain())
"""


def test_a_run_whose_process_is_gone_is_found(env: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", ORPHAN], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    first, state, again = result.stdout.splitlines()
    assert first == "['orphan']"
    assert state == "CRASHED it stopped reporting: its worker is gone"
    assert again == "[]"


def test_runs_of_dead_flows_are_closed_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    from refit.params import load_params
    from refit.registry import tracking

    monkeypatch.chdir(ROOT)
    settings = load_params().register
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert tracking.end_runs(settings, "ours", lambda run_id: True) == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment(settings.experiment, artifact_location=str(tmp_path / "artifacts"))
    made = {
        name: client.create_run(experiment, tags={tracking.FLOW_RUN_TAG: name, **server}, run_name=name)
        for name, server in {
            "dead": {tracking.SERVER_TAG: "ours"},
            "alive": {tracking.SERVER_TAG: "ours"},
            "of another server": {tracking.SERVER_TAG: "theirs"},
            "of an unknown server": {},
        }.items()
    }
    other = client.create_run(experiment, run_name="somebody else's")
    assert tracking.end_runs(settings, "ours", lambda run_id: run_id != "alive") == ["dead"]
    assert client.get_run(made.pop("dead").info.run_id).info.status == "KILLED"
    for run_ in (*made.values(), other):
        assert client.get_run(run_.info.run_id).info.status == "RUNNING"


def test_a_server_is_known_by_its_database_not_by_its_address(prefect_api: str) -> None:
    """[A run whose flow run is unknown to this server was taken for dead, whoever's it was.]"""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.tools.liveness import is_over, server_id

    known = set()
    for address in (prefect_api, prefect_api, prefect_api.replace("127.0.0.1", "localhost")):
        with temporary_settings({PREFECT_API_URL: address}):
            known.add(server_id())
            assert is_over("00000000-0000-0000-0000-000000000000"), "deleted, if it names this server"
    assert len(known) == 1


def test_prefects_pages_ask_the_server_that_they_came_from(prefect_api: str) -> None:
    """[On another port than 4200 they stayed blank: they asked 127.0.0.1:4200.]"""
    home = prefect_api.removesuffix("api")
    with urlopen(home, timeout=60) as page:
        assert b"<script" in page.read()
    with urlopen(f"{home}ui-settings", timeout=60) as answer:
        asked = urljoin(home, json.load(answer)["api_url"])
    with urlopen(f"{asked}/health", timeout=60) as answer:
        assert asked == prefect_api
        assert answer.read() == b"true"


def test_each_deployment_has_a_name_of_its_own() -> None:
    names = [entry["name"] for entry in read_yaml(ROOT / "prefect.yaml")["deployments"]]
    assert len(names) == len(set(names)), "`prefect deploy --name` takes one of them"


def test_two_retrainings_of_one_model_never_race() -> None:
    entries = read_yaml(ROOT / "prefect.yaml")["deployments"]
    deployments = {entry["name"]: entry for entry in entries}
    flows = {entry["entrypoint"].split(":")[1] for entry in entries}
    assert flows == {"retrain", "finetune", "promote", "reject", "rollback", "approve", "watch"}
    assert deployments["scheduled"]["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert deployments["scheduled"]["parameters"] == {"deliver": "branch"}
    assert deployments["gpu"]["work_pool"]["name"] == "gpu"


def test_what_changed_in_the_data(project: Path) -> None:
    before = manifest()
    after = manifest({"sha256": "a" * 64, "path": "data/new.png"})
    after = after[after["path"] != "data/3.png"].copy()
    after.loc[after["path"] == "data/4.png", "label"] = "cat"
    after.loc[after["path"] == "data/6.png", "path"] = "data/renamed.png"  # the same content elsewhere is no news

    def said(one: pd.DataFrame | None, other: pd.DataFrame) -> str:
        return changes_markdown(run_changes(one, other), "data/photos")

    text = said(before, after)
    assert "60 examples (before: 60): 1 added, 1 removed, 1 relabelled" in text
    assert "relabelled: data/4.png: dog -> cat" in text
    assert "added: data/new.png" in text
    assert "60 examples (before: 0): 60 added, 0 removed, 0 relabelled" in said(None, after)
    assert "0 added, 0 removed, 0 relabelled" in said(after, after)
    unreadable = manifest({"sha256": "", "path": "data/bad.png"}, {"sha256": "", "path": "data/worse.png"})
    assert "60 examples (before: 60): 0 added" in said(before, unreadable)


def test_a_cluster_gives_the_same_manifest(env: dict[str, str], project: Path) -> None:
    """Inspected by Dask workers, then ingested: no picture is left to decode, and the manifest has the same bytes."""
    write_image_folder(project / "data" / "images", per_class=80)
    (project / "data" / "images" / "cat" / "bad.png").write_text("no image")
    change_params(project / "params.yaml", {"data.source": "data/images"})
    env = env | {"PYTHONPATH": str(ROOT)}
    run(sys.executable, "-m", "tasks.ingest", cwd=project, env=env)
    alone = (project / "data" / "manifest.parquet").read_bytes()
    shutil.rmtree(project / ".refit")
    code = "from flows.prepare import prepare\nif __name__ == '__main__': prepare('dask')\n"
    (project / "cluster.py").write_text(code)
    said = run(sys.executable, "cluster.py", cwd=project, env=env)
    assert "161 examples inspected in 3 tasks" in said
    said = run(sys.executable, "-m", "tasks.ingest", cwd=project, env=env)
    assert "160 of 161 known by their content" in said
    assert "decode: 1 done" in said, "a failure may have been an accident"
    assert (project / "data" / "manifest.parquet").read_bytes() == alone


def test_a_cluster_inspects_the_texts_of_a_table(env: dict[str, str], project: Path) -> None:
    """By Dask workers, then by the stage, which finds that it knows them."""
    table_of_texts(project)
    env = env | {"PYTHONPATH": str(ROOT)}
    code = "from flows.prepare import prepare\nif __name__ == '__main__': prepare('dask')\n"
    (project / "cluster.py").write_text(code)
    assert "243 examples inspected in 4 tasks" in run(sys.executable, "cluster.py", cwd=project, env=env)
    said = run(sys.executable, "-m", "tasks.ingest", cwd=project, env=env)
    assert "242 of 243 known by their content" in said
    assert not [path for path in (project / ".refit/inspections").iterdir() if path.is_dir()]


def test_a_runner_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.prepare import prepare
    from refit.errors import ParamsError

    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with pytest.raises(ParamsError, match="prefect-ray is not installed"):
        prepare("ray")
    with pytest.raises(ParamsError, match="allowed: null, dask"):
        prepare("spark")
