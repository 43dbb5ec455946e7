"""What changed in the data since the last run: an effect, since a stage knows its inputs and no history.

before = last_run()             what the tables say that are here
...                             ingest, validate
changes = publish_changes(before, params.data.modality)      -> reports/changes.html, reports/changes.json
"""

import pandas as pd

from refit import paths
from refit.data.changes import RunChanges, judged, run_changes
from refit.files import publish_text
from refit.records import publish_record
from refit.reports.changes import changes_page, shown
from refit.reports.validation import excerpts


def last_run() -> pd.DataFrame | None:
    """What `refit.data.changes.judged` says of the tables in data/; None where there are none."""
    if not paths.MANIFEST.exists() or not paths.REJECTED.exists():
        return None
    return judged(pd.read_parquet(paths.MANIFEST), pd.read_parquet(paths.REJECTED))


def publish_changes(before: pd.DataFrame | None, modality_name: str) -> RunChanges:
    """Compare with the present tables, and write the page; one that is there stays where nothing changed since."""
    after = last_run()
    assert after is not None
    changes = run_changes(before, after)
    if not paths.CHANGES_REPORT.exists() or before is None or not before.equals(after):
        pictures = excerpts(shown(changes), modality_name)
        publish_record(paths.CHANGES, changes)
        publish_text(paths.CHANGES_REPORT, changes_page(changes, pictures))
    return changes
