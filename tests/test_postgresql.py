"""The registry on PostgreSQL, through a real MLflow server: the same story as on SQLite."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from refit.errors import TrackingUnavailableError
from refit.gate.decide import Check, Decision
from refit.params import load_params
from refit.registry import tracking
from tasks import compare as comparing
from tasks import promote
from tasks.compare import compare
from tasks.register import register_candidate

from .servers import free_port, mlflow_command, serving


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


PROGRAMS = _programs()
pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="no PostgreSQL here")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty database on a server of its own."""
    assert PROGRAMS is not None
    # PostgreSQL refuses to run as root, and nobody may not enter pytest's folders.
    home, port = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip()), free_port()
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    as_user = ["setpriv", f"--reuid={user}", "--clear-groups"] if os.geteuid() == 0 else []
    home.chmod(0o700)
    if as_user:
        shutil.chown(home, user)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"

    def program(name: str, *arguments: str) -> None:
        subprocess.run([*as_user, str(PROGRAMS / name), *arguments], check=True, capture_output=True, cwd=home)

    program("initdb", "-D", str(home / "data"), "-U", "refit", "--auth=trust", "--no-sync")
    try:
        program("pg_ctl", "-D", str(home / "data"), "-o", options, "-l", str(home / "log"), "-w", "start")
        program("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "refit", "mlflow")
        yield f"postgresql+psycopg2://refit@127.0.0.1:{port}/mlflow"
    finally:
        subprocess.run(
            [*as_user, str(PROGRAMS / "pg_ctl"), "-D", str(home / "data"), "-m", "immediate", "stop"],
            check=False, capture_output=True, cwd=home,
        )  # fmt: skip
        shutil.rmtree(home)


@pytest.mark.usefixtures("no_processes")
def test_the_whole_decision_on_postgresql(
    database: str, committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = Decision("pass", (Check("accuracy", "pass", "fine", 0.0),), None)
    monkeypatch.setattr(comparing, "decide", lambda *_arguments: passing)
    port, home = free_port(), tmp_path / "server"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    env = {**kept, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with serving(mlflow_command(port, home, database), f"http://127.0.0.1:{port}/health", home, env):
        compare()
        first = register_candidate()
        assert register_candidate().version == first.version
        assert promote.promote("1", "on PostgreSQL").to == "models:/pets/1"
        assert promote.promote("1", "again").is_champion_already
        past = promote.past_decisions()
        assert [(entry.move.reason, entry.move.to_version, entry.note) for entry in past.entries] == [
            ("on PostgreSQL", "1", "")
        ]
    for call in (compare, promote.past_decisions, lambda: promote.promote("1", "the server is down")):
        with pytest.raises(TrackingUnavailableError):
            call()
    with pytest.raises(TrackingUnavailableError):
        tracking.version_with_alias(load_params().register, "champion")
