"""Files on a model hub that has the addresses of the Hugging Face Hub.

    file, version = fetch("hf:owner/repo/model.safetensors")            the branch `main`, whatever it is now
    file, version = fetch("hf:owner/repo@<commit>/model.safetensors")   this commit for ever

HF_ENDPOINT in the environment names another hub, HF_TOKEN a token, as for huggingface_hub. The token goes to the hub
alone, not to where it redirects.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote

from ..errors import CheckpointError
from .download import commit_of, download

_HUB = "https://huggingface.co"
_ADDRESS = re.compile(r"hf:(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


def fetch(uri: str, is_pinned: bool) -> tuple[Path, str]:
    """The file, and its address with the commit that it is of.

    Args:
        uri: hf:<owner>/<repo>[@<revision>]/<file>
        is_pinned: whether the file's digest is known. If not, the hub must be one that shows who it is.

    Raises:
        CheckpointError: the hub is not encrypted, and nothing is pinned.
        DownloadError: as `download`.
    """
    asked = _ADDRESS.fullmatch(uri)
    assert asked is not None, "params.yaml was checked"
    endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    if not endpoint.startswith("https://") and not is_pinned:
        raise CheckpointError(
            f"HF_ENDPOINT is {endpoint}, which is not encrypted; use https, or pin {uri} with `checkpoint.sha256`"
        )
    revision = asked["revision"] or "main"
    address = f"{endpoint}/{asked['repo']}/resolve/{quote(revision, safe='%')}/{quote(asked['file'])}"
    token = os.environ.get("HF_TOKEN")
    file = download(address, token, "accept its terms on the hub" if token else _TO_LOG_IN)
    return file, f"hf:{asked['repo']}@{commit_of(file) or revision}/{asked['file']}"


_TO_LOG_IN = "put a token into the environment variable HF_TOKEN if the repository is private or has terms to accept"
