"""A release that can be trusted outside: an OpenSSF model signature with an elliptic key, no network.

    sign(folder, Path("key.pem"), evidence)     writes refit/model.sig
    check(folder, Path("key.pub"))              the evidence that was signed; an EvidenceError, if anything is different

The signature is a Sigstore bundle of an in-toto statement over all files, which `model_signing verify key` reads too.
Its predicate has the evidence beside the list of files: that format lets a signer add fields, which others ignore.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import EvidenceError, ParamsError

SIGNATURE = "refit/model.sig"
KEY_VARIABLE = "REFIT_SIGNING_KEY"


def key_of_environment() -> Path | None:
    """The private key of whoever decides; None where releases are not signed.

    Raises:
        ParamsError: the variable names no file.
    """
    name = os.environ.get(KEY_VARIABLE)
    if not name:
        return None
    if not Path(name).is_file():
        raise ParamsError(f"the environment variable {KEY_VARIABLE} names {name}, which is no file")
    return Path(name)


def sign(model: Path, key: Path, evidence: Mapping[str, Any]) -> None:
    """Sign all files below a folder.

    Args:
        key: of an elliptic curve (P-256, P-384, P-521), PEM, without a password.
        evidence: goes into what is signed.

    Raises:
        ParamsError: model-signing is not installed, or this is no such key.
    """
    hashing, payloads, signers, _ = _library()
    try:
        signer = signers.Signer(key)
    except (ValueError, TypeError) as error:
        raise ParamsError(f"{key} is no private key of an elliptic curve without a password: {error}") from None
    manifest = _hashing(hashing, model).hash(model)
    payload = payloads.Payload(manifest)
    payload.statement.pb.predicate.update({"evidence": dict(evidence)})
    signer.sign(payload).write(model / SIGNATURE)


def check(model: Path, public_key: Path) -> Mapping[str, Any]:
    """What was signed beside the files, once these are the ones that were signed, with this key.

    Raises:
        EvidenceError: there is no signature, it is of another key, or a file was added, changed or taken away.
        ParamsError: model-signing is not installed, or the key cannot be read.
    """
    hashing, _, _, verifying = _library()
    if not (model / SIGNATURE).is_file():
        raise EvidenceError("it is not signed")
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError) as error:
        raise ParamsError(f"{public_key} is no public key of an elliptic curve: {error}") from None
    try:
        verifier.set_hashing_config(_hashing(hashing, model)).verify(model, model / SIGNATURE)
    except Exception as error:  # whatever a hostile file makes a parser raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise EvidenceError(f"its signature does not hold: {reason}") from None
    return _signed(model / SIGNATURE)


def _signed(file: Path) -> Mapping[str, Any]:
    """The evidence in a signature that holds."""
    import base64
    import json

    statement = json.loads(base64.b64decode(json.loads(file.read_bytes())["dsseEnvelope"]["payload"]))
    found = statement["predicate"].get("evidence")
    if not isinstance(found, dict):
        raise EvidenceError("it was signed without evidence, not by Refit")
    return found


def _hashing(hashing: Any, model: Path) -> Any:
    # Of git's own files none is excepted: a release has none. MLflow leaves a note of its own beside a download.
    ignored = [model / SIGNATURE, model / "registered_model_meta"]
    return hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _library() -> tuple[Any, Any, Any, Any]:
    try:
        from model_signing import hashing, verifying
        from model_signing._signing import sign_ec_key, signing
    except ImportError:
        raise ParamsError(
            "model-signing is not installed: `uv pip install --python .venv 'model-signing>=1.1,<1.2'`"
        ) from None
    return hashing, signing, sign_ec_key, verifying
