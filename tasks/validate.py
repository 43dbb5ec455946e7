"""Stage `validate`: decides which examples are good enough, and whether the set is.

    python -m tasks.validate      data/manifest.parquet -> data/accepted.parquet, data/rejected.parquet,
                                  reports/validation.json, reports/validation.html

Row-level rules reject single examples, each with a reason. Set-level rules stop the run: the report is then
written, `data/accepted.parquet` is not. `rejected.parquet` has the manifest's columns and `reason`.
"""

from dataclasses import dataclass

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from refit import modality, paths
from refit.data.classes import without_images
from refit.data.digests import data_digest, split_digest
from refit.data.summary import ValidationSummary
from refit.errors import DataError, run_stage
from refit.files import publish_table, publish_text
from refit.params import SPLITS, Params, Validate, load_params
from refit.progress import say
from refit.records import publish_record
from refit.reports.validation import validation_page

Columns = dict[str, pa.Column]
_RETIRED = "label is one of `validate.retired_labels`"
_DIGITS_OF_SHA256 = pa.Check.str_matches(r"^[0-9a-f]{64}$")

_MANIFEST = {
    "path": pa.Column(str),
    "label": pa.Column(str),
    "split": pa.Column(str, pa.Check.isin(SPLITS)),
    "sha256": pa.Column(str),
    "content_sha256": pa.Column(str),
    "bytes": pa.Column("int64", pa.Check.ge(0)),
    "group": pa.Column(str),
    "error": pa.Column("string", nullable=True),
}
"""What `ingest` promises of every example, beside what its modality adds; a manifest that breaks it was not written by
this version of Refit."""


@dataclass(frozen=True)
class Verdict:
    """What the rules say: the two tables, and the set-level failures (none: the set is good)."""

    accepted: pd.DataFrame
    rejected: pd.DataFrame
    failures: tuple[str, ...]


def main() -> None:
    params = load_params()
    paths.ACCEPTED.unlink(missing_ok=True)
    manifest = pd.read_parquet(paths.MANIFEST)
    verdict = judge(manifest, params)
    summary = summarize(manifest, verdict)
    publish_table(paths.REJECTED, verdict.rejected)
    publish_record(paths.VALIDATION_SUMMARY, summary)
    publish_text(paths.VALIDATION_REPORT, validation_page(summary, verdict.rejected))
    if verdict.failures:
        raise DataError(
            "the data is not good enough to train on: "
            + "; ".join(verdict.failures)
            + f". Every rejected image and its reason: {paths.VALIDATION_REPORT}"
        )
    publish_table(paths.ACCEPTED, verdict.accepted)
    say(f"{len(verdict.accepted):,} accepted, {len(verdict.rejected):,} rejected: {paths.VALIDATION_REPORT}")


def judge(manifest: pd.DataFrame, params: Params) -> Verdict:
    """Apply all rules.

    Raises:
        DataError: the manifest itself is not what this version of Refit writes.
    """
    rules, modality_rules = params.validate, modality.rules(params.data.modality)
    _check_manifest(manifest, modality_rules.manifest_columns())
    reasons = manifest["error"].mask(manifest["label"].isin(rules.retired_labels), _RETIRED)
    usable = manifest[reasons.isna()]
    reasons.update(_broken_row_rules(usable, rules, modality_rules.row_columns(params.of_modality.validate)))
    reasons.update(_repeated(manifest[reasons.isna()]))
    accepted = manifest[reasons.isna()].drop(columns="error").reset_index(drop=True)
    rejected = manifest[reasons.notna()].drop(columns="error").assign(reason=reasons.dropna()).reset_index(drop=True)
    failures = (
        *_too_many_rejected(len(manifest), rejected, rules),
        *without_images(manifest.assign(reason=reasons), rules),
        *_two_labels(usable),
        *_shared_across_splits(usable),
        *_too_few(accepted, rules),
    )
    return Verdict(accepted, rejected, failures)


def summarize(manifest: pd.DataFrame, verdict: Verdict) -> ValidationSummary:
    """The validation in numbers, with the digests that name the data and its split from here on."""
    accepted = verdict.accepted
    counts = (
        accepted.groupby(["label", "split"]).size().unstack(fill_value=0).reindex(columns=list(SPLITS), fill_value=0)
    )
    reasons = verdict.rejected["reason"].str.replace(r"[:;].*$", "", regex=True).value_counts()
    return ValidationSummary(
        passed=not verdict.failures,
        failures=verdict.failures,
        num_examples=len(manifest),
        num_accepted=len(accepted),
        num_rejected=len(verdict.rejected),
        rejected_by_reason={str(reason): int(count) for reason, count in reasons.items()},
        classes={str(label): {split: int(row[split]) for split in SPLITS} for label, row in counts.iterrows()},
        data_digest=data_digest(accepted),
        split_digest=split_digest(accepted),
    )


def _check_manifest(manifest: pd.DataFrame, columns: Columns) -> None:
    try:
        pa.DataFrameSchema(_MANIFEST | columns, strict=True).validate(manifest, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.head(5)
        problems = "; ".join(f"column {row.column or row.failure_case}: {row.check}" for row in cases.itertuples())
        raise DataError(
            f"{paths.MANIFEST} is not what this version writes ({problems}); run `dvc repro -f ingest`"
        ) from None


def _row_schema(rules: Validate, columns: Columns) -> pa.DataFrameSchema:
    labels = (
        [] if rules.labels is None else [pa.Check.isin(rules.labels, error="label is not one of `validate.labels`")]
    )
    return pa.DataFrameSchema(
        {
            "label": pa.Column(str, [pa.Check.str_length(min_value=1, error="no label"), *labels]),
            "sha256": pa.Column(str, _DIGITS_OF_SHA256),
            **columns,
        }
    )


def _broken_row_rules(usable: pd.DataFrame, rules: Validate, columns: Columns) -> pd.Series:
    """Reason by row index, for the rows that break a row-level rule."""
    try:
        _row_schema(rules, columns).validate(usable, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.dropna(subset="index")
        texts = cases["check"] + ": " + cases["column"] + " is " + cases["failure_case"].astype(str)
        return texts.groupby(cases["index"].astype(int)).agg("; ".join).astype("string")
    return pd.Series(dtype="string")


def _repeated(usable: pd.DataFrame) -> pd.Series:
    """All but the first of equal pictures under the same label in the same split."""
    keys = ["content_sha256", "label", "split"]
    repeated = usable.duplicated(keys)
    first_path = usable.groupby(keys)["path"].transform("first")
    return ("duplicate: the same picture as " + first_path)[repeated].astype("string")


def _too_many_rejected(num_examples: int, rejected: pd.DataFrame, rules: Validate) -> list[str]:
    # A duplicate is harmless once dropped; only what is wrong with the images counts against the set.
    expected = rejected[rejected["reason"] != _RETIRED]
    bad = expected[~expected["reason"].str.startswith("duplicate:")]
    num_expected = num_examples - (len(rejected) - len(expected))
    if len(bad) <= rules.max_rejected_fraction * num_expected:
        return []
    return [
        f"{len(bad):,} of {num_expected:,} images are rejected ({len(bad) / num_expected:.1%}, "
        f"`validate.max_rejected_fraction` allows {rules.max_rejected_fraction:.1%}); "
        f"first: {bad['path'].iloc[0]} ({bad['reason'].iloc[0]})"
    ]


def _two_labels(usable: pd.DataFrame) -> list[str]:
    return _contradicting(usable, "label", "the same picture has two labels")


def _shared_across_splits(usable: pd.DataFrame) -> list[str]:
    return _contradicting(usable, "split", "the same picture is in two splits")


def _contradicting(usable: pd.DataFrame, column: str, complaint: str) -> list[str]:
    differing = usable.groupby("content_sha256")[column].transform("nunique") > 1
    clashes = usable[differing].sort_values(["content_sha256", "path"])
    if clashes.empty:
        return []
    first = clashes[clashes["content_sha256"] == clashes["content_sha256"].iloc[0]].drop_duplicates(column)
    example = " and ".join(f"{row.path} ({getattr(row, column)})" for row in first.head(2).itertuples())
    return [f"{complaint} ({clashes['content_sha256'].nunique():,} pictures), for instance {example}"]


def _too_few(accepted: pd.DataFrame, rules: Validate) -> list[str]:
    labels = sorted(set(accepted["label"]))
    if len(labels) < 2:
        return [f"at least two classes are needed, found {len(labels)} ({', '.join(labels) or 'none'})"]
    counts = accepted.groupby(["label", "split"]).size()
    problems = []
    for split in SPLITS:
        needed = getattr(rules.min_images_per_class, split)
        short = {label: int(counts.get((label, split), 0)) for label in labels}
        short = {label: count for label, count in short.items() if count < needed}
        if short:
            shown = ", ".join(f"{label}: {count}" for label, count in list(short.items())[:8])
            problems.append(
                f"too few {split} images in {len(short)} of {len(labels)} classes ({shown}; "
                f"`validate.min_images_per_class.{split}` asks for {needed})"
            )
    if problems:
        problems[-1] += (
            "; add images, set other shares in `data.test_fraction` and `data.val_fraction`, or give the splits "
            "yourself (train, val and test folders, or a column `split` in a table)"
        )
    return problems


if __name__ == "__main__":
    run_stage(main)
