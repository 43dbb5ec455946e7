"""Downloads that survive being interrupted.

    path = download("https://example.org/weights.pth")
    path = download("s3://bucket/weights.pth")

What has arrived stays in .refit/downloads/ and the next call goes on from there, if the server still has the
same file (RFC 9110, Range and If-Range; for a bucket its object's tag). A finished file is used again without
asking the server; whoever calls verifies its SHA-256. Addresses are shown without credentials and query.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from ..errors import DownloadError, NetworkError, WorkspaceError
from ..files import publish_json
from ..params import without_credentials
from ..progress import say
from . import buckets

DOWNLOADS = Path(".refit/downloads")
_ATTEMPTS = 3
_SECONDS_BEFORE_RETRY = 1.0
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)  # per address that the host's name stands for, and those may be eight
_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, buckets.UnreachableError)


_BY_OTHER_MEANS = "fetch the file by other means and point `checkpoint.uri` at it with file:"


def download(url: str, token: str | None = None, way_out: str = _BY_OTHER_MEANS) -> Path:
    """The file behind `url`, complete.

    Args:
        url: http, https, s3 or gs.
        token: a bearer token; only the host of `url` gets it, none that it redirects to.
        way_out: what else can be done where it cannot be had; ends the message.

    Raises:
        NetworkError: there is no way to the server.
        DownloadError: the server refuses, or the file did not arrive whole after several attempts.
        CheckpointError: a package for buckets is missing.
        WorkspaceError: .refit/downloads cannot be written.
    """
    name = Path(urlsplit(url).path).name or "download"
    folder = folder_of(url)
    target = folder / name
    if target.is_file():
        return target
    partial = folder / f".{name}.partial"
    was_reached = False
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _append(url, partial, token)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            was_reached = was_reached or not isinstance(error, _NO_CONNECTION)
            if not was_reached:
                raise NetworkError(_without_network(url, error)) from None
            if attempt == _ATTEMPTS or not _may_pass(error):
                raise DownloadError(
                    f"cannot download {without_credentials(url)}: {_reason(error)}; {_size(partial):,} bytes have "
                    f"arrived and are kept. Run again to go on, or {way_out}"
                ) from None
            say(f"download interrupted ({_reason(error)}); trying again")
            time.sleep(_SECONDS_BEFORE_RETRY * 2 ** (attempt - 1))
        else:
            partial.replace(target)
            return target
    raise AssertionError("unreachable")


def folder_of(address: str) -> Path:
    """Where what comes from an address is kept; there from now on.

    Raises:
        WorkspaceError: it cannot be made.
    """
    folder = DOWNLOADS / hashlib.sha256(address.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(f"cannot make the folder {folder}: {error.strerror}; move away what is there") from None
    return folder


def _append(url: str, partial: Path, token: str | None) -> None:
    """Go on with what has arrived, up to the end."""
    state_file = _state_file(partial)
    state = _read_state(state_file)
    have = _size(partial) if state.get("validator") else 0
    if urlsplit(url).scheme in buckets.SCHEMES:
        found = buckets.look(url)
        have = have if found.validator == state.get("validator") else 0
        publish_json(state_file, {"validator": found.validator})
        _write(found.blocks(have), partial, "ab" if have else "wb")
        return
    headers = {"Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": state["validator"]}
    with httpx.stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.unlink(missing_ok=True)
            raise httpx.RemoteProtocolError("the server has another file now; starting over")
        response.raise_for_status()
        resumes = response.status_code == httpx.codes.PARTIAL_CONTENT
        if resumes and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise httpx.RemoteProtocolError("the server sent another part of the file than was asked for")
        etag = response.headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        publish_json(state_file, {"validator": validator})
        expected = response.headers.get("Content-Length")
        received = _write(response.iter_raw(), partial, "ab" if resumes else "wb")
    if expected is not None and received != int(expected):
        raise httpx.RemoteProtocolError(f"only {received:,} of {int(expected):,} bytes arrived")


def _write(blocks: Iterator[bytes], partial: Path, mode: str) -> int:
    received, last = 0, time.monotonic()
    with partial.open(mode) as file:
        for block in blocks:
            file.write(block)
            received += len(block)
            if time.monotonic() - last > 10:
                last = time.monotonic()
                say(f"download: {file.tell():,} bytes")
        file.flush()
        os.fsync(file.fileno())
    return received


def _state_file(partial: Path) -> Path:
    return partial.with_suffix(".json")


def _read_state(state_file: Path) -> dict[str, Any]:
    try:
        return json.loads(state_file.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _may_pass(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == httpx.codes.TOO_MANY_REQUESTS
    return isinstance(error, httpx.HTTPError | buckets.BrokenOffError)


def _without_network(url: str, error: Exception) -> str:
    return (
        f"no connection to {without_credentials(url)}: {_reason(error)}. Behind a proxy, set HTTPS_PROXY in the "
        "environment; without a network, bring the file here by other means and set `checkpoint.uri: file:…` and its "
        "`checkpoint.sha256` in params.yaml"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"the server answered {error.response.status_code} {error.response.reason_phrase}".strip()
    return str(error) or type(error).__name__
