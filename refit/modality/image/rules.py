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
        "frames": pa.Column("int64", pa.Check.ge(0)),
        "brightness": pa.Column("float64"),
        "contrast": pa.Column("float64"),
        "sharpness": pa.Column("float64"),
        "warnings": pa.Column(str),
    }


def row_columns(settings: Validate) -> dict[str, pa.Column]:
    """The rules of the section `image.validate` of params.yaml."""
    low, high = settings.min_side, settings.max_side
    side = pa.Check.in_range(low, high, error=f"side: side outside {low} to {high} pixels")
    modes = pa.Check.isin(settings.modes, error="mode: pixel format is not one of `image.validate.modes`")
    dark, bright = settings.min_brightness, settings.max_brightness
    return {
        "frames": pa.Column("int64", pa.Check.le(1, error="frames: more than one picture, of which the first is used")),
        "contrast": pa.Column("float64", pa.Check.ge(settings.min_contrast, error="blank: hardly anything to see")),
        "brightness": pa.Column(
            "float64", [pa.Check.ge(dark, error="dark: very dark"), pa.Check.le(bright, error="bright: very bright")]
        ),
        "sharpness": pa.Column("float64", pa.Check.ge(settings.min_sharpness, error="blurred: hardly any edges")),
        "warnings": pa.Column(str, pa.Check.eq("", error="decoder: read with a warning")),
        "width": pa.Column("int64", side),
        "height": pa.Column("int64", side),
        "mode": pa.Column(str, modes),
    }
