"""What weights for numbers bring along: a scale."""

from collections.abc import Mapping


def read_preprocessing(plain: Mapping[str, object], where: str) -> dict[str, float]:
    """It."""
    return {"scale": float(str(plain["scale"]))}
