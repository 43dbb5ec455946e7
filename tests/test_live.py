"""The curves of a training are in MLflow while it goes on: a real server, and servers that are none."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from refit import paths
from refit.files import publish_table
from refit.model.card import read_card
from refit.params import Register, load_params
from refit.records import digest_of_record
from refit.registry import live, tracking
from refit.registry.live import streaming
from tasks.register import register_candidate

from .servers import free_port
from .services import mlflow_server

__all__ = ["mlflow_server"]  # a fixture

_experiments = itertools.count()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(live, "_SECONDS_BETWEEN_LOOKS", 0.05)
    return tmp_path


@pytest.fixture
def settings(here: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Register:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    name = f"live-{next(_experiments)}"
    return Register(model_name=name, experiment=name, tracking_uri=mlflow_server)


def client(settings: Register) -> Any:
    import mlflow

    mlflow.set_tracking_uri(tracking.tracking_uri(settings))
    return mlflow.MlflowClient()


def runs(settings: Register) -> list[Any]:
    experiment = client(settings).get_experiment_by_name(settings.experiment)
    return list(client(settings).search_runs([experiment.experiment_id])) if experiment else []


def curve(settings: Register, run_id: str, name: str = "train_loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client(settings).get_metric_history(run_id, name)]


def write_epochs(number: int, slope: float = 0.1) -> None:
    """As the training does after its epoch of that number."""
    rows = [
        {"epoch": epoch, "phase": "full", "train_loss": 1 - slope * epoch, "val_accuracy": slope * epoch}
        for epoch in range(1, number + 1)
    ]
    publish_table(paths.LIVE_HISTORY, pd.DataFrame(rows))


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture
def registry(trained: Path) -> Register:
    """The local one, made: a flow has looked into it by then."""
    settings = load_params().register
    with tracking.connected(settings):
        return settings


def show(settings: Register, training: str = "t", warnings: list[str] | None = None) -> Any:
    warn = pytest.fail if warnings is None else warnings.append
    return streaming(settings, training, "pets training", {"prefect.flow_run_id": "f"}, warn)


def test_the_curves_are_there_while_it_trains(settings: Register) -> None:
    write_epochs(9)  # of another training, before
    with show(settings):
        for number in (1, 2):
            write_epochs(number)
            (run,) = wait_for(lambda: runs(settings))
            run_id = run.info.run_id
            wait_for(lambda number=number, run_id=run_id: len(curve(settings, run_id)) == number)
            assert run.info.status == "RUNNING"
        write_epochs(3)
    (run,) = runs(settings)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "pets training")
    assert curve(settings, run.info.run_id) == [(1, 0.9), (2, 0.8), (3, pytest.approx(0.7))]
    assert sorted(run.data.metrics) == ["train_loss", "val_accuracy"]
    assert run.data.tags["prefect.flow_run_id"] == "f"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_what_broke_off_is_marked_and_taken_up_again(
    settings: Register, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), show(settings):
        write_epochs(2)
        raise error
    (run,) = runs(settings)
    assert run.info.status == status
    with show(settings):
        write_epochs(1)  # it went on from a state of before
        wait_for(lambda: runs(settings)[0].info.status == "RUNNING")
        write_epochs(3)
    (run,) = runs(settings)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in curve(settings, run.info.run_id)] == [1, 2, 3], "no point is there twice"


def test_another_curve_or_another_training_is_another_run(settings: Register) -> None:
    for training, slope in (("t", 0.1), ("t", 0.2), ("u", 0.1)):
        with show(settings, training):
            write_epochs(2, slope)
    assert len(runs(settings)) == 3


def test_a_training_without_an_epoch_leaves_no_run(settings: Register) -> None:
    with show(settings):
        pass
    assert runs(settings) == []


def test_without_a_server_it_is_said_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(live, "_SECONDS_AFTER_TROUBLE", 0.0)
    warnings: list[str] = []
    with show(Register(model_name="a", experiment="a", tracking_uri=address), warnings=warnings):
        for number in (1, 2, 3):
            write_epochs(number)
            wait_for(lambda: warnings)
            time.sleep(0.1)
    (warning,) = warnings
    assert warning.startswith("the training's curves are not in MLflow yet: MLflow at ")
    assert warning.endswith("The training goes on, and registration logs them")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A server that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield listener


def test_a_server_that_hangs_is_not_waited_for(
    here: Path, hanging: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_SECONDS_TO_END", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = set(threading.enumerate())
    warnings: list[str] = []
    with show(Register(model_name="a", experiment="a", tracking_uri="http://unused"), warnings=warnings):
        write_epochs(1)
        connection, _ = hanging.accept()  # the thread waits for an answer
    (thread,) = set(threading.enumerate()) - before
    assert thread.is_alive(), "the training is over, and the thread still waits"
    assert thread.daemon
    for open_socket in (connection, hanging):
        open_socket.close()
    thread.join()
    assert len(warnings) == 1


@pytest.mark.usefixtures("no_probe")
def test_registration_completes_the_run_of_the_training(registry: Register) -> None:
    training = digest_of_record(read_card(paths.MODEL_CARD).lineage)
    history = pd.read_csv(paths.HISTORY)
    with show(registry, training):
        publish_table(paths.LIVE_HISTORY, history)
    (run,) = runs(registry)
    version = register_candidate().version
    (registered,) = runs(registry)
    assert version.run_id == registered.info.run_id == run.info.run_id
    assert registered.info.status == "FINISHED"
    assert registered.info.run_name.startswith("pets ")
    assert registered.info.run_name != "pets training"
    assert len(curve(registry, run.info.run_id)) == len(history)
    assert "test_accuracy" in registered.data.metrics
    assert register_candidate().version.version == version.version
    # The same training once more: a registered run stays as it is.
    with pytest.raises(KeyboardInterrupt), show(registry, training):
        publish_table(paths.LIVE_HISTORY, history)
        raise KeyboardInterrupt
    assert client(registry).get_run(version.run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("no_probe")
def test_curves_of_other_code_are_not_registered(registry: Register) -> None:
    training = digest_of_record(read_card(paths.MODEL_CARD).lineage)
    with show(registry, training):
        publish_table(paths.LIVE_HISTORY, pd.read_csv(paths.HISTORY).assign(train_loss=99.0))
    (run,) = runs(registry)
    assert register_candidate().version.run_id != run.info.run_id
