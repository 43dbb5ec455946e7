"""Stage `ingest`: decodes every example once and writes what it found, one row each.

    python -m tasks.ingest        data.source -> data/manifest.parquet (and data/unpacked/ for an archive)

Columns of the manifest:

    path          file, relative to the project's root (absolute when the source lies elsewhere)
    label         class, as the source names it
    split         train, val or test
    sha256        of the file's bytes
    pixel_sha256  of the decoded pixels
    bytes, width, height, mode, format        of the file and of the upright picture
    phash, group  perceptual hash (64 bits) and coarse signature (15 bits), hexadecimal
    error         why the example cannot be used, or null

Where the source gives no splits, the split is a function of the picture alone: of its coarse signature, which
near-duplicates share. So an image never changes side when others are added, and near-duplicates do not end up
on both sides.
"""

import dataclasses
import hashlib
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from tasks import modality
from tasks.errors import run_stage
from tasks.params import SPLITS, Data, load_params
from tasks.paths import MANIFEST, UNPACKED
from tasks.progress import say, track
from tasks.publish import publish_table, publish_text
from tasks.sources import Example, list_examples

_SPLIT_SALT = "refit-split-4"  # changing it moves images between train and test: never do
_CHUNK = 64


def main() -> None:
    params = load_params()
    shutil.rmtree(UNPACKED, ignore_errors=True)
    publish_text(UNPACKED / ".source", f"{params.data.source}\n")  # DVC warns of an empty folder
    examples = list_examples(Path(params.data.source), unpack_to=UNPACKED)
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
    inspect_example = partial(_inspect, modality_name=data.modality)
    inspections = list(track(_in_processes(inspect_example, examples), "decode", len(examples)))
    given = {example.split for example in examples if example.split is not None}
    rows = []
    for example, inspection in zip(examples, inspections, strict=True):
        row: dict[str, Any] = {
            "path": _relative(example.path),
            "label": example.label,
            "split": split_of(inspection["group"], example.split, given, data),
        }
        rows.append(row | inspection | {"error": example.error or inspection["error"]})
    return pd.DataFrame(rows).astype({"error": "string"})


def split_of(group: str, given: str | None, given_splits: set[str], data: Data) -> str:
    """The split of an example: what the source says, else a function of its coarse signature.

    A source that gives some of the splits keeps them; a split that it lacks is taken out of its train part.
    """
    digest = hashlib.sha256(f"{_SPLIT_SALT}:{group}".encode()).digest()
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


def _inspect(example: Example, modality_name: str) -> dict[str, Any]:
    inspection_type = modality.files(modality_name)
    if example.error is not None:
        return dataclasses.asdict(inspection_type.Inspection(error=example.error))
    return dataclasses.asdict(inspection_type.inspect(example.path))


def _in_processes(function: Any, examples: list[Example]) -> Iterator[dict[str, Any]]:
    """Apply `function` to all examples, in order, in other processes: a decoder that crashes takes only its own.

    Crashing is told from a pool that breaks; the examples of the broken chunk are then tried one by one.
    """
    chunks = [examples[start : start + _CHUNK] for start in range(0, len(examples), _CHUNK)]
    while chunks:
        done = 0
        try:
            with _pool() as pool:
                for results in pool.map(partial(_apply_to_all, function), chunks):
                    done += 1
                    yield from results
        except BrokenProcessPool:
            for example in chunks[done]:
                yield _alone(function, example)
            done += 1
        chunks = chunks[done:]


def _alone(function: Any, example: Example) -> dict[str, Any]:
    try:
        with _pool(max_workers=1) as pool:
            return pool.submit(function, example).result()
    except BrokenProcessPool:
        return function(dataclasses.replace(example, error="the decoder crashed on it"))


def _apply_to_all(function: Any, examples: list[Example]) -> list[dict[str, Any]]:
    return [function(example) for example in examples]


def _pool(max_workers: int | None = None) -> ProcessPoolExecutor:
    # Fresh processes rather than forks: a fork would copy whatever locks the parent's threads hold.
    return ProcessPoolExecutor(max_workers or os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


def _relative(path: Path) -> str:
    absolute = path.absolute()
    root = Path.cwd()
    return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()


if __name__ == "__main__":
    run_stage(main)
