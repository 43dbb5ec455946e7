"""The effect `register`: puts what the stages made into MLflow, as a run and a candidate version.

    registration = find_registered() or register_candidate()

Not a DVC stage: it changes a server, not a file. Repeating it is harmless, and completes what was interrupted.
The content digest covers everything that the version stands for (data, split, base checkpoint, parameters,
weights, card and measures); who asked, when and from which commit are tags beside it. There is no version without
the evidence: a comparison with the present champion, and a model that came back from MLflow as it went there.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pandas as pd

import refit
from refit import paths
from refit.data.changes import flat
from refit.errors import EvidenceError, WorkspaceError
from refit.files import sha256_of_file, sha256_of_json
from refit.gate import evidence
from refit.params import Params, as_dict, load_params, public, pure, training_digest
from refit.registry import probe, tracking
from refit.registry.provenance import Provenance, git_state
from refit.registry.records import CONTENT_TAG, Record, Version
from refit.reports.evaluation import evaluation_markdown
from refit.reports.validation import validation_markdown

_COMPARISON = (paths.COMPARISON, paths.COMPARISON_REPORT, paths.COMPARISON_SUMMARY)
_REPORTS = (paths.VALIDATION_REPORT, paths.VALIDATION_SUMMARY, paths.EVALUATION_REPORT)
_PLOTS = (paths.HISTORY, paths.CONFUSION_PLOT, paths.RELIABILITY_PLOT)
_EVIDENCE = {"golden.json": paths.GOLDEN, "images.csv": paths.IMAGES, "comparison.html": paths.COMPARISON_REPORT}
"""What goes with the bundle, and later into the release."""
_LINEAGE_TAGS = frozenset(
    f"refit.{name}"
    for name in (
        "data_digest split_digest base_sha256 params_digest weights_sha256 card_sha256 evaluation_sha256".split()
    )
)
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
        EvidenceError: the comparison is missing or about something else, or the model came back changed.
        TrackingError: MLflow cannot be reached, or refuses; repeat the call later.
    """
    params = load_params()
    _require_outputs()
    _require_one_run(params)
    comparison = _comparison(params)
    state = git_state()
    record = _record(params, comparison, state, extra_tags or {})

    def prove(model_uri: str, model_files: Mapping[str, str]) -> bytes:
        return _prove(params, record, comparison, state, model_uri, model_files)

    version, is_new = tracking.register(record, params.register, prove)
    return Registration(version, is_new, tracking.links(params.register, version))


def find_registered() -> Registration | None:
    """The registration of what is in the workspace, if there is nothing to add: the candidate has this content, the
    comparison here is the one it carries, with the present champion, and it names this commit if that is a clean one.

    Raises:
        WorkspaceError: an output of a stage is missing, or belongs to another run than the others.
        TrackingError: MLflow cannot be reached, or refuses.
    """
    params = load_params()
    _require_outputs()
    _require_one_run(params)
    found = tracking.version_with_alias(params.register, tracking.CANDIDATE)
    if found is None:
        return None
    try:
        comparison = _comparison(params)
    except EvidenceError:
        return None
    card, validation = json.loads(paths.MODEL_CARD.read_text()), json.loads(paths.VALIDATION_SUMMARY.read_text())
    state = git_state()
    expected = {
        CONTENT_TAG: sha256_of_json(_lineage(params, card, validation)),
        tracking.COMPARISON_TAG: _comparison_digest(comparison),
        **(_commit_tags(state) if state.is_exact else {}),
    }
    if any(found.tags.get(name) != value for name, value in expected.items()):
        return None
    return Registration(found, False, tracking.links(params.register, found))


def _compared_files(card: dict[str, Any]) -> dict[str, str]:
    """What names the candidate in its comparison."""
    return {"weights_sha256": card["weights_sha256"], "evaluation_sha256": sha256_of_file(paths.EVALUATION)}


def _comparison_digest(comparison: dict[str, Any]) -> str:
    return sha256_of_json({name: comparison[name] for name in ("champion", "gate", "candidate")})


def _commit_tags(state: Provenance) -> dict[str, str]:
    return {**state.tags, "refit.dvc_lock_sha256": sha256_of_file(paths.LOCK)}


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


def _comparison(params: Params) -> dict[str, Any]:
    """The comparison, if it is about this candidate and the present champion."""
    files = (*_COMPARISON, *_EVIDENCE.values())
    missing = [path.as_posix() for path in files if not path.exists()]
    if missing:
        raise EvidenceError(f"no registration without evidence: {missing[0]} is missing; run `refit compare`")
    comparison = json.loads(paths.COMPARISON.read_text())
    card = json.loads(paths.MODEL_CARD.read_text())
    if comparison["candidate"] != _compared_files(card) or comparison["gate"] != as_dict(params.gate):
        raise EvidenceError(f"{paths.COMPARISON} is about another model or other settings; run `refit compare`")
    champion = tracking.version_with_alias(params.register, tracking.CHAMPION)
    if comparison["champion"] != (None if champion is None else champion.identity):
        raise EvidenceError("the champion changed since the comparison; run `refit compare`")
    return comparison


def _prove(
    params: Params,
    record: Record,
    comparison: dict[str, Any],
    state: Provenance,
    model_uri: str,
    model_files: Mapping[str, str],
) -> bytes:
    """The bundle, once the model has come back whole and says what it said."""
    _require_what_was_sent(model_uri, model_files)
    checked = probe.serving_check(
        model_uri,
        json.loads(paths.GOLDEN.read_text()),
        tracking.environment(params.register),
        params.finetune.num_threads,
        params.gate.max_probability_error,
    )
    content = {
        "format": evidence.FORMAT,
        "model_name": params.register.model_name,
        "content_digest": record.content_digest,
        "lineage": {name.removeprefix("refit."): record.tags[name] for name in record.tags if name in _LINEAGE_TAGS},
        "git": state.evidence,
        "dvc_lock_sha256": sha256_of_file(paths.LOCK),
        "environment": json.loads(paths.MODEL_CARD.read_text())["environment"],
        "packages_sha256": sha256_of_json(_packages()),
        "seed": params.seed,
        "params": public(params),
        "metrics": json.loads(paths.EVALUATION.read_text())["overall"],
        "comparison": comparison,
        "serving_check": checked,
        "model_files": dict(model_files),
        "files": evidence.digests_of(_EVIDENCE),
    }
    evidence.require_whole(content, model_uri)
    return evidence.canonical(content)


def _require_what_was_sent(model_uri: str, model_files: Mapping[str, str]) -> None:
    package = Path(refit.__file__).parent
    sent = {
        **{f"artifacts/{path.name}": sha256_of_file(path) for path in (paths.MODEL_WEIGHTS, paths.MODEL_CARD)},
        **{
            f"code/refit/{path.relative_to(package).as_posix()}": sha256_of_file(path) for path in package.rglob("*.py")
        },
    }
    evidence.require_same_files({path: model_files.get(path, "") for path in sent}, sent, model_uri)


def _record(params: Params, comparison: dict[str, Any], state: Provenance, extra_tags: Mapping[str, str]) -> Record:
    validation = json.loads(paths.VALIDATION_SUMMARY.read_text())
    evaluation = json.loads(paths.EVALUATION.read_text())
    card = json.loads(paths.MODEL_CARD.read_text())
    accepted = pd.read_parquet(paths.ACCEPTED)
    history = pd.read_csv(paths.HISTORY)
    lineage = _lineage(params, card, validation)
    tags = {
        **{f"refit.{name}": value for name, value in lineage.items()},
        **_commit_tags(state),
        "refit.weights_bytes": str(paths.MODEL_WEIGHTS.stat().st_size),
        "refit.python": platform.python_version(),
        **{f"refit.environment.{name}": str(value) for name, value in card["environment"].items()},
        **extra_tags,
    }
    return Record(
        name=f"{params.register.model_name} {state.commit[:7]} {card['weights_sha256'][:6]}",
        content_digest=sha256_of_json(lineage),
        params={name: _as_text(value) for name, value in flat(public(params)).items() if not name.startswith("gate.")},
        tags=tags,
        history=[{str(name): value for name, value in row.items()} for row in history.to_dict("records")],
        metrics=_metrics(evaluation, card),
        files={
            "reports": (*_REPORTS, paths.EVALUATION, *_COMPARISON),
            "evidence": tuple(_EVIDENCE.values()),
            "plots": _PLOTS,
            "lineage": _LINEAGE,
        },
        texts={"lineage/packages.txt": _packages(), **({"lineage/git.diff": state.diff} if state.diff else {})},
        weights=paths.MODEL_WEIGHTS,
        card=paths.MODEL_CARD,
        example_image=Path(accepted["path"].iloc[0]).read_bytes(),
        dataset={"name": params.data.source, "digest": validation["data_digest"], "source": params.data.source},
        description="\n\n".join(
            (paths.COMPARISON_SUMMARY.read_text(), evaluation_markdown(evaluation), validation_markdown(validation))
        ),
        comparison_digest=_comparison_digest(comparison),
        verdict={"refit.verdict": comparison["verdict"], "refit.reasons": "; ".join(comparison["reasons"])[:4000]},
    )


def _lineage(params: Params, card: dict[str, Any], validation: dict[str, Any]) -> dict[str, str]:
    return {
        "data_digest": validation["data_digest"],
        "split_digest": validation["split_digest"],
        "base_sha256": card["lineage"]["base_sha256"],
        "params_digest": sha256_of_json(pure(params)),
        "weights_sha256": card["weights_sha256"],
        "card_sha256": sha256_of_file(paths.MODEL_CARD),
        "evaluation_sha256": sha256_of_file(paths.EVALUATION),
    }


def _metrics(evaluation: dict[str, Any], card: dict[str, Any]) -> dict[str, float]:
    metrics = {"best_epoch": card["best_epoch"], "temperature": card["temperature"]}
    for name, interval in evaluation["overall"].items():
        metrics |= {f"test_{name}": interval["value"]}
        metrics |= {f"test_{name}_{bound}": interval[bound] for bound in ("low", "high")}
    return metrics


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def _packages() -> str:
    return "".join(sorted({f"{item.metadata['Name']}=={item.version}\n" for item in distributions()}))
