"""Stage `validate`: decides which examples are good enough, and whether the set is.

    python -m tasks.validate      data/manifest.parquet -> data/accepted.parquet, data/croissant.json,
                                  data/rejected.parquet,
                                  reports/validation.json, reports/validation.html, reports/findings.json

A rule finds examples, or something about the set; its policy in params.yaml says what follows (`refit/data/rules.py`).
With a finding of policy `error` the run stops: the report is then written, `data/accepted.parquet` and its description
for catalogues and loaders, `data/croissant.json`, are not.
`rejected.parquet` has the manifest's columns, `rule` (the first that an example breaks), `reason` (all of them) and
`twin` (the other example that it clashes with).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from refit import modality, paths
from refit.data.digests import data_digest, split_digest
from refit.data.exceptions import NONE as EXCEPTIONLESS
from refit.data.exceptions import excepted, read_exceptions, unused
from refit.data.findings import listed, publish_findings, summarized
from refit.data.rules import (
    EXCUSED,
    RETIRED,
    Rule,
    all_of,
    broken,
    found,
    manifest_schema,
    of_set,
    row_schema,
    rules_of,
)
from refit.data.set_rules import AMONG_USABLE, ON_OUTCOME
from refit.data.summary import ValidationSummary
from refit.errors import DataError, run_stage
from refit.files import publish_json, publish_table, publish_text, sha256_of_file
from refit.params import SPLITS, Params, load_params
from refit.progress import say
from refit.records import publish_record
from refit.reports.croissant import croissant
from refit.reports.validation import excerpts, on, shelves_of, validation_page


@dataclass(frozen=True)
class Verdict:
    """What the rules say: the two tables, what they found, and why the run stops (nothing: the set is good).

    `findings` has row, rule, reason, twin (`refit.data.rules.FINDINGS`) and `policy`.
    """

    accepted: pd.DataFrame
    rejected: pd.DataFrame
    findings: pd.DataFrame
    failures: tuple[str, ...]


def main() -> None:
    params = load_params()
    paths.ACCEPTED.unlink(missing_ok=True)
    manifest = pd.read_parquet(paths.MANIFEST)
    finders = [name for name in rules_of(params) if name not in ON_OUTCOME]
    verdict = judge(manifest, params, read_exceptions(paths.EXCEPTIONS, finders))
    publish_table(paths.REJECTED, verdict.rejected)
    summary = report(manifest, verdict, params, paths.VALIDATION_REPORT.parent)
    if verdict.failures:
        raise DataError(
            "the data is not good enough to train on: "
            + "; ".join(verdict.failures)
            + f". All that was found: {paths.VALIDATION_REPORT}"
        )
    publish_table(paths.ACCEPTED, verdict.accepted)
    name, kind = Path(params.data.source).name, modality.files(params.data.modality).KIND
    digest = sha256_of_file(paths.ACCEPTED)
    publish_json(paths.CROISSANT, croissant(verdict.accepted, name, kind, digest, summary))
    say(f"{len(verdict.accepted):,} accepted, {len(verdict.rejected):,} rejected: {paths.VALIDATION_REPORT}")


def judge(manifest: pd.DataFrame, params: Params, exceptions: pd.DataFrame | None = None) -> Verdict:
    """Apply all rules; findings on the list of exceptions (`refit/data/exceptions.py`) have no consequence.

    Raises:
        DataError: the manifest itself is not what this version of Refit writes.
    """
    columns = modality.rules(params.data.modality)
    _check_manifest(manifest, manifest_schema(columns.manifest_columns()))
    rules = rules_of(params)
    known = EXCEPTIONLESS if exceptions is None else exceptions
    every = _of_single_rows(manifest, params)
    findings = every[~excepted(every, manifest, known)]
    for names, find in AMONG_USABLE.items():
        if any(rules[name].policy != "off" for name in names):
            more = find(manifest[_usable(manifest, findings, rules)], params)
            every = all_of([every, more])
            findings = all_of([findings, more[~excepted(more, manifest, known)]])
    reasons = _reasons(manifest, findings, rules)
    excused = manifest["error"].notna() & reasons.isna() & ~manifest["label"].isin(params.validate.retired_labels)
    reasons = reasons.mask(excused, manifest["error"])
    first = findings.drop_duplicates("row").set_index("row").reindex(manifest.index)
    rule = first["rule"].where(reasons.notna(), "").mask(excused, EXCUSED)
    manifest = manifest.drop(columns="signature")
    judged = manifest.assign(reason=reasons, rule=rule, twin=first["twin"])
    unused_ones = of_set("unused_exception", unused(every, manifest, known))
    findings = all_of([findings, *(find(judged, params) for find in ON_OUTCOME.values()), unused_ones])
    findings["policy"] = findings["rule"].map(lambda name: rules[name].policy)
    findings = findings[findings["policy"] != "off"].reset_index(drop=True)
    is_accepted = reasons.isna()
    return Verdict(
        accepted=manifest[is_accepted].drop(columns=["error", "rule"]).reset_index(drop=True),
        rejected=judged[~is_accepted].drop(columns="error").reset_index(drop=True),
        findings=findings,
        failures=_failures(manifest, findings, rules),
    )


def _of_single_rows(manifest: pd.DataFrame, params: Params) -> pd.DataFrame:
    """What is wrong with examples by themselves: retired, unusable, or breaking rules, each all that it breaks."""
    is_retired = manifest["label"].isin(params.validate.retired_labels)
    unusable = manifest[~is_retired & manifest["error"].notna()]
    rest = manifest[~is_retired & manifest["error"].isna()]
    of_modality = modality.rules(params.data.modality)
    columns = of_modality.row_columns(params.of_modality.validate)
    return all_of(
        [
            found(RETIRED, pd.Series(rules_of(params)[RETIRED].about, index=manifest.index[is_retired], dtype="str")),
            found("unreadable", unusable["error"]).assign(rule=unusable["rule"].to_numpy()),
            broken(of_modality.derived(rest), row_schema(params.validate, columns)),
        ]
    )


def _usable(manifest: pd.DataFrame, findings: pd.DataFrame, rules: dict[str, Rule]) -> pd.Series:
    return _reasons(manifest, findings, rules).isna() & manifest["error"].isna()


def _reasons(manifest: pd.DataFrame, findings: pd.DataFrame, rules: dict[str, Rule]) -> pd.Series:
    """Why each row of the manifest is left out, every reason; null where it is not."""
    rejecting = findings[findings["rule"].map(lambda name: rules[name].rejects).astype(bool)]
    return rejecting.groupby("row")["reason"].agg("; ".join).reindex(manifest.index).astype("string")


def _failures(manifest: pd.DataFrame, findings: pd.DataFrame, rules: dict[str, Rule]) -> tuple[str, ...]:
    failures: list[str] = []
    for name, of_rule in findings[findings["policy"] == "error"].groupby("rule", sort=False):
        first = of_rule.iloc[0]
        if first["row"] < 0:
            failures.extend(of_rule["reason"])
        else:
            where = manifest.loc[first["row"], "path"]
            failures.append(
                f"{rules[str(name)].about} ({len(of_rule):,} examples), for instance {where}: {first['reason']}"
            )
    return tuple(failures)


def report(
    manifest: pd.DataFrame, verdict: Verdict, params: Params, folder: Path, roots: Sequence[Path] = (Path(),)
) -> ValidationSummary:
    """Write validation.json, validation.html and findings.json into a folder.

    Args:
        roots: where the manifest's paths count from; the first that has a file wins.
    """
    findings = listed(verdict.findings, manifest)
    summary = summarize(manifest, verdict, params)
    shelves = shelves_of(findings, manifest)
    pictures = excerpts(on(shelves), params.data.modality, roots)
    publish_findings(folder / paths.FINDINGS.name, findings)
    publish_record(folder / paths.VALIDATION_SUMMARY.name, summary)
    publish_text(folder / paths.VALIDATION_REPORT.name, validation_page(summary, shelves, pictures))
    return summary


def summarize(manifest: pd.DataFrame, verdict: Verdict, params: Params) -> ValidationSummary:
    """The validation in numbers, with the digests that name the data and its split from here on."""
    accepted = verdict.accepted
    counts = (
        accepted.groupby(["label", "split"]).size().unstack(fill_value=0).reindex(columns=list(SPLITS), fill_value=0)
    )
    warned = verdict.findings.loc[verdict.findings["policy"] == "warn", "row"]
    is_rejected = manifest["path"].isin(verdict.rejected["path"])
    return ValidationSummary(
        passed=not verdict.failures,
        failures=verdict.failures,
        num_examples=len(manifest),
        num_accepted=len(accepted),
        num_rejected=len(verdict.rejected),
        num_warned=int((manifest.index.isin(warned) & ~is_rejected).sum()),
        rules=summarized(listed(verdict.findings, manifest), rules_of(params)),
        classes={str(label): {split: int(row[split]) for split in SPLITS} for label, row in counts.iterrows()},
        data_digest=data_digest(accepted),
        split_digest=split_digest(accepted),
    )


def _check_manifest(manifest: pd.DataFrame, schema: pa.DataFrameSchema) -> None:
    try:
        schema.validate(manifest, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.head(5)
        problems = "; ".join(f"column {row.column or row.failure_case}: {row.check}" for row in cases.itertuples())
        raise DataError(
            f"{paths.MANIFEST} is not what this version writes ({problems}); run `dvc repro -f ingest`"
        ) from None


if __name__ == "__main__":
    run_stage(main)
