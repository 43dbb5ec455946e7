"""Which candidates and runs may go, and taking them away.

    found = survey(settings, keep=10)     what goes: found.versions, found.runs; what stays, with the reason: found.kept
    remove(settings, found)

Stays: every released version, with the candidate and the run that it came from; what an alias names; the newest
candidates; runs that have not ended, and those that are younger than the oldest candidate that stays for being new.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import TrackingError
from ..params import Register
from . import tracking
from .local_registry import database_of
from .records import Version
from .releases import CANDIDATE_TAG
from .tracking import as_version, connected, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

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

    Raises:
        TrackingError: this account may not delete, or the server does not answer.
    """
    with connected(settings) as client:
        for one in found.versions:
            name, number = one.uri.removeprefix("models:/").split("/")
            client.delete_model_version(name, number)
            client.delete_logged_model(one.model_id)
            client.delete_run(one.run_id)
        for run_id in found.runs:
            client.delete_run(run_id)
    uri = tracking_uri(settings)
    if not found.versions or database_of(uri) is None:
        return not found.versions
    runs = ",".join((*(one.run_id for one in found.versions), *found.runs))
    models = ",".join(one.model_id for one in found.versions)
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri]
    done = subprocess.run(
        [*command, "--run-ids", runs, "--logged-model-ids", models], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise TrackingError(
            f"`mlflow gc` failed, what it would have freed is still there: {done.stderr.strip()[-300:]}"
        )
    return True


def _versions(client: "MlflowClient", name: str) -> list[Version]:
    # The search gives no aliases.
    found = sorted(client.search_model_versions(f"name='{name}'"), key=lambda version: int(version.version))
    return [as_version(client.get_model_version(name, version.version)) for version in found]


def _abandoned(
    client: "MlflowClient", settings: Register, named: set[str], candidates: list[Version], stays: Mapping[str, str]
) -> Iterable[str]:
    """Runs that ended without a version, and are older than all candidates that stay for being new."""
    experiment = client.get_experiment_by_name(settings.experiment)
    new = [one.run_id for one in candidates if stays.get(one.version, "").startswith("one of the newest")]
    if experiment is None or not new:
        return
    began = min(client.get_run(run_id).info.start_time for run_id in new)
    page = None
    while True:
        found = client.search_runs([experiment.experiment_id], f"attributes.start_time < {began}", page_token=page)
        for run in found:
            if run.info.run_id not in named and run.info.status != "RUNNING":
                yield run.info.run_id
        page = found.token
        if not page:
            return


def _bytes(client: "MlflowClient", version: Version) -> int:
    """Of a version's model and of its run's files, as the server lists them."""
    model_id = version.source.removeprefix("models:/")
    return _size(lambda path: client.list_logged_model_artifacts(model_id, path)) + _size(
        lambda path: client.list_artifacts(version.run_id, path)
    )


def _size(listed: Callable[[str | None], Iterable[Any]], path: str | None = None) -> int:
    return sum(_size(listed, entry.path) if entry.is_dir else int(entry.file_size or 0) for entry in listed(path))


def _commit(tags: Mapping[str, str]) -> str:
    return tags.get(_COMMIT_TAG, "unknown")


def _alias_of(version: Version) -> str:
    return ", ".join(version.aliases)
