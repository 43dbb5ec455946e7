"""Inspecting many files: in parallel processes, and each content only once.

    inspections = inspect_all(examples, "image")        one dictionary per example, in order

What an inspection finds is a function of a file's bytes and of the inspecting code, so it is kept under the digests of
both (.refit/inspections/<code>.parquet) and not computed again: when a set grows, only what is new is decoded. A flow
may fill the same store from other machines first (`flows/prepare.py`); the results are the same.
"""

import dataclasses
import hashlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from .. import modality
from ..files import publish_table, sha256_of_file
from ..progress import say, track
from .sources import Example

STORE = Path(".refit/inspections")
CHUNK = 64
Inspected = dict[str, Any]


def inspect_all(examples: Sequence[Example], modality_name: str) -> list[Inspected]:
    """Inspect all examples; those whose content was inspected before are not decoded again."""
    known = recall(modality_name)
    digests = _digests(examples) if known else [""] * len(examples)
    fresh = [example for example, digest in zip(examples, digests, strict=True) if digest not in known]
    if known:
        say(f"{len(examples) - len(fresh):,} of {len(examples):,} known by their content")
    inspect = partial(inspect_one, modality_name=modality_name)
    found = iter(list(track(_in_processes(inspect, fresh), "decode", len(fresh))))
    inspections = [known[digest] if digest in known else next(found) for digest in digests]
    if fresh:
        remember([*known.values(), *inspections], modality_name)
    return inspections


def inspect_one(example: Example, modality_name: str) -> Inspected:
    """Inspect one example in this process."""
    files = modality.files(modality_name)
    if example.error is not None:
        return dataclasses.asdict(files.Inspection(error=example.error))
    return dataclasses.asdict(files.inspect(example.path))


def recall(modality_name: str) -> dict[str, Inspected]:
    """What is known, by the SHA-256 of the file."""
    store = _store(modality_name)
    if not store.is_file():
        return {}
    rows = pd.read_parquet(store).astype(object)
    return {str(row["sha256"]): row for row in rows.where(rows.notna(), None).to_dict("records")}  # type: ignore[misc]


def remember(inspections: Sequence[Inspected], modality_name: str) -> None:
    """Keep what follows from contents alone; what could not be read at all may be read the next time."""
    by_content = {entry["sha256"]: entry for entry in inspections if entry["sha256"]}
    if by_content:
        publish_table(_store(modality_name), pd.DataFrame([by_content[digest] for digest in sorted(by_content)]))


def _store(modality_name: str) -> Path:
    code = modality.files(modality_name).__file__
    assert code is not None
    return STORE / f"{sha256_of_file(Path(code))[:16]}.parquet"


def _digests(examples: Sequence[Example]) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_digest, examples))


def _digest(example: Example) -> str:
    if example.error is not None or not example.path.is_file():
        return "none"
    try:
        with example.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "none"


def _in_processes(function: Any, examples: list[Example]) -> Iterator[Inspected]:
    """Apply `function` to all examples, in order, in other processes: a decoder that crashes takes only its own.

    Crashing is told from a pool that breaks; the examples of the broken chunk are then tried one by one.
    """
    chunks = [examples[start : start + CHUNK] for start in range(0, len(examples), CHUNK)]
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
