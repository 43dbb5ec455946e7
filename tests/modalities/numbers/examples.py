"""Numbers as arrays."""

import numpy as np

from .files import read
from .preprocessing import Preprocessing

INPUT = "numbers"
REQUIRES = ()
slices = None


def prepare(example: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """(4,) float32."""
    return np.array(read(example), dtype=np.float32) * np.float32(preprocessing.scale)


def parse(value: object) -> bytes:
    """A file's bytes, or its text."""
    return value if isinstance(value, bytes) else str(value).encode()


def request(content: bytes) -> str:
    """Its text."""
    return content.decode()


def picture(prepared: np.ndarray, preprocessing: Preprocessing) -> str:
    """Words."""
    return " ".join(f"{number:.2f}" for number in prepared)
