"""Two versions side by side: settings, data, measures, classes."""

import io
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..data.changes import data_changes, params_changes
from ..errors import EvidenceError, TrackingError
from ..gate import evidence
from ..params import Register, load_params
from . import tracking
from .records import Version
from .tracking import CANDIDATE, CHAMPION, EVIDENCE_TAG, PREVIOUS

_DATA = ("model.safetensors", "model.json")
"""Weights and card in the folder `artifacts` of a model."""
_ADDRESS = re.compile(r"^(?:models:/)?(?P<name>[^/]+)/(?P<number>\d+)$")


def find(asked: str, settings: Register) -> Version:
    """The version that somebody means: a candidate's number, an alias, or an address.

    Raises:
        TrackingError: there is none.
    """
    if asked.isdigit():
        return tracking.version(settings, tracking.candidates(settings), asked)
    if asked in (CANDIDATE, CHAMPION, PREVIOUS):
        found = tracking.version_with_alias(settings, asked)
        if found is None:
            raise TrackingError(f"{tracking.model_of_alias(settings, asked)} has no {asked} yet")
        return found
    address = _ADDRESS.match(asked)
    if address is None:
        raise TrackingError(
            f"{asked!r} is no version: give a candidate's number, candidate, champion, previous or "
            "models:/<name>/<number>"
        )
    return tracking.version(settings, address["name"], address["number"])


def bundle_of(version: Version, settings: Register) -> Bundle:
    """The evidence of a version of either model, opened and verified.

    Raises:
        EvidenceError: there is none, or it was changed.
    """
    digest = version.tags.get(EVIDENCE_TAG)
    if not digest:
        raise EvidenceError(f"{version.uri} has no evidence; it was not made by Refit")
    name = digest if _is_candidate(version, settings) else "evidence"
    data = tracking.read_file(settings, f"{_place(version, settings)}/{name}.json")
    return evidence.opened(data, digest, version.uri)


def images_of(version: Version, bundle: Bundle, settings: Register) -> pd.DataFrame:
    """path, sha256, label, split of the images that a version was made of.

    Raises:
        EvidenceError: the list is not the one that the evidence names.
    """
    data = tracking.read_file(settings, f"{_place(version, settings)}/images.csv")
    evidence.require_same_files(
        {"images.csv": evidence.digest_of(data)}, {"images.csv": bundle.files.get("images.csv", "")}, version.uri
    )
    return pd.read_csv(io.BytesIO(data), dtype=str)


def fetch_bare(version: Version, bundle: Bundle, settings: Register, folder: Path) -> Bare:
    """A version's weights and card, as data: the bytes that its evidence names, and nothing else that was stored.

    Raises:
        EvidenceError: they are other bytes.
    """
    with tracking.connected(settings):
        files = [tracking.download(f"{version.uri}/artifacts/{name}", folder) for name in _DATA]
    found = dict(zip(_DATA, (sha256_of_file(file) for file in files), strict=True))
    evidence.require_same_files(found, _data_digests(bundle), version.uri)
    return Bare(*files)


def fetch_packed(version: Version, bundle: Bundle, settings: Register, folder: Path) -> Packed:
    """A version as MLflow keeps it, in a folder of this machine; weights and card are those that its evidence names.

    Raises:
        EvidenceError: they are other bytes.
    """
    with tracking.connected(settings):
        model = tracking.download(version.uri, folder)
    found = {name: sha256_of_file(model / "artifacts" / name) for name in _DATA}
    evidence.require_same_files(found, _data_digests(bundle), version.uri)
    return Packed(model)


def _data_digests(bundle: Bundle) -> dict[str, str]:
    return dict(zip(_DATA, (bundle.lineage.weights_sha256, bundle.lineage.card_sha256), strict=True))


def _is_candidate(version: Version, settings: Register) -> bool:
    return version.model_name == tracking.candidates(settings)


def _place(version: Version, settings: Register) -> str:
    """Where the evidence lies: with the run of a candidate, in the files of a release."""
    return f"runs:/{version.run_id}/evidence" if _is_candidate(version, settings) else f"{version.uri}/refit"


def difference(first: str, second: str) -> dict[str, Any]:
    """What is different from the first to the second."""
    settings = load_params().register
    versions = [find(asked, settings) for asked in (first, second)]
    old, new = (bundle_of(version, settings) for version in versions)
    images = [images_of(version, bundle, settings) for version, bundle in zip(versions, (old, new), strict=True)]
    return {
        "from": versions[0].uri,
        "to": versions[1].uri,
        "commits": [old["git"]["commit"], new["git"]["commit"]],
        "same": sorted(name for name, digest in new["lineage"].items() if old["lineage"].get(name) == digest),
        "params": params_changes(old["params"], new["params"]),
        "data": data_changes(*images),
        "environment": params_changes(old["environment"], new["environment"]),
        "metrics": {
            name: [old["metrics"].get(name, {}).get("value"), measure["value"]]
            for name, measure in new["metrics"].items()
        },
        "per_class": _per_class(old["comparison"]["per_class"], new["comparison"]["per_class"]),
    }


def _per_class(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[float | None]]:
    def recall(rows: Mapping[str, Any], label: str) -> float | None:
        row = rows.get(label)
        return row["right"] / row["images"] if row and row["images"] else None

    return {label: [recall(old, label), recall(new, label)] for label in sorted(old.keys() | new.keys())}
