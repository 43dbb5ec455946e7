"""The real servers that the whole-chain tests share, and a repository as a team would clone it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from .conftest import ROOT, change_params
from .servers import SECONDS_TO_START, free_port

IDENTITY = {
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.org", "GIT_CONFIG_GLOBAL": os.devnull,
}  # fmt: skip


def environment(home: Path, **more: str) -> dict[str, str]:
    # Byte code is written, as on most machines: it must not count as a change of the code.
    dropped = ("PREFECT_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
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
            with suppress(ProcessLookupError):  # it died by itself, which the assertion above tells
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    settings = environment(home, PREFECT_SERVER_ANALYTICS_ENABLED="false", PREFECT_UI_ENABLED="false")
    for _ in serve(command, f"http://127.0.0.1:{port}/api/health", home, settings):
        yield f"http://127.0.0.1:{port}/api"


@pytest.fixture(scope="session")
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
