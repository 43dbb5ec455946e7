"""Which numbers are good enough."""

import pandas as pd
import pandera.pandas as pa

from .settings import Validate


def manifest_columns() -> dict[str, pa.Column]:
    """Beside what is said of every file."""
    return {"largest": pa.Column("float64"), "sign": pa.Column(str)}


def derived(rows: pd.DataFrame) -> pd.DataFrame:
    """Nothing follows from several columns."""
    return rows


def row_columns(settings: Validate) -> dict[str, pa.Column]:
    """By the section `numbers.validate`."""
    limit = settings.largest
    return {"largest": pa.Column("float64", pa.Check.le(limit, error=f"largest: a number beyond {limit:g}"))}
