"""What turns a picture into the network's square, as weights bring it along. A registered model carries this."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...errors import CheckpointError
from ...records import as_record


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What turns a picture into the network's square; it travels with the weights."""

    resize_size: int  # the shorter side is scaled to this, in pixels
    crop_size: int  # then a centred square of this
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
    mean: tuple[float, float, float]  # of RGB in [0, 1]
    std: tuple[float, float, float]


def read_preprocessing(plain: Mapping[str, object], where: str) -> Preprocessing:
    """The preprocessing of a card.

    Raises:
        CheckpointError: a key is missing or of another type.
    """
    return as_record(plain, Preprocessing, CheckpointError, f"the preprocessing of {where}")
