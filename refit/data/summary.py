"""The validation in numbers: reports/validation.json as a record."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ValidationSummary:
    """What was found, and the digests that name the data and its split from here on."""

    passed: bool
    failures: tuple[str, ...]  # of set-level rules
    num_examples: int
    num_accepted: int
    num_rejected: int
    rejected_by_reason: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]  # accepted examples by label and split
    data_digest: str
    split_digest: str
