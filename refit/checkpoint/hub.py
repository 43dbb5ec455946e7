"""Files on a model hub that has the addresses of the Hugging Face Hub.

    file, version = fetch("hf:owner/repo/model.safetensors")            the branch `main`, whatever it is now
    file, version = fetch("hf:owner/repo@<commit>/model.safetensors")   this commit for ever
    files, version = fetch_repository("hf:owner/repo@<commit>", ["*.json", "*.safetensors"])

HF_ENDPOINT in the environment names another hub, HF_TOKEN a token, as for huggingface_hub. The token goes to the hub
alone, not to where it redirects.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from ..errors import CheckpointError
from .download import download
from .folder import matching

_HUB = "https://huggingface.co"
_COMMIT = re.compile("[0-9a-f]{40}")
_ADDRESS = re.compile(r"hf:(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")


def fetch(uri: str, is_pinned: bool) -> tuple[Path, str]:
    """The file, and its address with the commit that it is of.

    Args:
        uri: hf:<owner>/<repo>[@<revision>]/<file>
        is_pinned: whether the file's digest is known. If not, the hub must be one that shows who it is.

    Raises:
        CheckpointError: the hub is not encrypted, and nothing is pinned.
        DownloadError: as `download`.
    """
    asked, endpoint = _asked(uri, is_pinned)
    commit = asked["revision"]
    if commit is None or not _COMMIT.fullmatch(commit):
        commit, _ = _commit_and_names(uri, asked, endpoint)
    file = _download(f"{endpoint}/{asked['repo']}/resolve/{quote(commit)}/{quote(asked['file'])}")
    return file, f"hf:{asked['repo']}@{commit}/{asked['file']}"


def is_repository(uri: str) -> bool:
    """Whether an address names a whole repository, and no file in it."""
    asked = _ADDRESS.fullmatch(uri)
    return asked is not None and asked["file"] is None


def fetch_repository(uri: str, patterns: Sequence[str], is_pinned: bool) -> tuple[dict[str, Path], str]:
    """The files of a repository that a pattern fits, by name, and its address with the commit that they are of.

    Args:
        uri: hf:<owner>/<repo>[@<revision>]
        is_pinned: as for `fetch`.

    Raises:
        CheckpointError: as `fetch`, or there are no such files.
        DownloadError: as `download`.
    """
    asked, endpoint = _asked(uri, is_pinned)
    commit, names = _commit_and_names(uri, asked, endpoint)
    names = matching(names, patterns)
    if not names:
        raise CheckpointError(f"{uri} has none of the files {', '.join(patterns)}")
    address = f"{endpoint}/{asked['repo']}/resolve/{quote(commit)}"
    return {name: _download(f"{address}/{quote(name)}") for name in names}, f"hf:{asked['repo']}@{commit}"


def _commit_and_names(uri: str, asked: re.Match[str], endpoint: str) -> tuple[str, list[str]]:
    """What a branch or tag is now: its commit and the names of its files."""
    revision = quote(asked["revision"] or "main", safe="%")
    listing = _download(f"{endpoint}/api/models/{asked['repo']}/revision/{revision}")
    try:
        said = json.loads(listing.read_bytes())
        return str(said["sha"]), [str(entry["rfilename"]) for entry in said["siblings"]]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"the hub does not say what {uri} is") from None
    finally:
        listing.unlink()  # the next time it may be another


def _asked(uri: str, is_pinned: bool) -> tuple[re.Match[str], str]:
    """What an address asks for, and of which hub."""
    asked = _ADDRESS.fullmatch(uri)
    assert asked is not None, "params.yaml was checked"
    endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    if not endpoint.startswith("https://") and not is_pinned:
        raise CheckpointError(
            f"HF_ENDPOINT is {endpoint}, which is not encrypted; use https, or pin {uri} with `checkpoint.sha256`"
        )
    return asked, endpoint


def _download(address: str) -> Path:
    token = os.environ.get("HF_TOKEN")
    return download(address, token, "accept its terms on the hub" if token else _TO_LOG_IN)


_TO_LOG_IN = "put a token into the environment variable HF_TOKEN if the repository is private or has terms to accept"
