"""The effect `register`: puts what the stages made into MLflow, as a run and a candidate version.

    registration = register_candidate()

Not a DVC stage: it changes a server, not a file. Repeating it is harmless, and completes what was interrupted.
The content digest covers everything that the version stands for (data, split, base checkpoint, parameters,
weights, card and measures); who asked, when and from which commit are tags beside it.
"""

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pandas as pd

from tasks import paths, tracking
from tasks.errors import WorkspaceError
from tasks.params import Params, as_dict, load_params, training_digest, without_credentials
from tasks.publish import sha256_of_file, sha256_of_json
from tasks.reports import evaluation_markdown, validation_markdown
from tasks.tracking import Record, Version

_REPORTS = (paths.VALIDATION_REPORT, paths.VALIDATION_SUMMARY, paths.EVALUATION_REPORT)
_PLOTS = (paths.HISTORY, paths.CONFUSION_PLOT, paths.RELIABILITY_PLOT)
_LINEAGE = (paths.PARAMS, Path("dvc.yaml"), paths.LOCK, paths.BASE_CARD, paths.MODEL_CARD)


@dataclass(frozen=True)
class Registration:
    """What registering gave."""

    version: Version
    is_new: bool
    links: Mapping[str, str]


def register_candidate(extra_tags: Mapping[str, str] | None = None) -> Registration:
    """Register what is in the workspace.

    Raises:
        WorkspaceError: an output of a stage is missing, or belongs to another run than the others.
        TrackingError: MLflow cannot be reached, or refuses; repeat the call later.
    """
    params = load_params()
    _require_outputs()
    _require_one_run(params)
    version, is_new = tracking.register(_record(params, extra_tags or {}), params.register)
    return Registration(version, is_new, tracking.links(params.register, version))


def _require_outputs() -> None:
    needed = (*_REPORTS, *_PLOTS, *_LINEAGE, paths.ACCEPTED, paths.MODEL_WEIGHTS, paths.EVALUATION)
    missing = [path.as_posix() for path in needed if not path.exists()]
    if missing:
        raise WorkspaceError(
            f"nothing to register yet: {', '.join(missing)} missing; run `dvc repro` or `refit retrain`"
        )


def _require_one_run(params: Params) -> None:
    """What is registered together was made together: each output names what it was made from."""
    card = json.loads(paths.MODEL_CARD.read_text())
    validation = json.loads(paths.VALIDATION_SUMMARY.read_text())
    evaluated = json.loads(paths.EVALUATION.read_text()).get("weights_sha256")
    lineage = card["lineage"]
    checks = {
        f"{paths.MODEL_CARD} was trained with another seed or `finetune` section than params.yaml has now": (
            lineage["params_digest"] == training_digest(params)
        ),
        f"{paths.MODEL_CARD} was trained on other data than {paths.VALIDATION_SUMMARY} describes": (
            all(lineage[digest] == validation[digest] for digest in ("data_digest", "split_digest"))
        ),
        f"{paths.EVALUATION} measures another model than {paths.MODEL_CARD} describes": (
            evaluated == card["weights_sha256"]
        ),
    }
    if wrong := [what for what, holds in checks.items() if not holds]:
        raise WorkspaceError(f"nothing was registered: {'; '.join(wrong)}; run `dvc repro`")


def _record(params: Params, extra_tags: Mapping[str, str]) -> Record:
    validation = json.loads(paths.VALIDATION_SUMMARY.read_text())
    evaluation = json.loads(paths.EVALUATION.read_text())
    card = json.loads(paths.MODEL_CARD.read_text())
    accepted = pd.read_parquet(paths.ACCEPTED)
    history = pd.read_csv(paths.HISTORY)
    lineage = _lineage(params, card, validation)
    commit, diff = git_state()
    tags = {
        **{f"refit.{name}": value for name, value in lineage.items()},
        "refit.git_commit": commit,
        "refit.git_dirty": str(bool(diff)).lower(),
        "refit.dvc_lock_sha256": sha256_of_file(paths.LOCK),
        "refit.python": platform.python_version(),
        **{f"refit.environment.{name}": str(value) for name, value in card["environment"].items()},
        **extra_tags,
    }
    return Record(
        name=f"{params.register.model_name} {commit[:6]} {card['weights_sha256'][:6]}",
        content_digest=sha256_of_json(lineage),
        params=_flat(_pure(params)) | {"checkpoint.uri": without_credentials(params.checkpoint.uri)},
        tags=tags,
        history=[{str(name): value for name, value in row.items()} for row in history.to_dict("records")],
        metrics=_metrics(evaluation, card),
        files={"reports": (*_REPORTS, paths.EVALUATION), "plots": _PLOTS, "lineage": _LINEAGE},
        texts={"lineage/packages.txt": _packages(), **({"lineage/git.diff": diff} if diff else {})},
        weights=paths.MODEL_WEIGHTS,
        card=paths.MODEL_CARD,
        example_image=Path(accepted["path"].iloc[0]).read_bytes(),
        dataset={"name": params.data.source, "digest": validation["data_digest"], "source": params.data.source},
        description=f"{evaluation_markdown(evaluation)}\n\n{validation_markdown(validation)}",
    )


def _lineage(params: Params, card: dict[str, Any], validation: dict[str, Any]) -> dict[str, str]:
    return {
        "data_digest": validation["data_digest"],
        "split_digest": validation["split_digest"],
        "base_sha256": card["lineage"]["base_sha256"],
        "params_digest": sha256_of_json(_pure(params)),
        "weights_sha256": card["weights_sha256"],
        "card_sha256": sha256_of_file(paths.MODEL_CARD),
        "evaluation_sha256": sha256_of_file(paths.EVALUATION),
    }


def _pure(params: Params) -> dict[str, Any]:
    """The params that can change a result. MLflow keeps a run's params for ever, so that a model's new name or another
    address must not be among them: the run could never be completed."""
    return {name: section for name, section in as_dict(params).items() if name not in ("register", "flow")}


def _metrics(evaluation: dict[str, Any], card: dict[str, Any]) -> dict[str, float]:
    metrics = {"best_epoch": card["best_epoch"], "temperature": card["temperature"]}
    for name, interval in evaluation["overall"].items():
        metrics |= {f"test_{name}": interval["value"]}
        metrics |= {f"test_{name}_{bound}": interval[bound] for bound in ("low", "high")}
    return metrics


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else str(value)
    return flat


def git_state() -> tuple[str, str]:
    """(commit, difference of the tracked files from it); outside a git checkout ("none", "")."""
    commit = _git("rev-parse", "HEAD")
    return (commit.strip(), _git("diff", "HEAD") or "") if commit else ("none", "")


def _git(*arguments: str) -> str | None:
    """What git prints, or None where git says no (no repository, no commit yet)."""
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=False)
    return result.stdout if result.returncode == 0 else None


def _packages() -> str:
    return "".join(sorted({f"{item.metadata['Name']}=={item.version}\n" for item in distributions()}))
