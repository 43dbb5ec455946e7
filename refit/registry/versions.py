"""Versions: found by what people call them, read with their evidence, and side by side."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..data.changes import Change, data_changes, params_changes
from ..data.profile import Profile
from ..errors import EvidenceError, TrackingError
from ..files import sha256_of_file
from ..gate import evidence
from ..gate.comparison import ClassRow
from ..gate.evidence import Bundle
from ..params import Register, load_params
from ..records import as_plain, parse_record
from . import releases, tracking
from .probe import Bare, Packed
from .records import Version
from .tracking import CANDIDATE, CHAMPION, EVIDENCE_TAG, PREVIOUS

_DATA = ("model.safetensors", "model.json")
"""Weights and card in the folder `artifacts` of a model."""
_ALIAS = re.compile(rf"^(?:models:/(?P<name>[^/@]+)@)?(?P<alias>{CANDIDATE}|{CHAMPION}|{PREVIOUS})$")
_ADDRESS = re.compile(r"^(?:models:/)?(?P<name>[^/]+)/(?P<number>\d+)$")


def find(asked: str, settings: Register) -> Version:
    """The version that somebody means: a candidate's number, an alias, or an address.

    Raises:
        TrackingError: there is none.
    """
    if asked.isdigit():
        return tracking.version(settings, tracking.candidates(settings), asked)
    if named := _ALIAS.match(asked):
        alias = named["alias"]
        model = tracking.model_of_alias(settings, alias)
        found = releases.champion(settings) if alias == CHAMPION else tracking.version_with_alias(settings, alias)
        if found is None or named["name"] not in (None, model):
            raise TrackingError(f"{named['name'] or model} has no {alias} yet")
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
    name = "evidence" if _is_release(version, settings) else digest
    data = tracking.read_file(settings, f"{_place(version, settings)}/{name}.json")
    return evidence.opened(data, digest, version.uri)


def images_of(version: Version, bundle: Bundle, settings: Register) -> pd.DataFrame:
    """path, sha256, label, split of the images that a version was made of.

    Raises:
        EvidenceError: the list is not the one that the evidence names.
    """
    name = "images.csv" if "images.csv" in bundle.files else "examples.csv"  # as it was called before there were texts
    data = tracking.read_file(settings, f"{_place(version, settings)}/{name}")
    evidence.require_same_files({name: evidence.digest_of(data)}, {name: bundle.files.get(name, "")}, version.uri)
    return pd.read_csv(io.BytesIO(data), dtype=str)


def profile_of(version: Version, bundle: Bundle, settings: Register) -> Profile | None:
    """What a version was trained on, in short; None for a version of before there were profiles.

    Raises:
        EvidenceError: it is not the one that the evidence names.
    """
    name = "profile.json"
    if name not in bundle.files:
        return None
    data = tracking.read_file(settings, f"{_place(version, settings)}/{name}")
    evidence.require_same_files({name: evidence.digest_of(data)}, {name: bundle.files[name]}, version.uri)
    return parse_record(data, Profile, EvidenceError, f"the profile of {version.uri}")


def fetch_bare(version: Version, bundle: Bundle, settings: Register, folder: Path) -> Bare:
    """A version's weights and card, as data: the bytes that its evidence names, and nothing else that was stored.

    Raises:
        EvidenceError: they are other bytes.
    """
    return Bare(*(_fetch(name, digest, version, settings, folder) for name, digest in _data_digests(bundle).items()))


def fetch_card(version: Version, bundle: Bundle, settings: Register, folder: Path) -> Path:
    """A version's card alone, as `fetch_bare` gives it."""
    return _fetch("model.json", bundle.lineage.card_sha256, version, settings, folder)


def _fetch(name: str, digest: str, version: Version, settings: Register, folder: Path) -> Path:
    with tracking.connected(settings):
        file = tracking.download(f"{version.uri}/artifacts/{name}", folder)
    evidence.require_same_files({f"artifacts/{name}": sha256_of_file(file)}, {f"artifacts/{name}": digest}, version.uri)
    return file


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


def _is_release(version: Version, settings: Register) -> bool:
    """A candidate that somebody copied in MLflow's pages ("Promote model") is none: its files are the candidate's."""
    return version.model_name != tracking.candidates(settings) and releases.CANDIDATE_TAG in version.tags


def _place(version: Version, settings: Register) -> str:
    """Where the evidence lies: with the run of a candidate, in the files of a release."""
    return f"{version.uri}/refit" if _is_release(version, settings) else f"runs:/{version.run_id}/evidence"


@dataclass(frozen=True)
class Difference:
    """What is different from the first of two versions to the second."""

    first: str  # its address
    second: str
    commits: tuple[str, str]
    same: tuple[str, ...]  # names of digests that are equal
    params: Mapping[str, tuple[object, object]]
    data: Mapping[str, Change]
    environment: Mapping[str, tuple[object, object]]
    metrics: Mapping[str, tuple[float | None, float]]
    per_class: Mapping[str, tuple[float | None, float | None]]  # recall


def difference(first: str, second: str) -> Difference:
    """Compare two versions by their evidence.

    Raises:
        TrackingError, EvidenceError: one of them cannot be read.
    """
    settings = load_params().register
    found = [find(asked, settings) for asked in (first, second)]
    old, new = (bundle_of(version, settings) for version in found)
    images = [images_of(version, bundle, settings) for version, bundle in zip(found, (old, new), strict=True)]
    digests = [as_plain(bundle.lineage) for bundle in (old, new)]
    return Difference(
        first=found[0].uri,
        second=found[1].uri,
        commits=(old.git.commit, new.git.commit),
        same=tuple(sorted(name for name, digest in digests[1].items() if digests[0][name] == digest)),
        params=params_changes(old.params, new.params),
        data=data_changes(*images),
        environment=params_changes(as_plain(old.environment), as_plain(new.environment)),
        metrics={
            name: (old.metrics[name].value if name in old.metrics else None, measure.value)
            for name, measure in new.metrics.items()
        },
        per_class=_recalls(old.comparison.per_class, new.comparison.per_class),
    )


def _recalls(old: Mapping[str, ClassRow], new: Mapping[str, ClassRow]) -> dict[str, tuple[float | None, float | None]]:
    def recall(rows: Mapping[str, ClassRow], label: str) -> float | None:
        row = rows.get(label)
        return row.right / row.images if row and row.images else None

    return {label: (recall(old, label), recall(new, label)) for label in sorted(old.keys() | new.keys())}
