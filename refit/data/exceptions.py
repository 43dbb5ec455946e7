"""Findings that a person has looked at: data/exceptions.csv.

    sha256,rule,reason,who
    9f86d0…,blurred,fog is what this class is about,Ada

A finding that is listed has no consequence: the example is accepted, or, where it cannot be used at all, does not count
and does not stop the run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from ..errors import DataError

COLUMNS = ("sha256", "rule", "reason", "who")

DIGEST = pa.Check.str_matches(r"^[0-9a-f]{64}$", error="must be a SHA-256 of 64 hexadecimal digits")
GIVEN = pa.Check.str_length(min_value=1, error="must not be empty")

NONE = pd.DataFrame(columns=list(COLUMNS), dtype="str")


def read_exceptions(file: Path, rules: list[str]) -> pd.DataFrame:
    """The list, empty where there is no file.

    Raises:
        DataError: it cannot be read, or a row lacks something; which, and what.
    """
    known = pa.Check.isin(rules, error="is no rule of params.yaml that finds examples")
    return read_reviewed(file, {"sha256": DIGEST, "rule": known, "reason": GIVEN, "who": GIVEN}, ["sha256", "rule"])


def read_reviewed(file: Path, checks: Mapping[str, pa.Check], unique: Sequence[str]) -> pd.DataFrame:
    """A table that people keep by hand, with these columns, each of text that passes its check.

    Raises: as `read_exceptions`.
    """
    columns = list(checks)
    if not file.exists():
        return pd.DataFrame(columns=columns, dtype="str")
    schema = pa.DataFrameSchema(
        {name: pa.Column(str, check) for name, check in checks.items()}, strict=True, unique=list(unique)
    )
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        return schema.validate(table, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.head(5).itertuples()
        said = "; ".join(
            f"row {int(case.index) + 1}, {case.column}: {case.check}"
            if case.index == case.index and case.index is not None
            else f"columns must be {','.join(columns)}"
            for case in cases
        )
        raise DataError(f"{file}: {said}") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{file} cannot be read as a table: {' '.join(str(error).split())}") from None


def excepted(findings: pd.DataFrame, manifest: pd.DataFrame, exceptions: pd.DataFrame) -> pd.Series:
    """Which findings are on the list: bool by row of `findings`."""
    keys = pd.MultiIndex.from_arrays([findings["row"].map(manifest["sha256"]).fillna(""), findings["rule"]])
    listed = keys.isin(pd.MultiIndex.from_frame(exceptions[["sha256", "rule"]])) if len(exceptions) else False
    return pd.Series(listed, index=findings.index, dtype=bool)


def unused(findings: pd.DataFrame, manifest: pd.DataFrame, exceptions: pd.DataFrame) -> list[str]:
    """What is said of exceptions to which nothing corresponds any more."""
    seen = set(zip(findings["row"].map(manifest["sha256"]), findings["rule"], strict=True))
    return [
        f"data/exceptions.csv: nothing found any more for {sha256[:12]}…, {rule} ({reason}, {who}); take it out"
        for sha256, rule, reason, who in exceptions[list(COLUMNS)].to_numpy().tolist()
        if (sha256, rule) not in seen
    ]
