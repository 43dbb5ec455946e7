"""The validation in numbers: reports/validation.json as a record."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RuleSummary:
    """What one rule found."""

    policy: str  # error, reject or warn
    about: str
    count: int  # of findings
    examples: tuple[str, ...] = ()  # the first few, in words


@dataclass(frozen=True)
class ValidationSummary:
    """What was found, and the digests that name the data and its split from here on."""

    passed: bool
    failures: tuple[str, ...]  # why the run stops, by rules of the policy `error`
    num_examples: int
    num_accepted: int
    num_rejected: int
    rules: Mapping[str, RuleSummary]  # those that found something, the worst policy and then the most frequent first
    classes: Mapping[str, Mapping[str, int]]  # accepted examples by label and split
    data_digest: str
    split_digest: str
    num_warned: int = 0  # accepted examples with a warning
