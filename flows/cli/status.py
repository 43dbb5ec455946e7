"""What `refit status` says: what would run, what is registered, candidate against champion."""

from dataclasses import asdict
from typing import Any

from flows.tools.pipeline import is_unchanged, require_readable
from refit.errors import EvidenceError, TrackingError
from refit.params import load_params
from refit.paths import STAGE_OUTPUTS
from refit.registry import releases, tracking
from refit.registry.records import Version
from refit.registry.tracking import CANDIDATE, CHAMPION
from tasks import environment


def gather() -> dict[str, Any]:
    """All of it as plain values. A registry that does not answer is said, not hidden, and not fatal here."""
    require_readable()
    environment.main()
    settings = load_params().register
    found: dict[str, Any] = {
        "would_run": [stage for stage in STAGE_OUTPUTS if not is_unchanged(stage)],
        "model_name": settings.model_name,
        "registry_error": None,
    }
    for alias in (CANDIDATE, CHAMPION):
        try:
            version = releases.champion(settings) if alias == CHAMPION else tracking.version_with_alias(settings, alias)
            found[alias] = _with_metrics(version)
        except (TrackingError, EvidenceError) as error:
            found[alias], found["registry_error"] = None, str(error)
    return found


def _with_metrics(version: Version | None) -> dict[str, Any] | None:
    if version is None:
        return None
    metrics = tracking.run_metrics(load_params().register, version.run_id)
    overall = {name: value for name, value in metrics.items() if name.startswith("test_")}
    return {**asdict(version), "uri": version.uri, "metrics": overall}


def describe(found: dict[str, Any]) -> str:
    """The same for a person."""
    would_run = found["would_run"]
    lines = [
        f"Would run   {', '.join(would_run)} and what follows"
        if would_run
        else "Would run   nothing: all is up to date"
    ]
    if found["registry_error"]:
        return "\n".join([*lines, f"Registry    {found['registry_error']}"])
    versions = [f"{alias.capitalize():<12}{_one_version(found[alias])}" for alias in (CANDIDATE, CHAMPION)]
    return "\n".join([*lines, *versions])


def _one_version(version: dict[str, Any] | None) -> str:
    if version is None:
        return "none"
    metrics = version["metrics"]
    measured = ""
    if "test_accuracy" in metrics:
        low, high = metrics.get("test_accuracy_low"), metrics.get("test_accuracy_high")
        measured = f"  accuracy {metrics['test_accuracy']:.4f} ({low:.4f} to {high:.4f})"
    return f"{version['uri']}{measured}  commit {version['tags'].get('refit.git_commit', 'none')[:12]}"
