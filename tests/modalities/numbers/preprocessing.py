"""What weights for numbers bring along: a scale."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """What every number is multiplied by."""

    scale: float


def read_preprocessing(plain: Mapping[str, object], where: str) -> Preprocessing:
    """It."""
    return Preprocessing(float(str(plain["scale"])))
