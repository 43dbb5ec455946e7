"""One training, one MLflow run: begun while it goes on (live.py), completed when its model is registered (tracking.py).

All of this is done inside `tracking.connected`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from .claims import claimed
from .records import CONTENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

TRAINING_TAG = "refit.training"
"""The digest of what the training is made from: its card's lineage."""

_COMPARED = "train_loss"
_METRICS_IN_A_CALL = 1000

Rows = Sequence[Mapping[str, object]]
"""Of a training's history: `epoch`, measures, and whatever else a row says."""


def find_unregistered(client: "MlflowClient", experiment: str, training: str, history: Rows) -> "Run | None":
    """The newest run of a training that nothing was registered with, if its curve is that of `history` so far.

    Other code, or another machine, may have trained the same differently: that is another run.
    """
    found = client.search_runs([experiment], f"tags.`{TRAINING_TAG}` = '{training}'")
    return next((run for run in found if CONTENT_TAG not in run.data.tags and _agrees(client, run, history)), None)


def adopt(client: "MlflowClient", run: "Run", name: str, content_digest: str, model: str) -> bool:
    """Make the run of a training that of a content; False if it is another one's by now.

    Args:
        name: of the run from now on.
        content_digest: of what is registered.
        model: the registered model, by which those who register find each other.
    """
    run_id = run.info.run_id
    with claimed(client, model, run_id):
        if client.get_run(run_id).data.tags.get(CONTENT_TAG, content_digest) != content_digest:
            return False
        client.set_tag(run_id, CONTENT_TAG, content_digest)
    client.update_run(run_id, name=name)
    return True


def log_history(client: "MlflowClient", run: "Run", history: Rows) -> None:
    """The curves. Stamped with the run's start: logging the same again changes nothing."""
    from mlflow.entities import Metric

    log_metrics(
        client,
        run,
        [
            Metric(name, float(value), run.info.start_time, _step(row))
            for row in history
            for name, value in row.items()
            if name != "epoch" and isinstance(value, int | float)
        ],
    )


def log_metrics(client: "MlflowClient", run: "Run", metrics: "Sequence[Metric]") -> None:
    """In as few calls as MLflow allows."""
    for start in range(0, len(metrics), _METRICS_IN_A_CALL):
        client.log_batch(run.info.run_id, metrics=metrics[start : start + _METRICS_IN_A_CALL])


def _agrees(client: "MlflowClient", run: "Run", history: Rows) -> bool:
    ours = {_step(row): row[_COMPARED] for row in history}
    theirs: Iterable[Metric] = client.get_metric_history(run.info.run_id, _COMPARED)
    return all(
        math.isclose(point.value, float(str(ours[point.step])), rel_tol=1e-12) for point in theirs if point.step in ours
    )


def _step(row: Mapping[str, object]) -> int:
    return int(str(row["epoch"]))
