"""Stage `ingest`: decodes every example once and writes what it found, one row each.

    python -m tasks.ingest        data.source -> data/manifest.parquet (and data/unpacked/ for an archive)

Columns of the manifest:

    path          file, relative to the project's root (absolute when the source lies elsewhere)
    label         class, as the source names it
    split         train, val or test
    sha256        of the file's bytes
    bytes         size of the file
    content_sha256            of what it says, decoded (a picture's pixels): equal for a copy with other metadata
    group         what the source says stays together (a patient, a device), or ""
    signature     what near-duplicates are told by (a picture in 5,249 bytes)
    error         why the example cannot be used, or null
    …             and what the modality says of it: a picture's width, height, mode, format

Where the source gives no splits, the split is a function of the file's bytes alone, or of its group alone: independent
draws, so that the shares are those asked for in every class, and nothing ever changes side. Bytes and not pixels, since
a new decoder may change a pixel. What is nearly the same on two sides is `validate`'s to find.
"""

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from refit import modality
from refit.data.inspection import inspect_all
from refit.data.sources import Example, list_examples
from refit.errors import run_stage
from refit.files import publish_table, publish_text
from refit.params import SPLITS, Data, load_params
from refit.paths import MANIFEST, UNPACKED
from refit.progress import say

_SPLIT_SALT = "refit-split-5"  # changing it moves images between train and test: never do


def main() -> None:
    params = load_params()
    shutil.rmtree(UNPACKED, ignore_errors=True)
    publish_text(UNPACKED / ".source", f"{params.data.source}\n")  # DVC warns of an empty folder
    column = modality.files(params.data.modality).COLUMN
    examples = list_examples(Path(params.data.source), unpack_to=UNPACKED, column=column)
    manifest = build_manifest(examples, params.data)
    publish_table(MANIFEST, manifest)
    splits = Counter(manifest["split"])
    say(
        f"{len(manifest):,} examples of {manifest['label'].nunique():,} classes in {params.data.source}: "
        + ", ".join(f"{splits[split]:,} {split}" for split in SPLITS)
        + f"; {manifest['error'].notna().sum():,} cannot be used"
    )


def build_manifest(examples: list[Example], data: Data) -> pd.DataFrame:
    """Inspect all examples in parallel processes; one row each, in the order given."""
    inspections = inspect_all(examples, data.modality)
    given = {example.split for example in examples if example.split is not None}
    rows = []
    for example, inspection in zip(examples, inspections, strict=True):
        row: dict[str, Any] = {
            "path": _relative(example.path),
            "label": example.label,
            "split": split_of(inspection.sha256, example.group, example.split, given, data),
            "group": example.group,
        }
        rows.append(row | inspection.columns())
    return pd.DataFrame(rows).astype({"error": "string"})


def split_of(sha256: str, group: str, given: str | None, given_splits: set[str], data: Data) -> str:
    """The split of an example: what the source says, else a function of its group, or of its bytes where it has none.

    A source that gives some of the splits keeps them; a split that it lacks is taken out of its train part.
    """
    digest = hashlib.sha256(f"{_SPLIT_SALT}:{f'group:{group}' if group else sha256}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64  # uniform in [0, 1)
    if position < data.test_fraction:
        drawn = "test"
    elif position < data.test_fraction + data.val_fraction:
        drawn = "val"
    else:
        drawn = "train"
    if given is None:
        return drawn
    return drawn if given == "train" and drawn not in given_splits else given


def _relative(path: Path) -> str:
    absolute = path.absolute()
    root = Path.cwd()
    return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()


if __name__ == "__main__":
    run_stage(main)
