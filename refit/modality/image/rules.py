"""Which pictures are good enough to train on."""

import pandas as pd
import pandera.pandas as pa

from .settings import Validate

_ENDINGS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "jif"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "BMP": ("bmp", "dib"),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "AVIF": ("avif",),
    "HEIF": ("heic", "heif", "hif"),
}
_FORMAT_OF = {ending: name for name, endings in _ENDINGS.items() for ending in endings}


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
        "profile": pa.Column(str),
        "warnings": pa.Column(str),
    }


def derived(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with `aspect` (long side by short side) and `ending` (that of the name, if it is another format's)."""
    sides = rows[["width", "height"]]
    ending = rows["path"].str.rsplit("/", n=1).str[-1].str.lower().str.extract(r"\.(\w+)$", expand=False).fillna("")
    named = ending.map(_FORMAT_OF)
    is_other = named.notna() & (named != rows["format"])
    said = "." + ending + " of a " + rows["format"]
    return rows.assign(aspect=sides.max(axis=1) / sides.min(axis=1), ending=said.where(is_other, ""))


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
        "profile": pa.Column(str, pa.Check.eq("", error="profile: colours in another space are read as sRGB")),
        "ending": pa.Column(str, pa.Check.eq("", error="ending: named as another format")),
        "aspect": pa.Column("float64", pa.Check.le(settings.max_aspect, error="aspect: very long and narrow")),
        "width": pa.Column("int64", side),
        "height": pa.Column("int64", side),
        "mode": pa.Column(str, modes),
    }
