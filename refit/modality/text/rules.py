"""Which texts are good enough to train on."""

import pandas as pd
import pandera.pandas as pa

from .files import LENGTHS
from .settings import Validate

_UNKNOWN = ("none", "")


def manifest_columns() -> dict[str, pa.Column]:
    """What `files.inspect` says of a text beside what is said of every file."""
    return {
        "characters": pa.Column("int64", pa.Check.ge(0)),
        "words": pa.Column("int64", pa.Check.ge(0)),
        "length": pa.Column(str, pa.Check.isin(["", *LENGTHS])),
        "script": pa.Column(str),
        "language": pa.Column(str),
        "control_characters": pa.Column("int64", pa.Check.ge(0)),
        "html_tags": pa.Column("int64", pa.Check.ge(0)),
    }


def derived(rows: pd.DataFrame) -> pd.DataFrame:
    """Nothing follows from several columns."""
    return rows


def row_columns(settings: Validate) -> dict[str, pa.Column]:
    """The rules of the section `text.validate` of params.yaml."""
    low, high, tags = settings.min_words, settings.max_words, settings.max_html_tags
    columns = {
        "words": pa.Column(
            "int64", pa.Check.in_range(low, high, error=f"length: length outside {low} to {high} words")
        ),
        "control_characters": pa.Column(
            "int64", pa.Check.le(settings.max_control_characters, error="control_characters: control characters")
        ),
    }
    columns["script"] = pa.Column(str, pa.Check(_is_usual, error="script: other letters than most texts have"))
    columns["language"] = pa.Column(str, pa.Check(_is_usual, error="language: another language than most texts"))
    if tags is not None:
        columns["html_tags"] = pa.Column("int64", pa.Check.le(tags, error="html: remains of HTML"))
    return columns


def _is_usual(values: pd.Series) -> pd.Series:
    """Whether each text has the script, or language, of most; one of which nothing is known has no other."""
    counts = values[~values.isin(_UNKNOWN)].value_counts()
    return values.isin([*_UNKNOWN, *counts.index[:1]])
