"""The real servers that the whole-chain tests share, and a repository as a team would clone it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from .conftest import ROOT, change_params
from .pages import command
from .servers import free_port, mlflow_command, serving

IDENTITY = {
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.org", "GIT_CONFIG_GLOBAL": os.devnull,
}  # fmt: skip

_CACHES = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
"""As for any two projects of one user: what a probe of this machine said is said once."""


def environment(home: Path, **more: str) -> dict[str, str]:
    # Byte code is written, as on most machines: it must not count as a change of the code.
    dropped = ("PREFECT_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {
        **kept, **IDENTITY, "HOME": str(home), "XDG_CACHE_HOME": _CACHES, "PREFECT_HOME": str(home / ".prefect"),
        "DO_NOT_TRACK": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", **more,
    }  # fmt: skip


def run(*command: str, cwd: Path, env: dict[str, str], expected: int = 0) -> str:
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == expected, f"{command}: {result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def refit(*arguments: str, cwd: Path, env: dict[str, str], expected: int = 0) -> str:
    return run(sys.executable, "-m", "flows", *arguments, cwd=cwd, env=env, expected=expected)


def post(api: str, path: str, **body: Any) -> Any:
    """What a Prefect server answers. One whose database is busy says 503: it is asked again, as Prefect's own client
    does."""
    request = Request(f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    waits = iter((1, 2, 4, 8))
    while True:
        try:
            with urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except HTTPError as error:
            seconds = next(waits, None)
            if error.code != 503 or seconds is None:
                raise
        time.sleep(seconds)


def dvc(*arguments: str, cwd: Path, env: dict[str, str]) -> str:
    return run(sys.executable, "-m", "dvc", *arguments, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server, started as the page says, but on a port of its own and for this machine only."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    start = command("docs/operations.md", "prefect server start").replace("0.0.0.0", "127.0.0.1")
    settings = environment(home, PREFECT_SERVER_ANALYTICS_ENABLED="false")
    with serving(
        ["sh", "-c", f"exec env {start} --port {port}"], f"http://127.0.0.1:{port}/api/health", home, settings
    ):
        from prefect.events.worker import EventsWorker

        EventsWorker.drain_all(timeout=10)  # that of this process would send what follows to another module's server
        yield f"http://127.0.0.1:{port}/api"


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server."""
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    settings = environment(home, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with serving(mlflow_command(port, home), f"http://127.0.0.1:{port}/health", home, settings):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
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
