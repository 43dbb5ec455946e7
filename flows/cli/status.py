"""What `refit status` says: what would run, what is registered, candidate against champion."""

from collections.abc import Mapping
from dataclasses import dataclass

from flows.tools.pipeline import is_unchanged, require_readable
from refit.errors import EvidenceError, TrackingError
from refit.params import Register, load_params
from refit.paths import STAGE_OUTPUTS
from refit.registry import releases, tracking
from refit.registry.records import Version
from refit.registry.tracking import CANDIDATE, CHAMPION
from tasks import environment


@dataclass(frozen=True)
class Measured:
    """A registered version with its measures on the test examples."""

    uri: str
    version: Version
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Status:
    """All of it. A registry that does not answer is said, not hidden, and not fatal here."""

    model_name: str
    would_run: tuple[str, ...]  # stages; and what follows from them
    candidate: Measured | None
    champion: Measured | None
    registry_error: str | None


def gather() -> Status:
    """Ask DVC and the registry."""
    require_readable()
    environment.main()
    settings = load_params().register
    would_run = tuple(stage for stage in STAGE_OUTPUTS if not is_unchanged(stage))
    try:
        candidate = _measured(tracking.version_with_alias(settings, CANDIDATE), settings)
        champion = _measured(releases.champion(settings), settings)
    except (TrackingError, EvidenceError) as error:
        return Status(settings.model_name, would_run, None, None, str(error))
    return Status(settings.model_name, would_run, candidate, champion, None)


def _measured(version: Version | None, settings: Register) -> Measured | None:
    if version is None:
        return None
    metrics = tracking.run_metrics(settings, version.run_id)
    overall = {name: value for name, value in metrics.items() if name.startswith("test_")}
    return Measured(version.uri, version, overall)


def describe(found: Status) -> str:
    """The same for a person."""
    would_run = f"{', '.join(found.would_run)} and what follows" if found.would_run else "nothing: all is up to date"
    lines = [f"Would run   {would_run}"]
    if found.registry_error:
        return "\n".join([*lines, f"Registry    {found.registry_error}"])
    versions = ((CANDIDATE, found.candidate), (CHAMPION, found.champion))
    return "\n".join([*lines, *(f"{alias.capitalize():<12}{_one_version(version)}" for alias, version in versions)])


def _one_version(found: Measured | None) -> str:
    if found is None:
        return "none"
    names = ("test_accuracy", "test_accuracy_low", "test_accuracy_high")
    accuracy = [found.metrics[name] for name in names if name in found.metrics]
    measured = "  accuracy {:.4f} ({:.4f} to {:.4f})".format(*accuracy) if len(accuracy) == len(names) else ""
    return f"{found.uri}{measured}  commit {found.version.tags.get('refit.git_commit', 'none')[:12]}"
