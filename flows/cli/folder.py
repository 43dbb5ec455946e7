"""`refit validate PATH`: the rules on any folder, table or archive, with no project around it."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from refit import modality
from refit.data.sources import list_examples
from refit.data.summary import ValidationSummary
from refit.errors import WorkspaceError
from refit.files import publish_table, publish_text
from refit.params import load_params
from refit.records import publish_record
from refit.reports.validation import validation_markdown, validation_page
from tasks.ingest import build_manifest
from tasks.validate import judge, summarize

_SHIPPED_PARAMS = Path(__file__).parents[2] / "params.yaml"


def validate_folder(source: Path, project: Path | None, reports: Path) -> ValidationSummary:
    """Judge a source by the rules of a project, or by those that Refit is shipped with.

    Args:
        source: as `data.source` may be.
        project: whose params.yaml is used; None: none.
        reports: the folder for validation.html, validation.json, validation.md and rejected.csv.

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
        finally:
            os.chdir(here)
    summary = summarize(manifest, verdict, params)
    publish_record(reports / "validation.json", summary)
    publish_text(reports / "validation.html", validation_page(summary, verdict.rejected))
    publish_text(reports / "validation.md", validation_markdown(summary) + "\n")
    publish_table(reports / "rejected.csv", verdict.rejected[["path", "label", "split", "rule", "reason", "twin"]])
    return summary
