"""Which candidates and runs may go, and taking them away.

    found = survey(settings, keep=10)     what goes: found.versions, found.runs; what stays, with the reason: found.kept
    remove(settings, found)

Stays: every released version, with the candidate and the run that it came from; what an alias names; the newest
candidates; runs that have not ended, and those that are younger than the oldest candidate that stays for being new.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..params import Register
from . import tracking
from .local_registry import database_of
from .records import Version
from .releases import CANDIDATE_TAG
from .tracking import as_version, connected, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

Answer = TypeVar("Answer")

_COMMIT_TAG = "refit.git_commit"


@dataclass(frozen=True)
class Kept:
    """A version that stays."""

    uri: str
    commit: str  # "unknown" where none was recorded
    reason: str


@dataclass(frozen=True)
class Going:
    """A candidate that goes, with its run and its files."""

    uri: str
    run_id: str
    model_id: str
    bytes: int


@dataclass(frozen=True)
class Survey:
    """What the rule says of a registry."""

    kept: tuple[Kept, ...]
    versions: tuple[Going, ...]
    runs: tuple[str, ...]  # of trainings that no version came from


def reasons(candidates: Iterable[Version], releases: Iterable[Version], keep: int) -> dict[str, str]:
    """Why each candidate stays that does, by number."""
    newest = sorted(candidates, key=lambda version: int(version.version), reverse=True)
    found = {version.version: f"one of the newest {keep}" for version in newest[:keep]}
    found |= {version.version: ", ".join(version.aliases) for version in newest if version.aliases}
    released = {version.tags.get(CANDIDATE_TAG): version.uri for version in releases}
    return found | {version.version: f"released as {released[version.uri]}" for version in newest
                    if version.uri in released}  # fmt: skip


def survey(settings: Register, keep: int) -> Survey:
    """What goes and what stays, with the newest `keep` candidates."""
    with connected(settings) as client:
        candidates = _versions(client, tracking.candidates(settings))
        releases = _versions(client, settings.model_name)
        stays = reasons(candidates, releases, keep)
        kept = [Kept(one.uri, _commit(one.tags), _alias_of(one) or "a release") for one in releases]
        kept += [Kept(one.uri, _commit(one.tags), stays[one.version]) for one in candidates if one.version in stays]
        old = [one for one in candidates if one.version not in stays]
        runs = {one.run_id for one in (*releases, *candidates) if one not in old}
        going = [
            Going(one.uri, one.run_id, one.source.removeprefix("models:/"), _bytes(client, one))
            for one in old
            if one.run_id not in runs
        ]
        named = runs | {one.run_id for one in old}
        return Survey(tuple(kept), tuple(going), tuple(_abandoned(client, settings, named, candidates, stays)))


def remove(settings: Register, found: Survey) -> bool:
    """Delete; may be repeated after it broke off. Gives whether the files are gone too, or MLflow's gc has to follow.

    A version goes last: as long as it is there, a survey finds what is left of it.

    Raises:
        TrackingError: this account may not delete, or the server does not answer.
    """
    with connected(settings) as client:
        models = [one.model_id for one in found.versions if _is_deleted(client.delete_logged_model, one.model_id)]
        ended = (*(one.run_id for one in found.versions), *found.runs)
        runs = [run_id for run_id in ended if _is_deleted(client.delete_run, run_id)]
        if is_local := _is_local(settings):
            _free(runs, models)
        for one in found.versions:
            name, number = one.uri.removeprefix("models:/").split("/")
            client.delete_model_version(name, number)
    return is_local or not (found.versions or found.runs)


def _is_deleted(delete: Callable[[str], None], name: str) -> bool:
    """Mark as deleted, again too; False: it is freed already."""

    def mark() -> bool:
        delete(name)
        return True

    return _if_there(mark, False)


def _if_there(ask: Callable[[], Answer], otherwise: Answer) -> Answer:
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return otherwise


def _is_local(settings: Register) -> bool:
    return database_of(tracking_uri(settings)) is not None


def _free(runs: Iterable[str], models: Iterable[str]) -> None:
    """What `mlflow gc` does to deleted runs and models. The command takes all deleted experiments too, and all deleted
    models where none is named: those of others. (Inside `connected`.)"""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracking._tracking_service.utils import _get_store

    store = _get_store()
    for run_id in runs:
        get_artifact_repository(store.get_run(run_id).info.artifact_uri).delete_artifacts()
        store._hard_delete_run(run_id)
    for model_id in models:
        place = store.get_logged_model(model_id, allow_deleted=True).artifact_location
        get_artifact_repository(place).delete_artifacts()
        store._hard_delete_logged_model(model_id)


def _versions(client: "MlflowClient", name: str) -> list[Version]:
    # The search gives no aliases.
    found = sorted(client.search_model_versions(f"name='{name}'"), key=lambda version: int(version.version))
    return [as_version(client.get_model_version(name, version.version)) for version in found]


def _abandoned(
    client: "MlflowClient", settings: Register, named: set[str], candidates: list[Version], stays: Mapping[str, str]
) -> Iterable[str]:
    """Runs that ended without a version, and are older than all candidates that stay for being new; where they can be
    freed from here, also those that are only marked as deleted."""
    from mlflow.entities import ViewType

    experiment = client.get_experiment_by_name(settings.experiment)
    new = [one.run_id for one in candidates if stays.get(one.version, "").startswith("one of the newest")]
    if experiment is None or not new:
        return
    began = min(client.get_run(run_id).info.start_time for run_id in new)
    older, page = f"attributes.start_time < {began}", None
    view = ViewType.ALL if _is_local(settings) else ViewType.ACTIVE_ONLY
    while True:
        found = client.search_runs([experiment.experiment_id], older, view, page_token=page)
        for run in found:
            if run.info.run_id not in named and run.info.status != "RUNNING":
                yield run.info.run_id
        page = found.token
        if not page:
            return


def _bytes(client: "MlflowClient", version: Version) -> int:
    """Of a version's model and of its run's files, as the server lists them."""
    model_id = version.source.removeprefix("models:/")
    listings = (
        lambda path: client.list_logged_model_artifacts(model_id, path),
        lambda path: client.list_artifacts(version.run_id, path),
    )
    return sum(_if_there(lambda: _size(listed), 0) for listed in listings)  # noqa: B023  # called at once


def _size(listed: Callable[[str | None], Iterable[Any]], path: str | None = None) -> int:
    return sum(_size(listed, entry.path) if entry.is_dir else int(entry.file_size or 0) for entry in listed(path))


def _commit(tags: Mapping[str, str]) -> str:
    return tags.get(_COMMIT_TAG, "unknown")


def _alias_of(version: Version) -> str:
    return ", ".join(version.aliases)
