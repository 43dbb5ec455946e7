"""Preparing data on several machines: the inspection of examples, fanned out on a Prefect task runner.

    prepare("dask")                          a cluster of processes on this machine
    prepare("dask:tcp://scheduler:8786")     a Dask cluster; its workers must see the project under the same path
    prepare("ray:ray://head:10001")          a Ray cluster, the same way

It fills the store of `refit/data/inspection.py`; the stage `ingest`, which runs afterwards as always, then finds that
every example is known. So the result cannot differ from the one of a single machine.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import TaskRunner

from refit import modality
from refit.data.inspection import CHUNK, STORE, inspect_some, recall, remember
from refit.data.sources import Example, list_examples
from refit.errors import ParamsError
from refit.modality.contract import Inspection
from refit.params import load_params


def prepare(runner: str) -> None:
    """Inspect all examples of `data.source` on a cluster.

    Raises:
        ParamsError: the runner is unknown, or its package is not installed.
    """
    _inspect_on_cluster.with_options(task_runner=_task_runner(runner))()


@flow(name="prepare", persist_result=False)
def _inspect_on_cluster() -> None:
    data = load_params().data
    column = modality.files(data.modality).COLUMN
    STORE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STORE.absolute()) as folder:  # of an archive, and of a table that holds them
        listed = list_examples(Path(data.source), Path(folder, "unpacked"), column)
        examples = [example for example in listed if example.error is None]
        chunks = [examples[start : start + CHUNK] for start in range(0, len(examples), CHUNK)]
        futures = [_inspect_chunk.submit(chunk, data.modality) for chunk in chunks]
        found = [inspection for future in futures for inspection in future.result()]
    remember([*recall(data.modality).values(), *found], data.modality)
    get_run_logger().info("%s examples inspected in %s tasks", len(found), len(futures))


@task(task_run_name="inspect", cache_policy=NO_CACHE, persist_result=False, retries=2)
def _inspect_chunk(examples: Sequence[Example], modality_name: str) -> list[Inspection]:
    return list(inspect_some(examples, modality_name, num_children=1))


def _task_runner(runner: str) -> TaskRunner[Any]:
    kind, _, address = runner.partition(":")
    try:
        if kind == "dask":
            from prefect_dask import DaskTaskRunner  # type: ignore[attr-defined, unused-ignore]

            return DaskTaskRunner(address=address) if address else DaskTaskRunner()
        if kind == "ray":
            from prefect_ray import RayTaskRunner  # type: ignore[import-not-found, unused-ignore]

            return RayTaskRunner(address=address) if address else RayTaskRunner()
    except ImportError:
        raise ParamsError(
            f"`flow.ingest_runner` is {runner!r}, but prefect-{kind} is not installed; install it with "
            f"`uv pip install --python .venv prefect-{kind}`, here and where the flow runs"
        ) from None
    raise ParamsError(f"`flow.ingest_runner` is {runner!r}; allowed: null, dask, dask:<address>, ray, ray:<address>")
