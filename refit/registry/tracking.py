"""MLflow as Refit uses it: runs, models, versions, aliases.
Only this room and refit/model/serving.py import mlflow.

Every call may be repeated: what exists already is found by its content digest and taken up where it was left.
Every failure becomes a TrackingError that says where and why; TrackingUnavailableError where trying again may help.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..gate import evidence
from ..params import Register, without_credentials
from . import local_registry
from .claims import claimed
from .dataset import as_dataset
from .experiments import experiment_id
from .failures import translated
from .packaging import packed
from .records import CONTENT_TAG, Record, Version
from .registered_models import create_model, registered_model
from .runs import TRAINING_TAG, adopt, find_unregistered, log_history, log_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EVIDENCE_TAG = "refit.evidence"
COMPARISON_TAG = "refit.comparison"
FLOW_RUN_TAG, SERVER_TAG = "prefect.flow_run_id", "prefect.server_id"
CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"

BRANCH_TAG = "refit.git_branch"
PATCH_FILE = "lineage/git.diff"  # of a run: what was not committed
_COMMIT_TAGS = ("refit.git_commit", "refit.git_dirty", "refit.dvc_lock_sha256")
_MODEL_TAG = "refit.model_uri"
_NOTE_TAG = "mlflow.note.content"  # the description of a run
_WAY_OUT = (
    "Nothing that was trained is lost: it is in models/, and `refit register` completes the registration once the "
    "server answers"
)
_SETTINGS = {
    # The defaults keep a caller waiting for four minutes when the server is down.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for results
}


def tracking_uri(settings: Register) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI from the environment, else params.yaml."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri
    relative = uri.removeprefix("sqlite:///")
    # MLflow keeps one connection per address, wherever the current folder was when it was made.
    return uri if relative == uri or relative.startswith("/") else f"sqlite:///{Path(relative).absolute()}"


def environment(settings: Register) -> dict[str, str]:
    """What a process needs to reach the same MLflow in the same way."""
    return {**_SETTINGS, "MLFLOW_TRACKING_URI": tracking_uri(settings)}


def candidates(settings: Register) -> str:
    """The registered model that the pipeline writes. `model_name` itself belongs to the reviewers."""
    return f"{settings.model_name}-candidates"


def model_of_alias(settings: Register, alias: str) -> str:
    """Which of the two registered models carries an alias."""
    return candidates(settings) if alias == CANDIDATE else settings.model_name


def register(
    record: Record,
    settings: Register,
    prove: Callable[[str, Path], bytes],
    present: Callable[[Version, bytes], tuple[str, Path]],
) -> tuple[Version, bool]:
    """Log a run and register its model as a candidate; give the version and whether it is new.

    The same content gives the same version. A registration that was interrupted is completed, and one whose
    comparison is with another champion than the present gets new evidence.

    Args:
        record: what to log.
        settings: where.
        prove: called with the address of the logged model and a folder with what came back from MLflow; gives the
            evidence. Without it there is no version.
        present: called with the version and its evidence; gives its description and a page for the run, which thus
            may name the version's number.
    """
    name = candidates(settings)
    with connected(settings) as client:
        create_model(client, name)
        with claimed(client, name, record.content_digest) as renew:
            return _register(client, record, settings, prove, present, renew)


def _register(
    client: "MlflowClient",
    record: Record,
    settings: Register,
    prove: Callable[[str, Path], bytes],
    present: Callable[[Version, bytes], tuple[str, Path]],
    renew: Callable[[], None],
) -> tuple[Version, bool]:
    name = candidates(settings)
    found = _find_version(client, name, CONTENT_TAG, record.content_digest)
    if found is None:
        run_id, model_uri = _log_run(client, record, settings)
        bundle = _proven(model_uri, prove)
        digest = _log_evidence(client, run_id, bundle)
        renew()
        # Of somebody who took this process for dead:
        found = _find_version(client, name, CONTENT_TAG, record.content_digest)
        if found is None:
            found = _create_version(client, record, name, run_id, model_uri, digest)
            _present(client, found, bundle, present)
            return _complete(client, record, found), True
    is_new = COMPARISON_TAG not in found.tags  # one that broke off: nobody was told of it
    if found.tags.get(COMPARISON_TAG) != record.comparison_digest or _is_cleaner(record, found):
        _renew_evidence(client, record, found, prove, present)
    return _complete(client, record, found), is_new


def _complete(client: "MlflowClient", record: Record, found: "ModelVersion") -> Version:
    """Alias, and then the tag of the comparison: who finds it finds a registration that came to its end."""
    aliased = _alias(client, found.name, CANDIDATE)
    if aliased is None or aliased.version != found.version:
        client.set_registered_model_alias(found.name, CANDIDATE, found.version)
    if found.tags.get(COMPARISON_TAG) != record.comparison_digest:
        client.set_model_version_tag(found.name, found.version, COMPARISON_TAG, record.comparison_digest)
    return as_version(client.get_model_version(found.name, found.version))


def version_with_alias(settings: Register, alias: str) -> Version | None:
    """The version that an alias points at; None only if the registry answers that there is none.

    Whoever acts on there being no champion asks `releases.champion`, which asks the decisions too.
    """
    with connected(settings) as client:
        found = _alias(client, model_of_alias(settings, alias), alias)
        return None if found is None else as_version(found)


def version(settings: Register, name: str, number: str) -> Version:
    """One version by its number.

    Raises:
        TrackingError: there is none.
    """
    with connected(settings) as client:
        return as_version(client.get_model_version(name, number))


def stored_files(uri: str) -> dict[str, str]:
    """SHA-256 by path of each file of a model, as MLflow gives them back. (Inside `connected`.)"""
    with tempfile.TemporaryDirectory(prefix="refit-model-") as folder:
        return evidence.digests(download(uri, Path(folder)))


def download(uri: str, folder: Path) -> Path:
    """A model's or a run's files, or one of them, into `folder`; gives where they lie. (Inside `connected`.)"""
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))


def read_file(settings: Register, uri: str) -> bytes:
    """One file of a run (`runs:/…/path`) or of a model (`models:/…/path`)."""
    with connected(settings), tempfile.TemporaryDirectory(prefix="refit-file-") as folder:
        return download(uri, Path(folder)).read_bytes()


def version_with_tag(settings: Register, tag: str, value: str) -> Version | None:
    """The first candidate that carries a tag with this value."""
    with connected(settings) as client:
        found = _find_version(client, candidates(settings), tag, value)
        return None if found is None else as_version(found)


def end_runs(settings: Register, server_id: str, is_over: Callable[[str], bool]) -> list[str]:
    """Mark as KILLED what still says RUNNING although its flow run is over on the Prefect server; give their names.

    Runs that name no server, or another one, are somebody else's.
    """
    with connected(settings) as client:
        experiment = client.get_experiment_by_name(settings.experiment)
        if experiment is None:
            return []
        ours = f"attributes.status = 'RUNNING' and tags.`{SERVER_TAG}` = '{server_id}'"
        dead = [
            run for run in client.search_runs([experiment.experiment_id], ours) if is_over(run.data.tags[FLOW_RUN_TAG])
        ]
        for run in dead:
            client.set_terminated(run.info.run_id, "KILLED")
        return [run.info.run_name for run in dead]


def run_metrics(settings: Register, run_id: str) -> dict[str, float]:
    """The last value of each metric of a run."""
    with connected(settings) as client:
        return dict(client.get_run(run_id).data.metrics)


def links(settings: Register, version: Version) -> dict[str, str]:
    """Addresses of the run and the version in MLflow's pages; empty where there is no server."""
    address = without_credentials(tracking_uri(settings)).rstrip("/")
    if not address.startswith("http"):
        return {}
    with connected(settings) as client:
        experiment_id = client.get_run(version.run_id).info.experiment_id
    return {
        "run": f"{address}/#/experiments/{experiment_id}/runs/{version.run_id}",
        "version": f"{address}/#/models/{version.model_name}/versions/{version.version}",
    }


@contextmanager
def connected(settings: Register, way_out: str = _WAY_OUT) -> Iterator["MlflowClient"]:
    """A client whose failures are TrackingErrors; `way_out` ends the message where trying again may help."""
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
        local_registry.ready(uri)
        mlflow.set_tracking_uri(uri)
        yield mlflow.MlflowClient()
    except (MlflowException, OSError, SQLAlchemyError) as error:  # OSError: requests' errors, and a disk's
        raise translated(error, uri, way_out) from None  # not chained: its message may hold the password of the address


def _find_version(client: "MlflowClient", name: str, tag: str, value: str) -> "ModelVersion | None":
    """The first that is ready."""
    found = client.search_model_versions(f"name='{name}' and tags.`{tag}`='{value}'")
    ready = [version for version in found if version.status == "READY"]
    return min(ready, key=lambda version: int(version.version), default=None)


def _is_cleaner(record: Record, found: "ModelVersion") -> bool:
    """The same content, now from a clean commit: name that one, for the first may have been made before any commit."""
    is_clean = record.tags.get("refit.git_dirty") == "false"
    return is_clean and any(found.tags.get(tag) != record.tags[tag] for tag in _COMMIT_TAGS)


def _alias(client: "MlflowClient", name: str, alias: str) -> "ModelVersion | None":
    """By way of the model: asked for an alias that is missing, the registry answers as to any mistake in a call."""
    model = registered_model(client, name)
    number = None if model is None else model.aliases.get(alias)
    return None if number is None else client.get_model_version(name, str(number))


def _log_run(client: "MlflowClient", record: Record, settings: Register) -> tuple[str, str]:
    """Create the run, or go on with the one that an earlier attempt or the training began; give its id and the model's
    address."""
    import mlflow
    from mlflow.entities import Metric

    experiment = experiment_id(client, settings.experiment)
    mlflow.set_experiment(experiment_id=experiment)
    begun = client.search_runs([experiment], f"tags.`{CONTENT_TAG}` = '{record.content_digest}'")
    if not begun:
        training = find_unregistered(client, experiment, record.tags[TRAINING_TAG], record.history)
        if training and adopt(client, training, record.name, record.content_digest, candidates(settings)):
            begun = [training]
    run_id = begun[0].info.run_id if begun else None
    names = {} if run_id else {"run_name": record.name}
    with mlflow.start_run(run_id=run_id, description=record.description, **names):
        run = mlflow.active_run()
        mlflow.set_tags({CONTENT_TAG: record.content_digest, **record.tags})
        mlflow.log_params(dict(record.params))
        mlflow.log_input(as_dataset(record.dataset), context="training")
        log_history(client, run, record.history)
        log_metrics(
            client, run, [Metric(name, value, run.info.start_time, 0) for name, value in record.metrics.items()]
        )
        for folder, files in record.files.items():
            for file in files:
                mlflow.log_artifact(str(file), folder or None)
        for path, text in record.texts.items():
            mlflow.log_text(text, path)
        model_uri = run.data.tags.get(_MODEL_TAG)
        if model_uri is None:
            model_uri = _log_model(record)
            mlflow.set_tag(_MODEL_TAG, model_uri)
        return str(run.info.run_id), str(model_uri)


def _proven(model_uri: str, prove: Callable[[str, Path], bytes]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="refit-model-") as folder:
        return prove(model_uri, download(model_uri, Path(folder)))


def _log_evidence(client: "MlflowClient", run_id: str, bundle: bytes) -> str:
    """Log the bundle under the name of its digest; give the digest."""
    digest = evidence.digest_of(bundle)
    client.log_text(run_id, bundle.decode(), f"evidence/{digest}.json")
    return digest


def _present(
    client: "MlflowClient",
    found: "ModelVersion",
    bundle: bytes,
    present: Callable[[Version, bytes], tuple[str, Path]],
) -> None:
    description, page = present(as_version(found), bundle)
    client.log_artifact(found.run_id, str(page), "reports")
    client.set_tag(found.run_id, _NOTE_TAG, description)
    client.update_model_version(found.name, found.version, description)


def _renew_evidence(
    client: "MlflowClient",
    record: Record,
    found: "ModelVersion",
    prove: Callable[[str, Path], bytes],
    present: Callable[[Version, bytes], tuple[str, Path]],
) -> None:
    """The same content against another champion, or now from a clean commit: new files beside the old ones, then the
    tags that name them."""
    for folder, files in record.files.items():
        for file in files:
            client.log_artifact(found.run_id, str(file), folder or None)
    if patch := record.texts.get(PATCH_FILE):  # of what the new evidence is about
        client.log_text(found.run_id, patch, PATCH_FILE)
    model_uri = client.get_run(found.run_id).data.tags[_MODEL_TAG]
    bundle = _proven(model_uri, prove)
    digest = _log_evidence(client, found.run_id, bundle)
    commit = {}
    if _is_cleaner(record, found):
        commit = {tag: record.tags[tag] for tag in (*_COMMIT_TAGS, BRANCH_TAG) if tag in record.tags}
    for name, value in commit.items():
        client.set_tag(found.run_id, name, value)
    found.tags.update({EVIDENCE_TAG: digest, **commit})
    _present(client, found, bundle, present)
    # The commit last: what breaks off before it is seen by `_is_cleaner`, and done again.
    tags = {**record.verdict, EVIDENCE_TAG: digest, **commit}
    for name, value in tags.items():
        client.set_model_version_tag(found.name, found.version, name, value)


def _log_model(record: Record) -> str:
    import mlflow

    with packed(record.weights, record.card, record.example) as arguments:
        return str(mlflow.pyfunc.log_model(name="model", **arguments).model_uri)


def _create_version(
    client: "MlflowClient", record: Record, name: str, run_id: str, model_uri: str, digest: str
) -> "ModelVersion":
    return client.create_model_version(
        name,
        source=model_uri,
        model_id=model_uri.removeprefix("models:/"),  # a server refuses the source without it
        run_id=run_id,
        tags={
            CONTENT_TAG: record.content_digest,
            EVIDENCE_TAG: digest,
            **record.verdict,
            **record.tags,
        },
        description=record.description,
    )


def as_version(found: "ModelVersion") -> Version:
    """What Refit wants to know of MLflow's own object."""
    return Version(
        found.name, str(found.version), found.run_id or "", dict(found.tags), tuple(found.aliases), found.source or ""
    )
