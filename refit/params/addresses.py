"""Addresses in params.yaml: how they are shown, and what is said where a path is wanted."""

import re

USERINFO = re.compile(r"(?<=://)[^/?#]*@")
"""The user and password in an address."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://")
_DVC_PLUGINS = {
    **{scheme: f"dvc-{scheme}" for scheme in "azure gdrive gs hdfs oss s3 ssh webdav webhdfs".split()},
    "webdavs": "dvc-webdav",
}
"""Which package DVC needs for a scheme (as in dvc-objects' `known_implementations`); http and https are built in."""
_CHECKPOINTS = {
    "torchvision:<weights name>": r"torchvision:.",
    "https://<address>": r"https?://.",
    "s3://<bucket>/<key>": r"s3://[^/]+/.",
    "gs://<bucket>/<key>": r"gs://[^/]+/.",
    "hf:<owner>/<repo>[@<revision>]/<file>": r"hf:[\w.-]+/[\w.-]+(@[^/@]+)?/[^/@]+(/[^/]+)*$",
    "models:/<name>/<version>": r"models:/[^/@]+/\d+$",
    "models:/<name>@champion": r"models:/[^/@]+@(candidate|champion|previous)$",
    "file:<path>": r"file:.",
}
"""How the address of a checkpoint is written, and the pattern of it."""
_REPOSITORY = {"hf:<owner>/<repo>[@<revision>]": r"hf:[\w.-]+/[\w.-]+(@[^/@]+)?$"}
"""Of one that is several files."""


def refusal_of_checkpoint(uri: str, takes_folders: bool = False) -> str | None:
    """Why `checkpoint.uri` cannot be this address, and what to write; None for one that can be fetched.

    Args:
        takes_folders: whether a checkpoint may be several files.
    """
    known = _CHECKPOINTS | (_REPOSITORY if takes_folders else {})
    if USERINFO.search(uri):
        return (
            "`checkpoint.uri` holds a user or password, which would be kept in git and MLflow; fetch the file yourself "
            "and name it with file:<path>"
        )
    if any(re.match(pattern, uri) for pattern in known.values()):
        return None
    meant = [form for form in known if form.partition(":")[0] == uri.partition(":")[0]]
    way_out = f"write {' or '.join(meant)}" if meant else f"allowed: {', '.join([*known, 'scratch'])}"
    return f"`checkpoint.uri` is {without_credentials(uri)!r}; {way_out}"


def moves(uri: str) -> bool:
    """Whether what lies behind a checkpoint's address may be another thing tomorrow, by the address alone."""
    return bool(re.match(r"models:/[^/]+@|hf:(?![^/]+/[^/]+@[0-9a-f]{40}(/|$))", uri))


def refusal_of_source(source: str) -> str | None:
    """Why `data.source` cannot be this address, and what to do; None for a path.

    DVC resolves `${data.source}` in dvc.yaml itself: for an address it needs a plug-in even to refuse it, and would
    then watch a place that no stage can read.
    """
    found = _SCHEME.match(source)
    if found is None:
        return None
    scheme = found[1].lower()
    if scheme == "file":
        return f"`data.source` is {source!r}; write the path alone"
    path = f"data/{source.rstrip('/').rsplit('/', 1)[-1]}"
    plugin = _DVC_PLUGINS.get(scheme)
    install = f"`uv pip install --python .venv {plugin}`, then " if plugin else ""
    return (
        f"`data.source` is the address {source}, and must be a path: {install}`dvc import-url {source} {path}`, "
        f"and set `data.source: {path}`"
    )


def without_credentials(url: str) -> str:
    """An address as it may be shown and stored: no user, no password, and no query, where signed addresses hide both.

    What is no URL (file:…, torchvision:…, a path) stays as it is.
    """
    return re.sub(r"[?#].*$", "", USERINFO.sub("", url)) if "://" in url else url
