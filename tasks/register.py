"""The effect `register`: puts what the stages made into MLflow, as a run and a candidate version.

    registration = find_registered() or register_candidate()

Not a DVC stage: it changes a server, not a file. Repeating it is harmless, and completes what was interrupted.
The content digest covers everything that the version stands for (data, split, base checkpoint, parameters,
weights, card and measures); who asked, when and from which commit are tags beside it. There is no version without
the evidence: a comparison with the present champion, and a model that came back from MLflow as it went there.
"""

import dataclasses
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import pandas as pd

from refit import paths
from refit.data.changes import flat
from refit.data.summary import ValidationSummary
from refit.errors import EvidenceError, WorkspaceError
from refit.files import publish_text, sha256_of_file, sha256_of_json
from refit.gate import evidence
from refit.gate.comparison import Compared, Comparison
from refit.gate.evidence import Bundle, Digests
from refit.gate.golden import Golden
from refit.locks import one_at_a_time
from refit.model.card import Card, read_card
from refit.params import Params, as_dict, load_params, public, pure, training_digest
from refit.records import as_plain, digest_of_record, read_record
from refit.registry import packaging, releases, runs, tracking
from refit.registry.origin import WHO_TAG, origin_of
from refit.registry.probe import Packed, serving_check
from refit.registry.provenance import Provenance, git_branch, git_state
from refit.registry.records import CONTENT_TAG, Record, Version
from refit.reports.evaluation import evaluation_markdown
from refit.reports.review import review_markdown, review_page
from refit.reports.validation import validation_markdown
from refit.scoring.evaluation import Evaluation

_COMPARISON = (paths.COMPARISON, paths.COMPARISON_REPORT, paths.COMPARISON_SUMMARY)
_REPORTS = (
    paths.VALIDATION_REPORT,
    paths.VALIDATION_SUMMARY,
    paths.EVALUATION_REPORT,
    paths.LABEL_SUSPECTS_REPORT,
    paths.LABEL_SUSPECTS,
)
_PLOTS = (paths.HISTORY, paths.CONFUSION_PLOT, paths.RELIABILITY_PLOT)
_EVIDENCE = {
    "golden.json": paths.GOLDEN,
    "examples.csv": paths.EXAMPLES,
    "profile.json": paths.PROFILE,
    "comparison.html": paths.COMPARISON_REPORT,
    "history.csv": paths.HISTORY,
}
"""What goes with the bundle, and later into the release."""
_LINEAGE = (paths.PARAMS, Path("dvc.yaml"), paths.LOCK, paths.BASE_CARD, paths.MODEL_CARD)


@dataclass(frozen=True)
class _Run:
    """What the stages left, as records."""

    params: Params
    card: Card
    validation: ValidationSummary
    evaluation: Evaluation

    @property
    def digests(self) -> Digests:
        """What the version stands for."""
        return Digests(
            data_digest=self.card.lineage.data_digest,
            split_digest=self.card.lineage.split_digest,
            base_sha256=self.card.lineage.base_sha256,
            params_digest=sha256_of_json(pure(self.params)),
            weights_sha256=self.card.weights_sha256,
            card_sha256=sha256_of_file(paths.MODEL_CARD),
            evaluation_sha256=sha256_of_file(paths.EVALUATION),
        )

    @property
    def compared(self) -> Compared:
        """What names the candidate in its comparison."""
        return Compared(self.card.weights_sha256, sha256_of_file(paths.EVALUATION))


@dataclass(frozen=True)
class Registration:
    """What registering gave."""

    version: Version
    is_new: bool
    links: Mapping[str, str]


@one_at_a_time()
def register_candidate(extra_tags: Mapping[str, str] | None = None) -> Registration:
    """Register what is in the workspace.

    Raises:
        WorkspaceError: an output of a stage is missing, or belongs to another run than the others.
        EvidenceError: the comparison is missing or about something else, or the model came back changed.
        TrackingError: MLflow cannot be reached, or refuses; repeat the call later.
    """
    run = _read_run()
    settings = run.params.register
    comparison = _comparison(run)
    state = git_state()
    record = _record(run, comparison, state, extra_tags or {})

    def prove(model_uri: str, model: Path) -> bytes:
        return _prove(run, record, comparison, state, model_uri, model)

    def present(version: Version, bundle: bytes) -> tuple[str, Path]:
        return _present(run, version, bundle)

    version, is_new = tracking.register(record, settings, prove, present)
    return Registration(version, is_new, tracking.links(settings, version))


def find_registered() -> Registration | None:
    """The registration of what is in the workspace, if there is nothing to add: the candidate has this content, the
    comparison here is the one it carries, with the present champion, and it names this commit if that is a clean one.

    Raises:
        WorkspaceError: an output of a stage is missing, or belongs to another run than the others.
        TrackingError: MLflow cannot be reached, or refuses.
    """
    run = _read_run()
    settings = run.params.register
    found = tracking.version_with_alias(settings, tracking.CANDIDATE)
    if found is None:
        return None
    try:
        comparison = _comparison(run)
    except EvidenceError:
        return None
    state = git_state()
    expected = {
        CONTENT_TAG: digest_of_record(run.digests),
        tracking.COMPARISON_TAG: _comparison_digest(comparison),
        **(_commit_tags(state) if state.is_exact else {}),
    }
    if any(found.tags.get(name) != value for name, value in expected.items()):
        return None
    return Registration(found, False, tracking.links(settings, found))


def _comparison_digest(comparison: Comparison) -> str:
    plain = as_plain(comparison)
    return sha256_of_json({name: plain[name] for name in ("champion", "gate", "candidate")})


def _commit_tags(state: Provenance) -> dict[str, str]:
    return {**state.tags, "refit.dvc_lock_sha256": sha256_of_file(paths.LOCK)}


def _read_run() -> _Run:
    """What is registered together was made together: each output names what it was made from."""
    needed = (*_REPORTS, *_PLOTS, *_LINEAGE, paths.ACCEPTED, paths.MODEL_WEIGHTS, paths.EVALUATION)
    missing = [path.as_posix() for path in needed if not path.exists()]
    if missing:
        raise WorkspaceError(
            f"nothing to register yet: {', '.join(missing)} missing; run `dvc repro` or `refit retrain`"
        )
    run = _Run(
        load_params(),
        read_card(paths.MODEL_CARD),
        read_record(paths.VALIDATION_SUMMARY, ValidationSummary, WorkspaceError, "; run `dvc repro -f validate`"),
        read_record(paths.EVALUATION, Evaluation, WorkspaceError, "; run `dvc repro -f evaluate`"),
    )
    lineage, validation = run.card.lineage, run.validation
    checks = {
        f"{paths.MODEL_CARD} was trained with another seed or `finetune` section than params.yaml has now": (
            lineage.params_digest == training_digest(run.params)
        ),
        f"{paths.MODEL_CARD} was trained on other data than {paths.VALIDATION_SUMMARY} describes": (
            (lineage.data_digest, lineage.split_digest) == (validation.data_digest, validation.split_digest)
        ),
        f"{paths.EVALUATION} measures another model than {paths.MODEL_CARD} describes": (
            run.evaluation.weights_sha256 == run.card.weights_sha256
        ),
    }
    if wrong := [what for what, holds in checks.items() if not holds]:
        raise WorkspaceError(f"nothing was registered: {'; '.join(wrong)}; run `dvc repro`")
    return run


def _comparison(run: _Run) -> Comparison:
    """The comparison, if it is about this candidate and the present champion."""
    files = (*_COMPARISON, *_EVIDENCE.values())
    missing = [path.as_posix() for path in files if not path.exists()]
    if missing:
        raise EvidenceError(f"no registration without evidence: {missing[0]} is missing; run `refit compare`")
    comparison = read_record(paths.COMPARISON, Comparison, EvidenceError, "; run `refit compare`")
    if comparison.candidate != run.compared or comparison.gate != as_dict(run.params.gate):
        raise EvidenceError(f"{paths.COMPARISON} is about another model or other settings; run `refit compare`")
    champion = releases.champion(run.params.register)
    if comparison.champion != (None if champion is None else champion.identity):
        raise EvidenceError("the champion changed since the comparison; run `refit compare`")
    return comparison


def _prove(run: _Run, record: Record, comparison: Comparison, state: Provenance, model_uri: str, model: Path) -> bytes:
    """The bundle, once the model has come back whole and says what it said."""
    evidence.strip(model)  # who loads a model from a local registry leaves byte code in it
    model_files = evidence.digests(model)
    _require_what_was_sent(model_uri, model_files, model)
    params = run.params
    checked = serving_check(
        Packed(model),
        read_record(paths.GOLDEN, Golden, EvidenceError, "; run `refit compare`"),
        params.gate.max_probability_error,
        model_uri,
    )
    bundle = Bundle(
        format=evidence.FORMAT,
        model_name=params.register.model_name,
        content_digest=record.content_digest,
        lineage=run.digests,
        git=state.evidence,
        dvc_lock_sha256=sha256_of_file(paths.LOCK),
        environment=run.card.environment,
        packages_sha256=sha256_of_json(_packages()),
        seed=params.seed,
        params=public(params),
        metrics=run.evaluation.overall,
        comparison=comparison,
        serving_check=checked,
        model_files=model_files,
        files=evidence.digests_of(_EVIDENCE),
    )
    return evidence.canonical(bundle)


def _present(run: _Run, version: Version, bundle: bytes) -> tuple[str, Path]:
    """The version's description, and the reviewer's page, now that there is a number to write into them."""
    settings = run.params.register
    opened = evidence.opened(bundle, evidence.digest_of(bundle), version.uri)
    origin = origin_of(version, opened, settings)
    publish_text(paths.REVIEW, review_page(paths.COMPARISON_REPORT.read_text(encoding="utf-8"), origin))
    return "\n\n".join((review_markdown(opened.comparison, origin, settings.model_name), *_about(run))), paths.REVIEW


def _about(run: _Run) -> tuple[str, str]:
    return evaluation_markdown(run.evaluation), validation_markdown(run.validation)


def _require_what_was_sent(model_uri: str, model_files: Mapping[str, str], model: Path) -> None:
    """Weights and card are those of the workspace; the code is the one that its package's name says.

    Not today's code: the same content may have been registered with an older one, and keeps it.
    """
    sent = {f"artifacts/{path.name}": sha256_of_file(path) for path in (paths.MODEL_WEIGHTS, paths.MODEL_CARD)}
    evidence.require_same_files({path: model_files.get(path, "") for path in sent}, sent, model_uri)
    packaging.require_whole_code(model, model_uri)


def _record(run: _Run, comparison: Comparison, state: Provenance, extra_tags: Mapping[str, str]) -> Record:
    params, card, validation = run.params, run.card, run.validation
    accepted = pd.read_parquet(paths.ACCEPTED)
    example = Path(accepted["path"].iloc[0])
    evidence.require_as_validated(example, accepted["sha256"].iloc[0])
    history = pd.read_csv(paths.HISTORY)
    tags = {
        **{f"refit.{name}": value for name, value in dataclasses.asdict(run.digests).items()},
        **_commit_tags(state),
        runs.TRAINING_TAG: digest_of_record(card.lineage),
        "refit.weights_bytes": str(paths.MODEL_WEIGHTS.stat().st_size),
        "refit.python": platform.python_version(),
        WHO_TAG: releases.actor(params.register),
        **({tracking.BRANCH_TAG: branch} if (branch := git_branch()) else {}),
        **extra_tags,
    }
    return Record(
        name=f"{params.register.model_name} {state.commit[:7]} {card.weights_sha256[:6]}",
        content_digest=digest_of_record(run.digests),
        params=_params(params, card),
        tags=tags,
        history=[{str(name): value for name, value in row.items()} for row in history.to_dict("records")],
        metrics=_metrics(run.evaluation, card),
        files={
            "reports": (*_REPORTS, paths.EVALUATION, *_COMPARISON),
            "evidence": tuple(_EVIDENCE.values()),
            "plots": _PLOTS,
            "lineage": _LINEAGE,
        },
        texts={"lineage/packages.txt": _packages(), **({tracking.PATCH_FILE: state.diff} if state.diff else {})},
        weights=paths.MODEL_WEIGHTS,
        card=paths.MODEL_CARD,
        example=example.read_bytes(),
        dataset={"name": params.data.source, "digest": validation.data_digest, "source": params.data.source},
        description="\n\n".join((paths.COMPARISON_SUMMARY.read_text(), *_about(run))),
        comparison_digest=_comparison_digest(comparison),
        verdict={"refit.verdict": comparison.verdict, "refit.reasons": "; ".join(comparison.reasons)[:4000]},
    )


def _params(params: Params, card: Card) -> dict[str, str]:
    """All that was set but the gate's limits, then where it was trained."""
    chosen = {name: value for name, value in flat(public(params)).items() if not name.startswith("gate.")}
    places = {f"environment.{name}": value for name, value in as_plain(card.environment).items()}
    return {name: _as_text(value) for name, value in (chosen | places).items()}


def _metrics(evaluation: Evaluation, card: Card) -> dict[str, float]:
    metrics = {"best_epoch": float(card.best_epoch), "temperature": card.temperature}
    for name, interval in evaluation.overall.items():
        metrics[f"test_{name}"] = interval.value
        metrics |= {f"test_{name}_low": interval.low, f"test_{name}_high": interval.high}
    return metrics


def _as_text(value: object) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def _packages() -> str:
    return "".join(sorted({f"{item.metadata['Name']}=={item.version}\n" for item in distributions()}))
