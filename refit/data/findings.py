"""What the rules found, one by one: reports/findings.json, in the order in which a person wants to read it.

findings = listed(verdict.findings, manifest)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from ..files import publish_json
from .rules import Rule
from .summary import RuleSummary

_MOST_NAMED = 5
_SEVERITY = ("error", "reject", "warn")


@dataclass(frozen=True)
class Finding:
    """One finding: of an example, or (path and what follows are empty) of the set."""

    rule: str
    policy: str
    reason: str
    path: str
    label: str
    split: str
    sha256: str  # empty: of a file that could not be read
    twin: str  # the path of the other example, where there is one


def listed(findings: pd.DataFrame, manifest: pd.DataFrame) -> list[Finding]:
    """Findings by rule, the worst policy and then the most frequent rule first; of one rule, by path.

    Args:
        findings: row, rule, policy, reason and twin; -1 is the row of the set as a whole.
        manifest: path, label, split and sha256 of each row.
    """
    of_row = manifest[["path", "label", "split", "sha256"]].reindex(findings["row"]).fillna("").reset_index(drop=True)
    table = findings[["rule", "policy", "reason", "twin"]].reset_index(drop=True).join(of_row).fillna("")
    severity, count = table["policy"].map(_SEVERITY.index), -table.groupby("rule")["rule"].transform("size")
    order = ["severity", "count", "rule", "path", "reason"]
    table = table.assign(severity=severity, count=count).sort_values(order, kind="stable")
    columns = ["rule", "policy", "reason", "path", "label", "split", "sha256", "twin"]
    return [Finding(*row) for row in table[columns].itertuples(index=False)]


def publish_findings(target: Path, findings: Sequence[Finding]) -> None:
    """Write all of them as a list in JSON."""
    publish_json(target, [asdict(finding) for finding in findings])


def by_rule(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """In their order."""
    return {name: list(group) for name, group in groupby(findings, key=lambda finding: finding.rule)}


def summarized(findings: Sequence[Finding], rules: Mapping[str, Rule]) -> dict[str, RuleSummary]:
    """What each rule found, in the order of the findings."""
    return {
        name: RuleSummary(rules[name].policy, rules[name].about, len(group), tuple(map(_said, group[:_MOST_NAMED])))
        for name, group in by_rule(findings).items()
    }


def _said(finding: Finding) -> str:
    return f"{finding.path}: {finding.reason}" if finding.path else finding.reason
