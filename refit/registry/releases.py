"""The reviewers' half of the registry: released versions, the aliases `champion` and `previous`, decisions.

A release is no pointer to the candidate: its weights and card are uploaded again, under the reviewer's account, with
the reviewer's own code around them, into an experiment that only reviewers write. So nobody who may overwrite the
candidate's files can change what is served, and no code of the pipeline's account runs with a reviewer's rights.
"""

import dataclasses
import datetime
import getpass
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EvidenceError
from ..files import publish_json, publish_text, sha256_of_file
from ..gate import evidence, history
from ..gate.evidence import Bundle
from ..gate.golden import Golden
from ..gate.history import Entry, Move, Timeline
from ..model.card import Card, read_card
from ..params import Register
from . import documents, signing
from .experiments import experiment_id
from .packaging import packed
from .probe import Bare
from .records import CONTENT_TAG, Version
from .registered_models import create_model, registered_model
from .tracking import (
    CHAMPION,
    EVIDENCE_TAG,
    PREVIOUS,
    as_version,
    connected,
    download,
    stored_files,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE_TAG = "refit.candidate"
FILES_TAG = "refit.files_sha256"
"""Of a release: the digest of its list of files, `refit/files.json`, which no account but reviewers' can change."""
LIST_OF_FILES = "refit/files.json"


def experiment_name(settings: Register) -> str:
    """The experiment that holds the released files."""
    return f"{settings.model_name}-releases"


def actor(settings: Register) -> str:
    """Who decides: the account on the server, which has checked its password; else the user of this machine."""
    name = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if name and tracking_uri(settings).startswith("http"):
        return name
    return f"{getpass.getuser()} (not verified)"


def fetch_evidence(settings: Register, candidate: Version, bundle: Bundle, folder: Path) -> Path:
    """The evidence of a candidate, in a folder: the bundle and the files that it names.

    Raises:
        EvidenceError: a file is not the one that the bundle names.
    """
    folder.mkdir()
    digest = candidate.tags[EVIDENCE_TAG]
    with connected(settings):
        for name in bundle.files:
            place = "reports" if name == "comparison.html" else "evidence"
            download(f"runs:/{candidate.run_id}/{place}/{name}", folder)
        evidence.require_same_files(evidence.digests(folder), bundle.files, f"the run of {candidate.uri}")
        download(f"runs:/{candidate.run_id}/evidence/{digest}.json", folder).rename(folder / "evidence.json")
    evidence.require_same_files({"evidence": sha256_of_file(folder / "evidence.json")}, {"evidence": digest}, "it")
    return folder


def pack(data: Bare, beside: Path, golden: Golden, target: Path) -> Path:
    """A release: verified weights and card, the code that is installed here, the evidence beside them in `refit/`.

    What the pipeline's account stored as code is not in it, and is never run.
    The environment variable REFIT_SIGNING_KEY may name a key to sign with.
    """
    import mlflow

    with packed(data.weights, data.card, golden.images[0].content) as arguments:
        mlflow.pyfunc.save_model(str(target), **arguments)
    shutil.copytree(beside, target / "refit")
    content = (beside / "evidence.json").read_bytes()
    _describe(target, evidence.opened(content, evidence.digest_of(content), "the release"), read_card(data.card))
    evidence.strip(target)
    publish_json(target / LIST_OF_FILES, evidence.digests(target))
    if key := signing.key_of_environment():
        signing.sign(target, key, json.loads(content))
    return target


def _describe(target: Path, bundle: Bundle, card: Card) -> None:
    """What others read of a release: a model card, and a bill of materials."""
    requirements = (target / "requirements.txt").read_text().splitlines()
    publish_text(target / "README.md", documents.model_card(bundle, card))
    publish_json(target / "bom.json", documents.bill_of_materials(bundle, card, requirements))


def publish(settings: Register, candidate: Version, bundle: Bundle, model: Path) -> Version:
    """Upload a verified model as a version of the reviewers' model; the same evidence gives the same version.

    Raises:
        EvidenceError: what came back from the server is not what was sent.
    """
    sent = evidence.digests(model)
    with connected(settings) as client:
        found = _released(client, settings, candidate)
        if found is None:
            create_model(client, settings.model_name)
            uri = _upload(client, settings, candidate, model)
            evidence.require_same_files(stored_files(uri), sent, uri)
            tags = {**_facts(bundle, model), FILES_TAG: sent[LIST_OF_FILES]}
            found = _create_version(client, settings, candidate, uri, tags)
        else:
            # Packed by an earlier attempt: MLflow's own notes hold its time, so only the rest is the same.
            stored = {path: digest for path, digest in stored_files(found.source).items() if is_data(path)}
            sent = {path: digest for path, digest in sent.items() if is_data(path)}
            evidence.require_same_files(stored, sent, f"{settings.model_name} {found.version}")
        return as_version(client.get_model_version(settings.model_name, found.version))


def is_data(path: str) -> bool:
    """Whether it is the same in each packing of a candidate."""
    return path.startswith(("artifacts/", "refit/")) and path not in (LIST_OF_FILES, signing.SIGNATURE)


def _facts(bundle: Bundle, model: Path) -> dict[str, str]:
    """What a release says of itself, by its evidence and its files: the pipeline may write the candidate's tags."""
    return {
        CONTENT_TAG: bundle.content_digest,
        "refit.weights_sha256": bundle.lineage.weights_sha256,
        "refit.weights_bytes": str((model / "artifacts" / "model.safetensors").stat().st_size),
        "refit.git_commit": bundle.git.commit,
        "refit.dvc_lock_sha256": bundle.dvc_lock_sha256,
    }


def _released(client: "MlflowClient", settings: Register, candidate: Version) -> "ModelVersion | None":
    asked = f"name='{settings.model_name}' and tags.`{CONTENT_TAG}`='{candidate.tags[CONTENT_TAG]}'"
    found = [
        version
        for version in client.search_model_versions(asked)
        if version.status == "READY"
        and version.tags.get(EVIDENCE_TAG) == candidate.tags[EVIDENCE_TAG]
        and CANDIDATE_TAG in version.tags  # else somebody copied it past Refit
    ]
    return min(found, key=lambda version: int(version.version), default=None)


def _upload(client: "MlflowClient", settings: Register, candidate: Version, model: Path) -> str:
    logged = client.create_logged_model(
        experiment_id(client, experiment_name(settings)),
        name=f"{settings.model_name}-release",
        tags={CANDIDATE_TAG: candidate.uri, EVIDENCE_TAG: candidate.tags[EVIDENCE_TAG]},
    )
    client.log_model_artifacts(logged.model_id, str(model))
    client.finalize_logged_model(logged.model_id, "READY")
    return f"models:/{logged.model_id}"


def _create_version(
    client: "MlflowClient", settings: Register, candidate: Version, uri: str, tags: Mapping[str, str]
) -> "ModelVersion":
    described = client.get_model_version(candidate.model_name, candidate.version).description
    return client.create_model_version(
        settings.model_name,
        source=uri,
        model_id=uri.removeprefix("models:/"),
        run_id=candidate.run_id,
        tags={**tags, EVIDENCE_TAG: candidate.tags[EVIDENCE_TAG], CANDIDATE_TAG: candidate.uri},
        description=described,
    )


# Aliases


def champion(settings: Register) -> Version | None:
    """The version that is served; None only where the registry and the decisions agree that there is none.

    Raises:
        EvidenceError: the registry names none, but there was one, and no reviewer withdrew it.
    """
    with connected(settings) as client:
        model = registered_model(client, settings.model_name)
        if model is None:  # made before the experiment of its files, so never without it
            was = client.get_experiment_by_name(experiment_name(settings))
            trace = None if was is None else "its releases are there, so the model itself was deleted or renamed"
        elif CHAMPION in model.aliases:
            return as_version(client.get_model_version(model.name, str(model.aliases[CHAMPION])))
        else:
            previous = model.aliases.get(PREVIOUS)
            trace = history.trace_of_a_champion(history.from_tags(model.tags), previous and str(previous))
    if trace is not None:
        raise EvidenceError(
            f"the registry names no champion of {settings.model_name}, but there was one: {trace}. See "
            "`refit history`; "
            "a reviewer then makes a release the champion (`refit rollback --to N`), or says that there is to be none "
            "(`refit withdraw`)"
        )
    return None


def set_alias(settings: Register, alias: str, number: str) -> None:
    """Point an alias of the reviewers' model at a version."""
    with connected(settings) as client:
        client.set_registered_model_alias(settings.model_name, alias, number)


def released_version(settings: Register, number: str) -> Version:
    """One released version.

    Raises:
        TrackingError: there is none of that number.
        EvidenceError: it was not made by Refit, so nothing is known about it.
    """
    with connected(settings) as client:
        found = as_version(client.get_model_version(settings.model_name, number))
    if EVIDENCE_TAG not in found.tags:
        raise EvidenceError(f"{found.uri} has no evidence; it was not promoted by Refit")
    if CANDIDATE_TAG not in found.tags:
        raise EvidenceError(
            f"{found.uri} was copied past Refit and is no release: its files are the candidate's, which the pipeline's "
            "account may overwrite; promote the candidate instead"
        )
    return found


# Decisions


def timeline(settings: Register) -> Timeline:
    """Decisions and moves made past Refit, oldest first, and the present champion: all of one moment."""
    with connected(settings) as client:
        model = registered_model(client, settings.model_name)
        aliases = {} if model is None else {alias: str(number) for alias, number in model.aliases.items()}
        number = aliases.get(CHAMPION)
        champion = None if number is None else as_version(client.get_model_version(settings.model_name, number))
    decisions = [] if model is None else history.from_tags(model.tags)
    return Timeline(
        model_name=settings.model_name,
        champion=None if champion is None else champion.uri,
        previous=f"models:/{settings.model_name}/{aliases[PREVIOUS]}" if PREVIOUS in aliases else None,
        entries=_with_copy_named(history.timeline(decisions, number), champion),
    )


def _with_copy_named(entries: tuple[Entry, ...], champion: Version | None) -> tuple[Entry, ...]:
    """The last move past Refit, if it was to a version that is no release."""
    if champion is None or CANDIDATE_TAG in champion.tags or not entries or entries[-1].move.kind != "outside":
        return entries
    copied = f"{entries[-1].note}; {champion.uri} is a copy made in MLflow, whose files the pipeline may overwrite"
    return (*entries[:-1], dataclasses.replace(entries[-1], note=copied))


def moves(settings: Register) -> list[Move]:
    """All decisions, oldest first; none where the reviewers' model does not exist yet."""
    with connected(settings) as client:
        model = registered_model(client, settings.model_name)
        return [] if model is None else history.from_tags(model.tags)


def write_move(settings: Register, move: Move) -> None:
    """Write a decision, or its new state."""
    with connected(settings) as client:
        create_model(client, settings.model_name)
        client.set_registered_model_tag(settings.model_name, *history.as_tag(move))


def new_move(settings: Register, kind: str, reason: str, from_version: str | None) -> Move:
    """A decision that begins now, by whoever asks for it; what it is about is for the caller to add."""
    move = Move(
        id="",
        kind=kind,
        state="begun",
        who=actor(settings),
        when="",
        reason=reason.strip(),
        from_version=from_version,
        to_version=None,
        candidate=None,
        evidence="",
        verdict="",
    )
    return stamped(move)


def stamped(move: Move) -> Move:
    """A decision, as one that begins now."""
    now = datetime.datetime.now(datetime.UTC)
    return dataclasses.replace(move, id=f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}", when=now.isoformat())
