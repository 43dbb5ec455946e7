"""The evidence bundle: one canonical JSON in which everything is named that a decision rests on.

data = canonical(bundle)         its bytes; their SHA-256 is its name
bundle = opened(data, digest)    the other way, refusing anything else
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import EvidenceError
from ..files import sha256_of_file
from ..model.card import Environment
from ..records import as_plain, parse_record
from ..scoring.intervals import Interval
from .comparison import Comparison

FORMAT: Literal[1] = 1
_NOTE = "registered_model_meta"


@dataclass(frozen=True)
class GitState:
    """Which code it was."""

    commit: str  # 40 hexadecimal digits, `none` or `unknown`
    dirty: bool | Literal["unknown"]
    diff_sha256: str  # of the difference from the commit, which lies with the run


@dataclass(frozen=True)
class Digests:
    """Of what the version stands for."""

    data_digest: str
    split_digest: str
    base_sha256: str
    params_digest: str
    weights_sha256: str
    card_sha256: str
    evaluation_sha256: str


@dataclass(frozen=True)
class ServingCheck:
    """How the model answered for the golden examples once it had come back from MLflow. Other answers leave none."""

    num_images: int
    labels_equal: Literal[True]
    largest_probability_error: float
    milliseconds_per_image: float
    seconds_to_load: float
    peak_megabytes: float
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Bundle:
    """All of it. A key that is missing makes it no evidence."""

    format: Literal[1]
    model_name: str
    content_digest: str
    lineage: Digests
    git: GitState
    dvc_lock_sha256: str
    environment: Environment
    packages_sha256: str
    seed: int
    params: Mapping[str, object]  # without secrets
    metrics: Mapping[str, Interval]
    comparison: Comparison
    serving_check: ServingCheck
    model_files: Mapping[str, str]  # SHA-256 by path, as they came back from MLflow
    files: Mapping[str, str]  # of the run: golden examples, list of examples, reviewer's page


def canonical(bundle: Bundle) -> bytes:
    """The one spelling of a bundle."""
    return (json.dumps(as_plain(bundle), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest_of(data: bytes) -> str:
    """A bundle's name."""
    return hashlib.sha256(data).hexdigest()


def opened(data: bytes, digest: str, where: str) -> Bundle:
    """The content of a bundle.

    Raises:
        EvidenceError: these are not the bytes of that name, or something is missing, or of another format.
    """
    if digest_of(data) != digest:
        raise EvidenceError(
            f"the evidence of {where} is not what it was: its digest is {digest_of(data)[:12]}, {digest[:12]} was "
            "recorded; somebody changed it, so nothing can be decided on it"
        )
    bundle = parse_record(data, Bundle, EvidenceError, f"the evidence of {where}")
    empty = [name for name in ("model_files", "files") if not getattr(bundle, name)]
    if empty:
        raise EvidenceError(f"the evidence of {where} lacks {', '.join(empty)}")
    return bundle


def require_same_files(found: Mapping[str, str], recorded: Mapping[str, str], where: str) -> None:
    """Refuse files that are not byte for byte those of the bundle.

    Raises:
        EvidenceError: naming the first few that differ.
    """
    different = sorted(path for path in found.keys() | recorded.keys() if found.get(path) != recorded.get(path))
    if different:
        raise EvidenceError(
            f"{where} does not hold the bytes that the evidence names: {', '.join(different[:3])}"
            f"{f' and {len(different) - 3} more' if len(different) > 3 else ''}"
        )


def require_as_validated(example: Path, sha256: str) -> None:
    """Refuse an example whose file is not what it was when it was validated.

    Raises:
        EvidenceError: it is gone, or was changed.
    """
    if not example.is_file() or sha256_of_file(example) != sha256:
        raise EvidenceError(
            f"{example} was changed after it was validated, or is gone: bring it back (`dvc pull`), or run "
            "`dvc repro -f ingest`"
        )


def digests_of(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 by name."""
    return {name: sha256_of_file(path) for name, path in files.items()}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 by path of each file below a folder, but for MLflow's note beside a download.

    Byte code is among them: Python runs it in place of the code that it lies beside.
    """
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in _files(folder) if path.name != _NOTE}


def strip(folder: Path) -> None:
    """Delete what is not the model's: MLflow's note beside a download, and byte code that a loading left behind."""
    for path in _files(folder):
        if path.name == _NOTE or is_byte_code(path):
            path.unlink()


def is_byte_code(path: Path) -> bool:
    """Whether a file is where Python keeps what it compiled."""
    return path.parent.name == "__pycache__"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
