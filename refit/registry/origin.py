"""Where a candidate came from, for the person who decides: commit, changes beside it, who and when, curves, links.

    found = origin_of(version, bundle, settings)

Commit, changes and curves are those that the evidence names, byte for byte. Who and when, the branch and the flow run
are what the pipeline's account wrote down.
"""

import csv
import datetime
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import EvidenceError, TrackingError
from ..files import sha256_of_json
from ..gate import evidence
from ..gate.evidence import Bundle, GitState
from ..params import Register
from . import tracking
from .provenance import doubt_of
from .records import Version

WHO_TAG = "refit.trained_by"
FLOW_RUN_LINK_TAG = "prefect.flow_run_url"
_CURVES = "history.csv"


@dataclass(frozen=True)
class ChangedFile:
    """A file that was not as the commit has it."""

    path: str
    added: int  # lines
    removed: int


@dataclass(frozen=True)
class Origin:
    """What a reviewer must know of a candidate beside how good it is."""

    uri: str
    number: str
    evidence: str  # digest
    git: GitState
    branch: str | None
    patch: str  # from the commit to the code that ran
    who: str
    when: str  # UTC, to the minute
    curves: tuple[Mapping[str, float], ...]  # by epoch; none of a version from before they were evidence
    links: Mapping[str, str]  # pages of MLflow and Prefect

    @property
    def changed(self) -> tuple[ChangedFile, ...]:
        """What the commit does not hold."""
        return changed_files(self.patch)

    @property
    def doubt(self) -> str | None:
        """Why the commit does not say which code it was; None: it does."""
        return doubt_of(self.git)


def origin_of(version: Version, bundle: Bundle, settings: Register) -> Origin:
    """Gather it.

    Raises:
        EvidenceError: changes or curves are not those that the evidence names.
        TrackingError: MLflow does not answer.
    """
    tags = version.tags
    who, when = _run_by(settings, version.run_id)
    links = dict(tracking.links(settings, version))
    if tags.get(FLOW_RUN_LINK_TAG, "").startswith(("http://", "https://")):
        links["flow run"] = tags[FLOW_RUN_LINK_TAG]
    return Origin(
        uri=version.uri,
        number=version.version,
        evidence=tags[tracking.EVIDENCE_TAG],
        git=bundle.git,
        branch=tags.get(tracking.BRANCH_TAG),
        patch=patch_of(version, bundle, settings),
        who=tags.get(WHO_TAG, who),
        when=f"{datetime.datetime.fromtimestamp(when / 1000, datetime.UTC):%Y-%m-%d %H:%M} UTC",
        curves=_curves(version, bundle, settings),
        links=links,
    )


def patch_of(version: Version, bundle: Bundle, settings: Register) -> str:
    """What was not committed when a version was trained, as a patch; it lies with the run.

    Raises:
        EvidenceError: it is not the one that the evidence names.
    """
    if bundle.git.dirty is not True:
        return ""
    try:
        patch = tracking.read_file(settings, f"runs:/{version.run_id}/{tracking.PATCH_FILE}").decode()
    except TrackingError as error:
        if error.retryable:
            raise
        raise EvidenceError(f"the uncommitted changes of {version.uri} are not with its run any more") from None
    if sha256_of_json(patch) != bundle.git.diff_sha256:
        raise EvidenceError(f"the uncommitted changes of {version.uri} are not those that the evidence names")
    return patch


def changed_files(patch: str) -> tuple[ChangedFile, ...]:
    """The files that a patch of git changes, with how many lines."""
    found = []
    for part in re.split(r"^(?=diff --git )", patch, flags=re.MULTILINE):
        if named := re.match(r"diff --git (?:a/|\"a/)?(.+?)\"? (?:b/|\"b/)", part):
            lines = part.partition("\n@@")[2].splitlines()
            found.append(
                ChangedFile(
                    named[1], sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)
                )
            )
    return tuple(found)


def _curves(version: Version, bundle: Bundle, settings: Register) -> tuple[Mapping[str, float], ...]:
    if _CURVES not in bundle.files:
        return ()
    data = tracking.read_file(settings, f"runs:/{version.run_id}/evidence/{_CURVES}")
    evidence.require_same_files(
        {_CURVES: evidence.digest_of(data)}, {_CURVES: bundle.files[_CURVES]}, f"the run of {version.uri}"
    )
    return tuple(
        {name: float(value) for name, value in row.items() if value}
        for row in csv.DictReader(io.StringIO(data.decode()))
    )


def _run_by(settings: Register, run_id: str) -> tuple[str, int]:
    """Who began a run, as its client said, and when: milliseconds since 1970."""
    with tracking.connected(settings) as client:
        found = client.get_run(run_id).info
        return str(found.user_id or "?"), int(found.start_time)
