"""docs/team.md, command by command, against an MLflow server set up as deploy/compose.yaml does: with accounts and with
refit/registry/guard.py. What needs a container engine or a cloud is listed, with the reason.
"""

import json
import shutil
import sys
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from refit.params import read_yaml

from .conftest import ROOT
from .pages import commands, filled
from .servers import free_port, serving
from .services import clone, environment, origin, post, prefect_api, refit, run

__all__ = ["origin", "prefect_api"]  # fixtures

PAGE = "docs/team.md"
SERVICES: dict[str, dict[str, Any]] = read_yaml(ROOT / "deploy/compose.yaml")["services"]
ADMIN = "a-password-of-tests"
NOT_HERE = {
    "docker ": "a container engine",
    "aws ": "the client of a cloud, and a bucket",
    "kubectl ": "a cluster",
    "uv pip install": "changes what is installed",
}


def is_typed(line: str) -> bool:
    return not line.startswith(tuple(NOT_HERE))


@dataclass(frozen=True)
class Server:
    """An MLflow server with accounts, and where it keeps its files."""

    address: str
    home: Path

    def ask(self, account: str, password: str, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
        """Status and text of the answer to a raw request."""
        token = b64encode(f"{account}:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        try:
            with urlopen(Request(f"{self.address}{path}", body or None, headers, method=method), timeout=60) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As the compose file starts it, on one machine: sqlite for PostgreSQL, a folder for the bucket."""
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    ini = (ROOT / "deploy/mlflow-auth.ini").read_text()
    (home / "auth.ini").write_text(ini.replace("postgresql+psycopg2:///mlflow", f"sqlite:///{home}/accounts.db"))
    for source, target in (mount.split(":")[:2] for mount in SERVICES["mlflow"]["volumes"]):
        if target.startswith("/guard/"):
            (home / "guard").mkdir()
            shutil.copy(ROOT / "deploy" / source, home / target.lstrip("/"))
    values = {
        "--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}", "--workers=2": "--workers=1",
        "postgresql+psycopg2:///mlflow": f"sqlite:///{home}/mlflow.db", "s3://mlflow": f"{home}/artifacts",
        "${MLFLOW_HOST:-localhost}": f"127.0.0.1:{port}",
    }  # fmt: skip
    command = [filled(part, values) for part in SERVICES["mlflow"]["command"]]
    settings = SERVICES["mlflow"]["environment"]
    env = environment(
        home, MLFLOW_AUTH_CONFIG_PATH=str(home / "auth.ini"), MLFLOW_FLASK_SERVER_SECRET_KEY="of tests",
        MLFLOW_AUTH_ADMIN_USERNAME=settings["MLFLOW_AUTH_ADMIN_USERNAME"], MLFLOW_AUTH_ADMIN_PASSWORD=ADMIN,
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION=settings["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"],
        PYTHONPATH=str(home / settings["PYTHONPATH"].lstrip("/")),
    )  # fmt: skip
    with serving([sys.executable, "-m", *command], f"http://127.0.0.1:{port}/health", home, env):
        yield Server(f"http://127.0.0.1:{port}", home)


@pytest.fixture(scope="module")
def said(mlflow: Server, prefect_api: str, origin: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All commands of the page in one shell, after those of the compose file's service `pools`; and the passwords."""
    home = tmp_path_factory.mktemp("team")
    folder = clone(origin, home / "project")
    env = environment(home, PREFECT_API_URL=prefect_api)
    shell, flags, script = SERVICES["pools"]["command"]
    run(shell, flags, script.replace("/work-pools/", f"{ROOT}/deploy/work-pools/"), cwd=home, env=env)
    values = {
        "http://127.0.0.1:5000": mlflow.address, "https://mlflow.example.org": mlflow.address,
        "<MLFLOW_ADMIN_PASSWORD>": ADMIN, "https://prefect.example.org/api": prefect_api,
        "MLFLOW_TRACKING_PASSWORD=…": "MLFLOW_TRACKING_PASSWORD=$(sed -n 's/^ada //p' passwords.txt)",
        "<PREFECT_AUTH>": "name:password", "<S3_DVC_SECRET>": "secret", "<git address>": str(origin),
    }  # fmt: skip
    typed = [filled(line, values) for line in commands(PAGE) if is_typed(line)]
    words = run("bash", "-ec", "\n".join(typed), cwd=folder, env=env)
    passwords = dict(line.split() for line in (folder / "passwords.txt").read_text().splitlines())
    return {"words": words, "typed": typed, "passwords": passwords, "folder": folder, "env": env}


def test_every_command_of_the_page_is_typed_or_listed() -> None:
    lines = commands(PAGE)
    for prefix in NOT_HERE:
        assert any(line.startswith(prefix) for line in lines), f"{prefix} is no longer on the page"
    assert len([line for line in lines if is_typed(line)]) >= 12


def test_the_page_works_as_written(said: dict[str, Any], prefect_api: str) -> None:
    assert "Champion  none" in said["words"]
    deployments = {entry["name"] for entry in read_yaml(ROOT / "prefect.yaml")["deployments"]}
    found = {entry["name"]: entry["work_pool_name"] for entry in post(prefect_api, "deployments/filter")}
    assert found.keys() >= deployments
    assert set(found.values()) >= {"cpu", "gpu", "review"}
    assert sorted(said["passwords"]) == ["ada", "refit", "serving"]


@pytest.mark.parametrize("key", ["artifact_location", "artifactLocation"])
@pytest.mark.parametrize("form", ["/api/2.0", "/ajax-api/2.0", "twice encoded"])
def test_no_account_says_where_files_of_the_server_lie(
    mlflow: Server, said: dict[str, Any], key: str, form: str
) -> None:
    """[An experiment in the folder of a release, made by any account, and evil.py uploaded into it.]"""
    victim = mlflow.home / "artifacts"
    body = json.dumps({"name": f"{key}, {form}", key: victim.as_uri()})
    body = json.dumps(body) if form == "twice encoded" else body
    path = f"{'/api/2.0' if form == 'twice encoded' else form}/mlflow/experiments/create"
    for account, password in (*said["passwords"].items(), ("admin", ADMIN)):
        status, text = mlflow.ask(account, password, "POST", path, body.encode())
        assert (status, "leave artifact_location out" in text) == (403, True), (account, status, text)
    assert mlflow.ask("refit", "wrong", "POST", path, json.dumps({"name": "x"}).encode())[0] == 401


def test_an_experiment_that_the_server_places_may_be_made_and_written(mlflow: Server, said: dict[str, Any]) -> None:
    password = said["passwords"]["refit"]
    body = json.dumps({"name": "mine", "artifact_location": ""}).encode()
    status, text = mlflow.ask("refit", password, "POST", "/api/2.0/mlflow/experiments/create", body)
    assert status == 200, text
    body = json.dumps({"experiment_id": json.loads(text)["experiment_id"]}).encode()
    status, text = mlflow.ask("refit", password, "POST", "/api/2.0/mlflow/runs/create", body)
    assert status == 200, text
    run_id = json.loads(text)["run"]["info"]["run_id"]
    upload = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run_id}&path=note.txt"
    assert mlflow.ask("refit", password, "POST", upload, b"words")[0] == 200
    assert [file.read_text() for file in (mlflow.home / "artifacts").rglob("note.txt")] == ["words"]


def test_a_missing_right_names_the_command_that_gives_it(mlflow: Server, said: dict[str, Any]) -> None:
    env = said["env"] | {"MLFLOW_TRACKING_URI": mlflow.address, "MLFLOW_TRACKING_USERNAME": "serving"}
    env |= {"MLFLOW_TRACKING_PASSWORD": said["passwords"]["serving"]}
    words = refit(
        "access", "grant", "--reader", "eve", "--passwords", "more.txt", cwd=said["folder"], env=env, expected=7
    )
    assert "serving has no right to it: an administrator gives it by `refit access grant --pipeline serving`" in words
    env |= {"MLFLOW_TRACKING_PASSWORD": "wrong"}
    words = refit("history", cwd=said["folder"], env=env, expected=7)
    assert "log in with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in words
    assert "Traceback" not in words
