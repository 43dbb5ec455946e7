"""Real servers for tests: started on a free loopback port, stopped whatever happens."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

SECONDS_TO_START = 240  # a slow machine's first start of a server


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: list[str], health: str, cwd: Path, env: dict[str, str]) -> Iterator[None]:
    """A server that answers on `health`, with its children, until the end of the block."""
    with (
        (cwd / "server.log").open("a") as log,
        subprocess.Popen(
            command, cwd=cwd, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        ) as server,
    ):
        try:
            _wait(server, health, cwd / "server.log")
            yield
        finally:
            _stop(server)


def _wait(server: "subprocess.Popen[bytes]", health: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urlopen(health, timeout=5).close()
            return
        except (URLError, OSError) as error:
            if isinstance(error, HTTPError) and error.code in (401, 403):
                return  # it asks who we are: it is there
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)


def _stop(server: "subprocess.Popen[bytes]") -> None:
    for stop_signal in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, stop_signal)
            server.wait(15)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def mlflow_command(port: int, home: Path, backend: str | None = None) -> list[str]:
    """`mlflow server` with one worker, its database and its files in `home`."""
    return [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", backend or f"sqlite:///{home}/mlflow.db",
        "--artifacts-destination", str(home / "artifacts"),
    ]  # fmt: skip
