"""The texts of a benchmark: tables of text and label, some rows of each, drawn by their content.

lay_out(Path("sst2"), Path("texts"), num_texts=1000)      # train.csv, val.csv, test.csv
"""

import hashlib
from pathlib import Path

import pandas as pd

from refit.errors import DataError

TABLES = {"train": ("train.csv",), "val": ("val.csv", "dev.csv"), "test": ("test.csv",)}
MOST_JUDGED = {"val": 200, "test": 600}


def lay_out(source: Path, target: Path, num_texts: int | None) -> None:
    """`num_texts` to train on, the same each time; at most MOST_JUDGED of the others.

    Raises:
        DataError: a table is missing, or has other columns.
    """
    target.mkdir(parents=True)
    for split, names in TABLES.items():
        file = next((source / name for name in names if (source / name).is_file()), None)
        if file is None:
            raise DataError(f"{source} has no {' or '.join(names)}; expected train.csv, val.csv (or dev.csv), test.csv")
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        if not {"text", "label"} <= set(table.columns):
            raise DataError(f"{file} has the columns {', '.join(table.columns)}; expected text and label")
        table = table[["text", "label"]].drop_duplicates("text")
        order = table["text"].map(lambda text: hashlib.sha256(text.encode()).hexdigest()).sort_values().index
        most = MOST_JUDGED.get(split, num_texts or len(table))
        table.loc[order[:most]].to_csv(target / f"{split}.csv", index=False)
