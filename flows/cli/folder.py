"""`refit validate PATH`: the rules on any folder, table or archive, with no project around it."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import pandas as pd

from refit import modality
from refit.data.changes import judged, run_changes
from refit.data.sources import list_examples
from refit.data.summary import ValidationSummary
from refit.errors import WorkspaceError
from refit.files import publish_table, publish_text
from refit.params import load_params
from refit.paths import CHANGES, CHANGES_REPORT
from refit.records import publish_record
from refit.reports.changes import changes_markdown, changes_page, shown
from refit.reports.validation import excerpts, validation_markdown
from tasks.ingest import build_manifest
from tasks.validate import judge, report

_SHIPPED_PARAMS = Path(__file__).parents[2] / "params.yaml"


def validate_folder(source: Path, project: Path | None, reports: Path) -> ValidationSummary:
    """Judge a source by the rules of a project, or by those that Refit is shipped with.

    Args:
        source: as `data.source` may be.
        project: whose params.yaml is used; None: none.
        reports: the folder for validation.html, validation.json, validation.md, findings.json,
            rejected.csv, examples.csv, and changes.html and .json: what is different from the examples.csv of before.

    Raises:
        DataError: the source is missing or cannot be read.
        WorkspaceError: the reports cannot be written.
    """
    file = project / "params.yaml" if project else _SHIPPED_PARAMS
    if not file.is_file():
        raise WorkspaceError("no params.yaml with the rules: run this in a project, or use --project")
    params = load_params(file)
    source, reports = source.absolute(), reports.absolute()
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="refit-validate-") as scratch:
        os.chdir(scratch)  # what is remembered between runs belongs to a project
        try:
            with contextlib.redirect_stdout(sys.stderr):
                column = modality.files(params.data.modality).COLUMN
                examples = list_examples(source, Path(scratch, "unpacked"), column)
                manifest = build_manifest(examples, params.data)
            manifest["path"] = manifest["path"].str.removeprefix(f"{source.as_posix()}/")
            verdict = judge(manifest, params)
            summary = report(manifest, verdict, params, reports, roots=(source, Path()))
            images = judged(manifest, verdict.rejected)
            before = _listed(reports / "examples.csv", images)
            changes = run_changes(before, images)
            pictures = excerpts(shown(changes), params.data.modality, roots=(source, Path()))
        finally:
            os.chdir(here)
    if before is None or not before.equals(images):  # else what changed last is more to the point
        publish_record(reports / CHANGES.name, changes)
        publish_text(reports / CHANGES_REPORT.name, changes_page(changes, pictures))
    publish_text(
        reports / "validation.md", f"{validation_markdown(summary)}\n\n{changes_markdown(changes, source.name)}\n"
    )
    publish_table(reports / "examples.csv", images)
    publish_table(reports / "rejected.csv", verdict.rejected[["path", "label", "split", "rule", "reason", "twin"]])
    return summary


def _listed(file: Path, like: pd.DataFrame) -> pd.DataFrame | None:
    """The images of the last time, if there was one."""
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False)[list(like.columns)].astype(like.dtypes)
    except (OSError, ValueError, KeyError):  # none, or not ours
        return None
