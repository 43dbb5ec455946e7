"""What MLflow, its database or the way to it raises, as errors of Refit: where, why, and no password."""

import os
from urllib.parse import unquote, urlsplit

from ..errors import TrackingError, TrackingUnavailableError
from ..params import without_credentials


def translated(error: Exception, uri: str, way_out: str) -> TrackingError:
    """What went wrong at an address; `way_out` ends the message where trying again may help."""
    from mlflow.exceptions import MlflowException

    address, reason = without_credentials(uri), _without_password(_reason(error), uri)
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        is_refusal = status < 500 and error.error_code != "REQUEST_LIMIT_EXCEEDED"
    else:  # files travel past MLflow's own error handling
        status = getattr(getattr(error, "response", None), "status_code", 500)
        is_refusal = isinstance(error, FileNotFoundError) or status < 500
    if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
        return TrackingError(f"MLflow at {address} does not have it: {reason}")
    if is_refusal:
        return TrackingError(f"MLflow at {address} refused: {reason}{_who_helps(status, reason)}")
    return TrackingUnavailableError(f"MLflow at {address} failed: {reason}. {way_out}")


def _who_helps(status: int, reason: str) -> str:
    """The command that gives a missing right. MLflow wraps some refusals in another error: then the words tell."""
    account = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if status == 401 or "Unauthorized" in reason:
        return "; log in with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if status == 403 or "PERMISSION_DENIED" in reason:
        return (
            f"; {account or 'this account'} has no right to it: an administrator gives it by `refit access grant "
            f"--pipeline {account or 'NAME'}` (who trains) or `--reviewer {account or 'NAME'}` (who decides)"
        )
    return ""


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "Max retries exceeded" in text:
        return f"no connection ({text.rsplit('Caused by ', 1)[-1].strip('()')})"
    return text if len(text) <= 300 else f"{text[:300]}…"


def _without_password(text: str, uri: str) -> str:
    parts = urlsplit(uri)
    secrets = {part for raw in (parts.password, parts.query) if raw for part in (raw, unquote(raw))}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "…")
    return text
