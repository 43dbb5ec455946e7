"""Rules, their policies, and what they find.

    rules = rules_of(params)                                   by name, with the policy of params.yaml
    found("duplicate", reasons, twins)                         what one rule found in rows of the manifest
    of_set("too_few_examples", "too few train images in …")      or in the set as a whole

A rule is a field of `Rules` in `refit/params/sections.py`, or in the settings of a modality: its name, its policy, and
what it finds, in words. It finds examples: by a check of a column (`row_schema`, and `rules.py` of the modality), or as
a function on the set (`set_rules.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors
from pydantic import TypeAdapter

from ..params import SPLITS, Params, Policy, Validate

FINDINGS = {"row": "int64", "rule": "str", "reason": "str", "twin": "str"}
"""Columns of findings: the row of the manifest by its index, -1 for the whole set; the rule; what is wrong, in words;
and the path of the other example, where there is one."""

RETIRED = "retired"
"""The rule of `validate.retired_labels`: always rejects."""

EXCUSED = "excused"
"""Of what cannot be used, in place of its rule, where data/exceptions.csv knows it."""

_HARMLESS = {RETIRED, EXCUSED, "duplicate", "leak", "near_duplicate"}
"""Rules whose rejects say nothing against the source: they do not count for `validate.max_rejected_fraction`."""


@dataclass(frozen=True)
class Rule:
    """One rule as params.yaml has it."""

    name: str
    policy: Policy
    about: str  # what it finds

    @property
    def rejects(self) -> bool:
        """Whether an example that breaks it is left out."""
        return self.policy in ("error", "reject")

    @property
    def is_harmless(self) -> bool:
        """Whether its rejects say nothing against the source."""
        return self.name in _HARMLESS


def rules_of(params: Params) -> dict[str, Rule]:
    """All rules by name, in the order of their sections."""
    rules = {
        RETIRED: Rule(RETIRED, "reject", "label is one of `validate.retired_labels`"),
        EXCUSED: Rule(EXCUSED, "reject", "cannot be used, which data/exceptions.csv knows"),
    }
    for section in (params.validate.rules, params.of_modality.validate.rules):
        described = TypeAdapter(type(section)).json_schema()["properties"]
        rules |= {
            name: Rule(name, getattr(section, name), properties.get("description", name))
            for name, properties in described.items()
        }
    return rules


def found(rule: str, reasons: pd.Series, twins: pd.Series | str = "") -> pd.DataFrame:
    """Findings of one rule.

    Args:
        reasons: what is wrong, by row of the manifest.
        twins: the path of the other example, by row.
    """
    columns = {"row": reasons.index, "rule": rule, "reason": reasons, "twin": twins}
    return pd.DataFrame(columns, index=reasons.index).reset_index(drop=True).astype(FINDINGS)


def of_set(rule: str, sentences: Iterable[str]) -> pd.DataFrame:
    """Findings of one rule on the set as a whole."""
    return found(rule, pd.Series(list(sentences), dtype="str")).assign(row=-1)


def all_of(findings: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Findings of several rules as one table."""
    some = [table for table in findings if len(table)]
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame(columns=list(FINDINGS)).astype(FINDINGS)


def manifest_schema(columns: dict[str, pa.Column]) -> pa.DataFrameSchema:
    """What `ingest` promises of every example, with what its modality adds.

    A manifest that breaks it was not written by this version of Refit.
    """
    return pa.DataFrameSchema(
        {
            "path": pa.Column(str),
            "label": pa.Column(str),
            "split": pa.Column(str, pa.Check.isin(SPLITS)),
            "sha256": pa.Column(str),
            "content_sha256": pa.Column(str),
            "bytes": pa.Column("int64", pa.Check.ge(0)),
            "group": pa.Column(str),
            "signature": pa.Column(object),
            "error": pa.Column("string", nullable=True),
            "rule": pa.Column(str),
            **columns,
        },
        strict=True,
    )


def row_schema(validate: Validate, columns: dict[str, pa.Column]) -> pa.DataFrameSchema:
    """What a good row has. The `error` of a check is `<rule>: <what is wrong>`."""
    some_label = pa.Check.str_length(min_value=1, error="label: no label")
    allowed = pa.Check.isin(validate.labels or (), error="label: label is not one of `validate.labels`")
    return pa.DataFrameSchema(
        {
            "label": pa.Column(str, [some_label] if validate.labels is None else [some_label, allowed]),
            "sha256": pa.Column(str, pa.Check.str_matches(r"^[0-9a-f]{64}$", error="unreadable: no digest")),
            **columns,
        }
    )


def broken(rows: pd.DataFrame, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """What the checks of a schema find, all at once."""
    try:
        schema.validate(rows, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.dropna(subset="index")
        said = cases["check"].str.partition(": ")
        value = cases["failure_case"].map(_shown)
        reason = (said[2] + ": " + cases["column"] + " is " + value).mask(value == "", said[2])
        table = pd.DataFrame({"row": cases["index"], "rule": said[0], "reason": reason, "twin": ""})
        return table.sort_values("row", kind="stable", ignore_index=True).astype(FINDINGS)
    return all_of([])


def _shown(value: object) -> str:
    """A number of a column of integers comes as 3.0 where another column has fractions."""
    if not isinstance(value, float):
        return str(value)
    return str(int(value)) if value.is_integer() else f"{value:.6g}"
