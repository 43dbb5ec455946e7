"""The curves of a training in MLflow while it goes on.

    with streaming(settings, training, name, tags, warn):
        train()                     writes paths.LIVE_HISTORY after each epoch

A thread reads what the training writes down, and logs it to a run that registration completes later. The run begins
with the first epoch. When the training fails its run is FAILED, when it is stopped KILLED. Where MLflow cannot be
reached, or refuses, that is said once: the training neither waits nor fails, and registration logs all of it.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

import pandas as pd

from ..params import Register
from ..paths import LIVE_HISTORY
from .experiments import experiment_id
from .records import CONTENT_TAG
from .runs import TRAINING_TAG, Rows, find_unregistered, log_history
from .tracking import connected, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_AFTER_TROUBLE = 60.0
_WAY_OUT = "The training goes on, and registration logs them"
_SECONDS_TO_END = 5.0  # a server that hangs is not waited for


def is_shared(settings: Register) -> bool:
    """Whether MLflow is a server, or was named in the environment: another one is in the present folder."""
    return tracking_uri(settings).startswith("http") or "MLFLOW_TRACKING_URI" in os.environ


@contextmanager
def streaming(
    settings: Register, training: str, name: str, tags: Mapping[str, str], warn: Callable[[str], None]
) -> Iterator[None]:
    """Show the training that runs in the block.

    Args:
        training: the digest of its lineage.
        name: of its run, until it is registered.
        tags: of its run.
        warn: is told, once, that MLflow cannot be reached.
    """
    stream = _Stream(settings, training, name, tags, warn)
    stream.thread.start()
    status = "KILLED"
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        stream.end(status)


class _Stream:
    def __init__(
        self, settings: Register, training: str, name: str, tags: Mapping[str, str], warn: Callable[[str], None]
    ) -> None:
        self.thread = Thread(target=self._follow, daemon=True)
        self._settings, self._training, self._name, self._warn = settings, training, name, warn
        self._tags = {**tags, TRAINING_TAG: training}
        self._run: Run | None = None
        self._num_logged = 0
        self._seen = _stamp()  # of another training
        self._in_trouble_since: float | None = None
        self._has_warned = False
        self._stop = Event()
        self._status = ""

    def end(self, status: str) -> None:
        """Log what is left, and how the training ended."""
        self._status = status
        self._stop.set()
        self.thread.join(_SECONDS_TO_END)

    def _follow(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_LOOKS):
            since = self._in_trouble_since
            if since is None or time.monotonic() - since > _SECONDS_AFTER_TROUBLE:
                self._try(self._log_new)
        if self._in_trouble_since is None:
            self._try(self._finish)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
            self._in_trouble_since = None
        except Exception as error:  # whatever it is, the training goes on
            self._in_trouble_since = time.monotonic()
            if not self._has_warned:
                self._warn(f"the training's curves are not in MLflow yet: {error}")
            self._has_warned = True

    def _log_new(self) -> None:
        stamp = _stamp()
        if stamp == self._seen:
            return
        history: Rows = pd.read_csv(LIVE_HISTORY).to_dict("records")  # type: ignore[assignment]  # its keys are names
        with connected(self._settings, _WAY_OUT) as client:
            if self._run is None:
                self._run = self._begin(client, history)
            log_history(client, self._run, history[self._num_logged :])
        self._num_logged, self._seen = len(history), stamp

    def _begin(self, client: "MlflowClient", history: Rows) -> "Run":
        """A new run; or the one of a worker that was lost, or of a training that was stopped."""
        experiment = experiment_id(client, self._settings.experiment)
        run = find_unregistered(client, experiment, self._training, history)
        if run is None:
            return client.create_run(experiment, tags=self._tags, run_name=self._name)
        for tag, value in self._tags.items():
            client.set_tag(run.info.run_id, tag, value)
        client.update_run(run.info.run_id, status="RUNNING")
        return run

    def _finish(self) -> None:
        self._log_new()
        if self._run is not None:
            run_id = self._run.info.run_id
            with connected(self._settings, _WAY_OUT) as client:
                if CONTENT_TAG not in client.get_run(run_id).data.tags:  # somebody registered it meanwhile
                    client.set_terminated(run_id, self._status)


def _stamp() -> tuple[int, int] | None:
    try:
        found = LIVE_HISTORY.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
