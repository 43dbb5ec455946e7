"""The evidence bundle: one canonical JSON in which everything is named that a decision rests on.

    content = bundle(...)            as plain values, with the digests of all files beside it
    data = canonical(content)        its bytes; their SHA-256 is its name
    content = opened(data, digest)   the other way, refusing anything else

Keys: `format`, `model_name`, `content_digest`, `lineage` (data, split, base checkpoint, parameters, weights, card,
evaluation), `git`, `dvc_lock_sha256`, `environment`, `packages_sha256`, `seed`, `params`, `metrics` (with intervals),
`comparison` (the gate's verdict and all of its checks), `serving_check`, `model_files` (SHA-256 by path, as they came
back from MLflow), `files` (of the run: golden images, list of images, reviewer's page).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import EvidenceError
from ..files import sha256_of_file

FORMAT = 1
VERDICTS = ("pass", "hold", "reject")
_KEYS = frozenset(
    "format model_name content_digest lineage git dvc_lock_sha256 environment packages_sha256 seed params metrics "
    "comparison serving_check model_files files".split()
)


def canonical(content: Mapping[str, Any]) -> bytes:
    """The one spelling of a bundle."""
    return (json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest_of(data: bytes) -> str:
    """A bundle's name."""
    return hashlib.sha256(data).hexdigest()


def opened(data: bytes, digest: str, where: str) -> dict[str, Any]:
    """The content of a bundle.

    Raises:
        EvidenceError: these are not the bytes of that name, or not a bundle of this format.
    """
    if digest_of(data) != digest:
        raise EvidenceError(
            f"the evidence of {where} is not what it was: its digest is {digest_of(data)[:12]}, {digest[:12]} was "
            "recorded; somebody changed it, so nothing can be decided on it"
        )
    try:
        content = json.loads(data)
    except ValueError:
        raise EvidenceError(f"the evidence of {where} is not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EvidenceError(f"the evidence of {where} has a format that this version of Refit does not read")
    require_whole(content, where)
    return content


def require_whole(content: Mapping[str, Any], where: str) -> None:
    """Refuse a bundle in which something is missing.

    Raises:
        EvidenceError: a key is missing, or there is no verdict, no serving check or no list of files.
    """
    missing = sorted(_KEYS - content.keys())
    if not missing:
        missing = [key for key in ("comparison", "serving_check", "model_files", "files") if not content[key]]
    if missing:
        raise EvidenceError(f"the evidence of {where} lacks {', '.join(missing)}")
    if content["comparison"].get("verdict") not in VERDICTS:
        raise EvidenceError(f"the evidence of {where} has no verdict")
    if content["serving_check"].get("labels_equal") is not True:
        raise EvidenceError(f"the evidence of {where} holds no serving check that passed")


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


def digests_of(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 by name."""
    return {name: sha256_of_file(path) for name, path in files.items()}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 by path of each file below a folder, but for what is not the model's: see `strip`."""
    return {
        path.relative_to(folder).as_posix(): sha256_of_file(path) for path in _files(folder) if not _is_foreign(path)
    }


def strip(folder: Path) -> None:
    """Delete what is not the model's: MLflow's note beside a download, and byte code that a loading left behind."""
    for path in filter(_is_foreign, _files(folder)):
        path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_foreign(path: Path) -> bool:
    return path.name == "registered_model_meta" or path.parent.name == "__pycache__"
