"""What the champion knows, asked for before anything is trained.

    require_its_classes(params)     after the stage `validate`

The validation itself is pure and knows no registry. The card is read as data, and believed as far as the evidence of
the release names its digest.
"""

import tempfile
from pathlib import Path

from .. import paths
from ..data.classes import require_classes
from ..data.summary import ValidationSummary
from ..errors import WorkspaceError
from ..model.card import read_card
from ..params import Params, Register
from ..records import read_record
from . import local_registry, releases, tracking, versions
from .records import Version


def require_its_classes(params: Params) -> None:
    """Refuse accepted data that lacks a class of the champion which is not retired.

    Raises:
        DataError: naming these classes.
        TrackingError: the registry does not answer.
        EvidenceError: the champion's card is not the one that its evidence names.
    """
    if _is_not_made_yet(params.register):
        return
    champion = releases.champion(params.register)
    if champion is None:
        return
    accepted = read_record(paths.VALIDATION_SUMMARY, ValidationSummary, WorkspaceError).classes
    known = classes_of(champion, params.register)
    require_classes(known, accepted, params.validate.retired_labels, f"the champion {champion.uri}")


def classes_of(version: Version, settings: Register) -> tuple[str, ...]:
    """The labels that a released version can say, in the order of its outputs."""
    bundle = versions.bundle_of(version, settings)
    with tempfile.TemporaryDirectory(prefix="refit-card-") as folder:
        return read_card(versions.fetch_card(version, bundle, settings, Path(folder))).classes


def _is_not_made_yet(settings: Register) -> bool:
    """A local database is made by the first registration; asking would make it, and take seconds."""
    file = local_registry.database_of(tracking.tracking_uri(settings))
    return file is not None and not file.exists()
