"""The registry that is a file: whole or not at all, told from a server that is away, and moved with its project."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from refit import paths
from refit.errors import TrackingError, TrackingUnavailableError
from refit.params import load_params
from refit.registry import local_registry, tracking
from tasks import promote
from tasks.compare import compare
from tasks.predict import predict_files
from tasks.register import register_candidate

from .conftest import ROOT
from .services import environment, refit
from .test_tracking import client


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


# Whole or not at all


FORKS = """
import os, sys
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from refit.registry.local_registry import ready

for line in sys.stdin:
    kind, address = line.split()
    child = os.fork()
    if child == 0:
        ready(address) if kind == "ready" else SqlAlchemyStore(address, "mlruns")
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Forks:
    """Makes registries in processes of their own; MLflow is imported once."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def make(self, kind: str, folder: Path) -> int:
        """Begin; give the process."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {uri(folder)}\n")
        self._process.stdin.flush()
        return int(self._line())

    def status(self) -> int:
        """Wait for its end."""
        return int(self._line())

    def killed(self, kind: str, folder: Path, when: Callable[[], bool]) -> None:
        """Begin, and kill it as soon as `when` holds."""
        child = self.make(kind, folder)
        while not when():
            assert self._process.poll() is None
        os.kill(child, signal.SIGKILL)
        assert self.status() == signal.SIGKILL, "it had not ended before"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def forking() -> Iterator[Forks]:
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield Forks(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with forking() as found:
        yield found


def size(folder: Path, pattern: str) -> int:
    try:
        return max((file.stat().st_size for file in folder.glob(pattern)), default=-1)
    except FileNotFoundError:  # renamed or removed between the two
        return -1


def test_a_process_killed_while_it_makes_one_leaves_nothing_broken(forks: Forks, tmp_path: Path) -> None:
    for smallest in (0, 50_000, 300_000):
        forks.killed("ready", tmp_path, lambda smallest=smallest: size(tmp_path, ".mlflow.db.*.partial") >= smallest)
        assert not (tmp_path / "mlflow.db").exists()
        local_registry.check(uri(tmp_path))
    forks.make("ready", tmp_path)
    assert forks.status() == 0
    local_registry.check(uri(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"], "and nothing else"


def test_what_mlflow_itself_leaves_when_it_is_killed_is_named(forks: Forks, tmp_path: Path) -> None:
    forks.killed("mlflow", tmp_path, lambda: size(tmp_path, "mlflow.db") > 100_000)
    for act in (local_registry.check, local_registry.ready):
        with pytest.raises(TrackingError, match=r"mlflow\.db cannot be used: its making was cut off.*`mv ") as caught:
            act(uri(tmp_path))
        assert not caught.value.retryable
    shutil.move(tmp_path / "mlflow.db", tmp_path / "mlflow.db.broken")
    forks.make("ready", tmp_path)
    assert forks.status() == 0


def test_two_at_once_make_one(tmp_path: Path, forks: Forks) -> None:
    with forking() as others:
        for one in (forks, others):
            one.make("ready", tmp_path)
        assert [one.status() for one in (forks, others)] == [0, 0]
    local_registry.check(uri(tmp_path))
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


# Usable or not


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    forks.make("ready", folder)
    assert forks.status() == 0
    return folder / "mlflow.db"


def run_sql(*statements: str) -> Callable[[Path], None]:
    def run(file: Path) -> None:
        with closing(sqlite3.connect(file, isolation_level=None)) as database:
            for statement in statements:
                database.execute(statement)

    return run


def revision_before(newest: str) -> str:
    folder = Path(local_registry.find_spec("mlflow").origin).parent / "store/db_migrations/versions"
    return re.findall(r'down_revision = "(\w+)"', next(folder.glob(f"{newest}*.py")).read_text())[0]


OLDER = f"UPDATE alembic_version SET version_num = '{revision_before(local_registry._revisions()[0])}'"


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:200_000]), "it is damaged or cut off"),
        (lambda file: file.write_bytes(file.read_bytes()[:60]), "it is (damaged|no SQLite)"),
        (lambda file: file.write_text("this is no database" * 1000), "it is no SQLite database"),
        (run_sql("DELETE FROM alembic_version"), "its making was cut off"),
        (run_sql("DROP TABLE alembic_version"), "its making was cut off"),
        (run_sql(OLDER, "DELETE FROM experiments"), "its making was cut off"),
        (run_sql(OLDER), "an older MLflow .*copy the file, then run `mlflow db upgrade sqlite:///"),
        (run_sql("UPDATE alembic_version SET version_num = 'f00'"), r"a newer MLflow .*f00\): upgrade MLflow"),
    ],
)
def test_a_database_that_cannot_be_used_says_why(
    whole: Path, tmp_path: Path, break_it: Callable[[Path], None], expected: str
) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(whole, file)
    local_registry.check(uri(tmp_path))
    break_it(file)
    before = file.read_bytes()
    for act in (local_registry.check, local_registry.ready):
        with pytest.raises(TrackingError, match=f"mlflow.db .*{expected}") as caught:
            act(uri(tmp_path))
        assert not caught.value.retryable
    assert file.read_bytes() == before


def test_one_that_is_busy_is_no_broken_one(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(whole, tmp_path)
    monkeypatch.setattr(local_registry, "_SECONDS_TO_WAIT", 0.0)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingUnavailableError, match="locked"):
            local_registry.check(uri(tmp_path))


def test_nothing_and_an_empty_file_and_a_server_are_no_mistakes(tmp_path: Path) -> None:
    local_registry.check(uri(tmp_path / "not there"))
    (tmp_path / "mlflow.db").touch()
    local_registry.check(uri(tmp_path))
    for elsewhere in ("http://127.0.0.1:9", "postgresql+psycopg2://me@127.0.0.1:9/mlflow", "sqlite:///:memory:"):
        local_registry.check(elsewhere)


def test_a_broken_one_is_found_before_anything_is_trained(trained: Path, tmp_path: Path) -> None:
    (trained / "mlflow.db").write_text("this is no database" * 1000)
    said = refit("retrain", cwd=trained, env=environment(tmp_path), expected=7)
    assert re.search(r"error: the registry .*mlflow\.db cannot be used: it is no SQLite database", said)
    assert "Running stage" not in said
    assert "Traceback" not in said


def test_the_schema_is_that_of_the_installed_mlflow() -> None:
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.db.utils import _get_latest_schema_revision

    assert local_registry._revisions()[0] == _get_latest_schema_revision()
    about_files = re.compile(r"(^|_)(artifact_location|artifact_uri|storage_location|source)$")
    columns = {
        (table.name, column.name)
        for table in Base.metadata.tables.values()
        for column in table.columns
        if about_files.search(column.name)
    }
    of_something_else = {
        ("datasets", "dataset_source"),
        ("evaluation_dataset_records", "source"),
        ("mcp_server_versions", "source"),
    }
    assert columns == set(local_registry.ADDRESSES) | of_something_else


# Addresses that follow


def text_of(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return "\n".join(database.iterdump())


def go_to(folder: Path) -> Path:
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # mlflow puts its own last address there
    return folder


def other_content(mark: float) -> None:
    evaluation = json.loads(paths.EVALUATION.read_text())
    evaluation["overall"]["accuracy"]["value"] = mark
    paths.EVALUATION.write_text(json.dumps(evaluation))
    compare()


@pytest.fixture
def registered(trained: Path) -> Path:
    """A project with a registered candidate, whose folder's name needs quoting."""
    folder = trained.rename(trained.parent / "a project, 100% mine")
    go_to(folder)
    register_candidate()
    return folder


@pytest.mark.usefixtures("no_processes")
def test_a_renamed_project_has_its_models(registered: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_params().register
    with tracking.connected(settings) as mlflow_client:
        for name, place in (
            ("bucket", "s3://bucket/mlruns/bucket"),
            ("far", f"file://{registered.parent}/elsewhere/far"),
        ):
            mlflow_client.create_experiment(name, artifact_location=place)
    moved = go_to(registered.rename(registered.parent / "renamed"))
    picture = next((moved / "data/images/cat").glob("*.png"))
    assert list(predict_files([picture], "models:/pets-candidates@candidate"))
    assert caplog.text.count("addresses follow") == 1
    assert promote.review("1").version.uri == "models:/pets-candidates/1"
    assert not register_candidate().is_new
    assert registered.name not in (text := text_of(moved))
    assert registered.as_uri() not in text
    assert "s3://bucket/mlruns/bucket" in text
    assert f"file://{registered.parent}/elsewhere/far" in text
    other_content(0.123)
    assert register_candidate().version.version == "2"
    assert not registered.exists()


@pytest.mark.usefixtures("no_processes")
def test_a_copied_project_leaves_the_first_alone(registered: Path) -> None:
    copy = registered.parent / "copy"
    shutil.copytree(registered, copy)

    def everything() -> dict[Path, bytes]:
        places = [registered / "mlflow.db", *(registered / "mlruns").rglob("*")]
        return {file: file.read_bytes() for file in places if file.is_file()}

    before = everything()
    go_to(copy)
    other_content(0.123)
    assert register_candidate().version.version == "2"
    assert everything() == before
    go_to(registered)
    assert not register_candidate().is_new
    assert len(client().search_model_versions("name='pets-candidates'")) == 1


@pytest.mark.usefixtures("no_probe")
def test_files_that_are_at_neither_place_are_named(registered: Path) -> None:
    moved = go_to(registered.rename(registered.parent / "renamed"))
    (moved / "mlruns").rename(moved / "lost")
    before = text_of(moved)
    for act in (register_candidate, lambda: local_registry.check(uri(moved))):
        with pytest.raises(TrackingError, match=r"the files of experiment .* lay in .* and are neither there nor in"):
            act()
    assert text_of(moved) == before
    (moved / "lost").rename(moved / "mlruns")
    assert not register_candidate().is_new


@pytest.mark.usefixtures("no_probe")
def test_a_database_that_went_without_its_files_still_has_them(registered: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    shutil.move(registered / "mlflow.db", tmp_path / "kept")
    os.environ["MLFLOW_TRACKING_URI"] = uri(tmp_path / "kept")
    assert promote.review("1").version.version == "1"
    assert f"{registered.as_uri()}/mlruns/{load_params().register.experiment}'" in text_of(tmp_path / "kept")


@pytest.mark.usefixtures("no_probe")
def test_another_name_of_the_same_folder_is_no_move(registered: Path) -> None:
    link = registered.parent / "link"
    link.symlink_to(registered)
    before = text_of(registered)
    local_registry.ready(uri(link))
    assert text_of(registered) == before
