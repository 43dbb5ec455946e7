"""MLflow as Refit uses it: runs, models, versions, aliases. The only importer of mlflow (with tasks/serving.py).

Every call may be repeated: what exists already is found by its content digest and taken up where it was left.
Every failure becomes a TrackingError that says where and why; TrackingUnavailableError where trying again may help.
"""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tasks.errors import TrackingError, TrackingUnavailableError
from tasks.params import Register, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CONTENT_TAG = "refit.content_digest"
FLOW_RUN_TAG = "prefect.flow_run_id"
CANDIDATE, CHAMPION = "candidate", "champion"

_MODEL_TAG = "refit.model_uri"
_MODEL_PACKAGES = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow", "pydantic", "safetensors")
_SETTINGS = {
    # The defaults keep a caller waiting for four minutes when the server is down.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for results
}


@dataclass(frozen=True)
class Version:
    """A registered model version, as far as a person or a script wants to know."""

    model_name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        return f"models:/{self.model_name}/{self.version}"


@dataclass(frozen=True)
class Record:
    """All that a run leaves in MLflow."""

    name: str
    content_digest: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    history: Sequence[Mapping[str, float]]  # rows with `epoch` and measures
    metrics: Mapping[str, float]
    files: Mapping[str, Sequence[Path]]  # artifact folder -> files
    texts: Mapping[str, str]  # artifact path -> content
    weights: Path
    card: Path
    example_image: Any  # an encoded image, as bytes
    dataset: Mapping[str, str]  # name, digest, source
    description: str


def tracking_uri(settings: Register) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI from the environment, else params.yaml."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri
    relative = uri.removeprefix("sqlite:///")
    # MLflow keeps one connection per address, wherever the current folder was when it was made.
    return uri if relative == uri or relative.startswith("/") else f"sqlite:///{Path(relative).absolute()}"


def register(record: Record, settings: Register) -> tuple[Version, bool]:
    """Log a run and register its model under the alias `candidate`; give the version and whether it is new.

    The same content gives the same version. A registration that was interrupted is completed.
    """
    with _client(settings) as client:
        found = _find_version(client, settings.model_name, record.content_digest)
        is_new = found is None
        if found is None:
            run_id = _log_run(client, record, settings)
            found = _create_version(client, record, settings, run_id)
        elif record.tags.get("refit.git_dirty") == "false":
            _restamp(client, found, record)
        aliased = _alias(client, settings.model_name, CANDIDATE)
        if aliased is None or aliased.version != found.version:
            client.set_registered_model_alias(settings.model_name, CANDIDATE, found.version)
        return _as_version(client.get_model_version(settings.model_name, found.version)), is_new


def version_with_alias(settings: Register, alias: str) -> Version | None:
    """The version that an alias points at; None only if the registry answers that there is none."""
    with _client(settings) as client:
        found = _alias(client, settings.model_name, alias)
        return None if found is None else _as_version(found)


def version_with_tag(settings: Register, tag: str, value: str) -> Version | None:
    """The first version of the model that carries a tag with this value."""
    with _client(settings) as client:
        found = client.search_model_versions(f"name='{settings.model_name}' and tags.`{tag}`='{value}'")
        ready = [version for version in found if version.status == "READY"]
        return _as_version(min(ready, key=lambda version: int(version.version))) if ready else None


def end_runs(settings: Register, is_over: Callable[[str], bool]) -> list[str]:
    """Mark as KILLED the runs that still say RUNNING although the flow run that made them is over; give their names."""
    with _client(settings) as client:
        experiment = client.get_experiment_by_name(settings.experiment)
        if experiment is None:
            return []
        running = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
        dead = [run for run in running if FLOW_RUN_TAG in run.data.tags and is_over(run.data.tags[FLOW_RUN_TAG])]
        for run in dead:
            client.set_terminated(run.info.run_id, "KILLED")
        return [run.info.run_name for run in dead]


def run_metrics(settings: Register, run_id: str) -> dict[str, float]:
    """The last value of each metric of a run."""
    with _client(settings) as client:
        return dict(client.get_run(run_id).data.metrics)


def links(settings: Register, version: Version) -> dict[str, str]:
    """Addresses of the run and the version in MLflow's pages; empty where there is no server."""
    address = without_credentials(tracking_uri(settings)).rstrip("/")
    if not address.startswith("http"):
        return {}
    with _client(settings) as client:
        experiment_id = client.get_run(version.run_id).info.experiment_id
    return {
        "run": f"{address}/#/experiments/{experiment_id}/runs/{version.run_id}",
        "version": f"{address}/#/models/{version.model_name}/versions/{version.version}",
    }


def load_model(uri: str, settings: Register) -> Callable[[Any], Any]:
    """The `predict` of a model in the registry; takes {"image": [...]} and gives a table."""
    import mlflow

    with _client(settings):
        return mlflow.pyfunc.load_model(uri).predict


@contextmanager
def _client(settings: Register) -> Iterator["MlflowClient"]:
    """A client whose failures are TrackingErrors."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"mlflow\..*")
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = tracking_uri(settings)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        mlflow.set_tracking_uri(uri)
        yield mlflow.MlflowClient()
    except MlflowException as error:
        # Not chained: MLflow's own message may hold the password of the address.
        address, reason = without_credentials(uri), _without_password(_reason(error), uri)
        if error.get_http_status_code() < 500 and error.error_code != "REQUEST_LIMIT_EXCEEDED":
            raise TrackingError(f"MLflow at {address} refused: {reason}") from None
        raise TrackingUnavailableError(
            f"MLflow at {address} failed: {reason}. Nothing that was trained is lost: it is in models/, and "
            "`refit register` completes the registration once the server answers"
        ) from None
    except (OSError, SQLAlchemyError) as error:  # what MLflow lets through of requests, a database, a disk
        raise TrackingUnavailableError(
            f"MLflow at {without_credentials(uri)} failed: {_without_password(_reason(error), uri)}. `refit register` "
            "completes an interrupted registration"
        ) from None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "Max retries exceeded" in text:
        return f"no connection ({text.rsplit('Caused by ', 1)[-1].strip('()')})"
    return text if len(text) <= 300 else f"{text[:300]}…"


def _without_password(text: str, uri: str) -> str:
    parts = urlsplit(uri)
    secrets = {part for raw in (parts.password, parts.query) if raw for part in (raw, unquote(raw))}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "…")
    return text


def _find_version(client: "MlflowClient", name: str, content_digest: str) -> "ModelVersion | None":
    found = client.search_model_versions(f"name='{name}' and tags.`{CONTENT_TAG}`='{content_digest}'")
    ready = [version for version in found if version.status == "READY"]
    return min(ready, key=lambda version: int(version.version), default=None)


def _restamp(client: "MlflowClient", found: "ModelVersion", record: Record) -> None:
    """The same content, now from a clean commit: name that one, for the first may have been made before any commit."""
    for tag in ("refit.git_commit", "refit.git_dirty", "refit.dvc_lock_sha256"):
        if found.tags.get(tag) != record.tags[tag]:
            client.set_tag(found.run_id, tag, record.tags[tag])
            client.set_model_version_tag(found.name, found.version, tag, record.tags[tag])


def _alias(client: "MlflowClient", name: str, alias: str) -> "ModelVersion | None":
    """Asked for directly: search results do not carry aliases."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        # The registry says RESOURCE_DOES_NOT_EXIST for a missing model, INVALID_PARAMETER_VALUE for a missing
        # alias of an existing one; anything else (no connection, no rights) must not pass for "there is none".
        missing_alias = error.error_code == "INVALID_PARAMETER_VALUE" and "alias" in str(error).lower()
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or missing_alias:
            return None
        raise


def _log_run(client: "MlflowClient", record: Record, settings: Register) -> str:
    """Create the run, or go on with the one that an earlier attempt began; give its id."""
    import mlflow

    mlflow.set_experiment(settings.experiment)
    experiment = client.get_experiment_by_name(settings.experiment)
    begun = client.search_runs([experiment.experiment_id], f"tags.`{CONTENT_TAG}` = '{record.content_digest}'")
    run_id = begun[0].info.run_id if begun else None
    names = {} if run_id else {"run_name": record.name}
    with mlflow.start_run(run_id=run_id, description=record.description, **names):
        run = mlflow.active_run()
        mlflow.set_tags({CONTENT_TAG: record.content_digest, **record.tags})
        mlflow.log_params(dict(record.params))
        mlflow.log_input(_dataset(record.dataset), context="training")
        _log_metrics(client, run.info.run_id, run.info.start_time, record)
        for folder, files in record.files.items():
            for file in files:
                mlflow.log_artifact(str(file), folder or None)
        for path, text in record.texts.items():
            mlflow.log_text(text, path)
        if _MODEL_TAG not in run.data.tags:
            mlflow.set_tag(_MODEL_TAG, _log_model(record))
        return str(run.info.run_id)


def _log_metrics(client: "MlflowClient", run_id: str, start_time: int, record: Record) -> None:
    """In batches, and stamped with the run's start: logging the same again changes nothing."""
    from mlflow.entities import Metric

    values = [
        Metric(name, float(value), start_time, int(row["epoch"]))
        for row in record.history
        for name, value in row.items()
        if name != "epoch"
    ]
    values += [Metric(name, value, start_time, 0) for name, value in record.metrics.items()]
    for start in range(0, len(values), 1000):
        client.log_batch(run_id, metrics=values[start : start + 1000])


def _log_model(record: Record) -> str:
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map, Schema

    outputs = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    package = Path(__file__).parent
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(package / "serving.py"),
        code_paths=[str(package)],
        artifacts={"weights": str(record.weights), "card": str(record.card)},
        signature=ModelSignature(Schema([ColSpec(AnyType(), "image")]), Schema(outputs)),
        input_example=pd.DataFrame({"image": [record.example_image]}),
        pip_requirements=[f"{name}=={installed_version(name).split('+')[0]}" for name in _MODEL_PACKAGES],
    )
    return str(info.model_uri)


def _create_version(client: "MlflowClient", record: Record, settings: Register, run_id: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(settings.model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = client.get_run(run_id).data.tags[_MODEL_TAG]
    return client.create_model_version(
        settings.model_name,
        source=source,
        model_id=source.removeprefix("models:/"),  # a server refuses the source without it
        run_id=run_id,
        tags={CONTENT_TAG: record.content_digest, **record.tags},
        description=record.description,
    )


def _as_version(found: "ModelVersion") -> Version:
    return Version(found.name, str(found.version), found.run_id, dict(found.tags), tuple(found.aliases))


def _dataset(dataset: Mapping[str, str]) -> Any:
    from mlflow.data.meta_dataset import MetaDataset

    # MLflow keeps at most 36 characters of a digest; the whole of it is in the tag refit.data_digest.
    return MetaDataset(_dataset_source_type()(dataset["source"]), dataset["name"], dataset["digest"][:36])


@functools.cache
def _dataset_source_type() -> Any:
    """A class made here, since its base class cannot be named before mlflow is imported."""
    from mlflow.data.dataset_source import DatasetSource

    class DvcSource(DatasetSource):  # type: ignore[misc]
        """Data tracked by DVC: `data.source` of params.yaml."""

        def __init__(self, path: str) -> None:
            self.path = path

        @staticmethod
        def _get_source_type() -> str:
            return "dvc"

        def load(self) -> str:
            return self.path

        @staticmethod
        def _can_resolve(_raw_source: Any) -> bool:
            return False

        @classmethod
        def _resolve(cls, raw_source: Any) -> "DvcSource":
            return cls(raw_source)

        def to_dict(self) -> dict[str, Any]:
            return {"path": self.path}

        @classmethod
        def from_dict(cls, source_dict: dict[str, Any]) -> "DvcSource":
            return cls(source_dict["path"])

    return DvcSource
