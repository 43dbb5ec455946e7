"""Which pictures are good enough to train on."""

import pandera.pandas as pa

from .settings import Validate


def manifest_columns() -> dict[str, pa.Column]:
    """What `files.inspect` says of a picture beside what is said of every file."""
    return {
        "width": pa.Column("int64", pa.Check.ge(0)),
        "height": pa.Column("int64", pa.Check.ge(0)),
        "mode": pa.Column(str),
        "format": pa.Column(str),
        "phash": pa.Column(str),
    }


def row_columns(settings: Validate) -> dict[str, pa.Column]:
    """The rules of the section `image.validate` of params.yaml."""
    low, high = settings.min_side, settings.max_side
    side = pa.Check.in_range(low, high, error=f"side: side outside {low} to {high} pixels")
    modes = pa.Check.isin(settings.modes, error="mode: pixel format is not one of `image.validate.modes`")
    return {
        "width": pa.Column("int64", side),
        "height": pa.Column("int64", side),
        "mode": pa.Column(str, modes),
    }
