"""What a file of numbers is."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..contract import Inspection

COLUMN = None
KIND = "Text"
COUNT = 4


@dataclass(frozen=True, kw_only=True)
class Inspected(Inspection):
    """With what only numbers have."""

    largest: float = 0.0
    sign: str = ""


INSPECTED = Inspected


def decided_by() -> dict[str, str | None]:
    """Nothing but this file."""
    return {}


def inspect(path: Path) -> Inspected:
    """Read one file."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        numbers = read(content)
    except ValueError as error:
        return Inspected(sha256=sha256, bytes=len(content), error=str(error), rule="unreadable")
    said = hashlib.sha256(repr(numbers).encode()).hexdigest()
    return Inspected(
        sha256=sha256,
        bytes=len(content),
        content_sha256=said,
        largest=max(map(abs, numbers)),
        sign="plus" if sum(numbers) > 0 else "minus",
    )


def excerpt(content: bytes) -> str:
    """Its numbers."""
    return " ".join(f"{number:g}" for number in read(content))


def read(content: bytes) -> list[float]:
    """The numbers in a file; ValueError for anything else."""
    try:
        numbers = [float(word) for word in content.decode().split()]
    except ValueError:
        raise ValueError("not numbers") from None
    if len(numbers) != COUNT:
        raise ValueError(f"{len(numbers)} numbers instead of {COUNT}")
    return numbers
