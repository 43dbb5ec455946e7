"""Whether each release is exactly what was promoted: every file, read back from the server.

[found] = verify(settings)      found.faults is empty, or names what was added, changed, taken away
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EvidenceError
from ..files import sha256_of_file
from ..gate import evidence
from ..params import Register
from . import signing
from .releases import FILES_TAG, LIST_OF_FILES, experiment_name, is_data
from .tracking import EVIDENCE_TAG, connected, download

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Found:
    """A released version as it lies on the server, against what was promoted."""

    uri: str
    num_files: int
    faults: tuple[str, ...]  # empty: it is exactly what was promoted
    is_covered: bool  # whether all files are; else (a release of before this was recorded) its weights, card, evidence


def verify(settings: Register, public_key: Path | None = None) -> list[Found]:
    """Read every file of every released version, and compare it with what was promoted; oldest first.

    Args:
        public_key: of whoever signs; each release must be signed with it.

    Raises:
        TrackingError: the server does not answer, or lets this account not read.
    """
    with connected(settings) as client:
        home = client.get_experiment_by_name(experiment_name(settings))
        listed = client.search_model_versions(f"name='{settings.model_name}'")
        ordered = sorted(listed, key=lambda one: int(one.version))
        return [_verified(client, version, home, public_key) for version in ordered]


def verify_folder(model: Path, public_key: Path) -> Found:
    """A release that was brought here, without any server: its files are those that were signed."""
    return Found(str(model), len(evidence.digests(model)), _faults_of_signature(model, public_key), is_covered=True)


def _faults_of_signature(model: Path, public_key: Path) -> tuple[str, ...]:
    try:
        signing.check(model, public_key)
    except EvidenceError as error:
        return (str(error),)
    return ()


def _verified(
    client: "MlflowClient", version: "ModelVersion", home: "Experiment | None", public_key: Path | None
) -> Found:
    uri = f"models:/{version.name}/{version.version}"
    if EVIDENCE_TAG not in version.tags:
        return Found(uri, 0, ("it was not promoted by Refit",), is_covered=False)
    if home is None or _experiment_of(client, version.source) != home.experiment_id:
        fault = f"its files lie outside of {version.name}-releases, where others may write"
        return Found(uri, 0, (fault,), is_covered=False)
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="refit-verify-") as temporary:
        model = download(version.source, Path(temporary))
        if public_key is not None:
            faults += _faults_of_signature(model, public_key)
        found = evidence.digests(model)
        found.pop(signing.SIGNATURE, None)  # it names the other files
        recorded = version.tags.get(FILES_TAG)
        if recorded is None:
            expected = _known_of(model, version)
            found = {path: digest for path, digest in found.items() if is_data(path)}
        elif found.get(LIST_OF_FILES) != recorded:
            faults.append(f"{LIST_OF_FILES} is not what was promoted")
            return Found(uri, len(found), tuple(faults), is_covered=True)
        else:
            expected = {**json.loads((model / LIST_OF_FILES).read_bytes()), LIST_OF_FILES: recorded}
    faults += _differences(found, expected)
    return Found(uri, len(found), tuple(faults), is_covered=recorded is not None)


def _differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    added = found.keys() - expected.keys()
    byte_code = sorted(path for path in added if evidence.is_byte_code(Path(path)))
    faults = []
    if byte_code:
        faults.append(
            f"byte code was added, which Python runs in place of the code ({len(byte_code)} files: {byte_code[0]}…); "
            "if loading the model from here left it, delete each __pycache__ and load with PYTHONDONTWRITEBYTECODE=1"
        )
    for path in sorted((found.keys() | expected.keys()) - set(byte_code)):
        if path in added:
            faults.append(f"{path} was added")
        elif path not in found:
            faults.append(f"{path} is gone")
        elif found[path] != expected[path]:
            faults.append(f"{path} was changed")
    return faults


def _experiment_of(client: "MlflowClient", source: str) -> str | None:
    """Where the files of a version lie. A copy made in MLflow's pages points to a version; other tools, to a folder."""
    model_id = source.removeprefix("models:/")
    return None if "/" in model_id else str(client.get_logged_model(model_id).experiment_id)


def _known_of(model: Path, version: "ModelVersion") -> dict[str, str]:
    """What the evidence says of the files of a release that has no list of its own."""
    name, digest = "refit/evidence.json", version.tags[EVIDENCE_TAG]
    known = {name: digest}
    if (model / name).is_file() and sha256_of_file(model / name) == digest:
        bundle = evidence.opened((model / name).read_bytes(), digest, version.name)
        known |= {f"refit/{file}": sha256 for file, sha256 in bundle.files.items()}
        known |= {path: sha256 for path, sha256 in bundle.model_files.items() if path.startswith("artifacts/")}
    return known
