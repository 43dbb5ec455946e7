"""Inspecting many files: in parallel processes, and each content only once.

    inspections = inspect_all(examples, "image")        one record per example, in order

What a picture is found to be is a function of its bytes, of the inspecting code and of the decoders, so it is kept
under the digests of all three (.refit/inspections/<decided by>.parquet) and not computed again: when a set grows, only
what is new is decoded. A flow may fill the same store from other machines first (`flows/prepare.py`); the results are
the same.

Only pictures that were decoded are kept. A failure is looked at again each time, since it may be an accident: libjpeg,
libwebp and libtiff say of a good file that it is damaged when they get no memory.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pandas as pd

from .. import modality
from ..files import publish_json, publish_table, sha256_of_file, sha256_of_json
from ..modality.contract import Inspection
from ..paths import ACCIDENTS
from ..progress import say, track
from .sources import Example

STORE = Path(".refit/inspections")
CHUNK = 64

_NO_MEMORY = "not enough memory to decode it"
_DIED = "the process that decoded it died, crashed or killed for its memory"
_AGAIN = "the next `refit retrain` or `validate` tries again, or `dvc repro -f ingest`"
_POOL_TROUBLE = (BrokenProcessPool, MemoryError, OSError)  # OSError: no memory for another process


def inspect_all(examples: Sequence[Example], modality_name: str) -> list[Inspection]:
    """Inspect all examples; those whose content was inspected before are not decoded again."""
    known = recall(modality_name)
    digests = _digests(examples) if known else [""] * len(examples)
    fresh = [example for example, digest in zip(examples, digests, strict=True) if digest not in known]
    if known:
        say(f"{len(examples) - len(fresh):,} of {len(examples):,} known by their content")
    inspect = partial(inspect_one, modality_name=modality_name)
    found = iter(list(track(_in_processes(inspect, fresh, modality_name), "decode", len(fresh))))
    inspections = [known[digest] if digest in known else next(found) for digest in digests]
    if fresh:
        remember([*known.values(), *inspections], modality_name)
    _note_accidents(examples, inspections)
    return inspections


def inspect_one(example: Example, modality_name: str) -> Inspection:
    """Inspect one example in this process. Want of memory and a file that cannot be read are accidents of this time."""
    files = modality.files(modality_name)
    if example.error is not None:
        return files.INSPECTED(error=example.error, rule="misplaced")
    try:
        return files.inspect(example.path)
    except MemoryError:
        return _accident(_NO_MEMORY, modality_name)
    except OSError as error:
        return _accident(f"cannot be read: {error.strerror or type(error).__name__}", modality_name)


def _accident(reason: str, modality_name: str) -> Inspection:
    return modality.files(modality_name).INSPECTED(error=f"{reason}; {_AGAIN}", rule="unreadable", is_accident=True)


def _note_accidents(examples: Sequence[Example], inspections: Sequence[Inspection]) -> None:
    """For the flow: the files are what they were, so that DVC would see no reason to look at them again."""
    noted = [str(example.path) for example, found in zip(examples, inspections, strict=True) if found.is_accident]
    ACCIDENTS.unlink(missing_ok=True)
    if noted:
        publish_json(ACCIDENTS, noted)
        say(f"{len(noted):,} could not be inspected this time, first {noted[0]}; {_AGAIN}")


def recall(modality_name: str) -> dict[str, Inspection]:
    """What is known, by the SHA-256 of the file."""
    store = _store(modality_name)
    if not store.is_file():
        return {}
    inspected = modality.files(modality_name).INSPECTED
    rows = pd.read_parquet(store).to_dict("records")
    return {str(row["sha256"]): inspected(**{str(name): value for name, value in row.items()}) for row in rows}


def remember(inspections: Sequence[Inspection], modality_name: str) -> None:
    """Keep what follows from contents alone: the pictures that were decoded."""
    by_content = {found.sha256: found for found in inspections if found.error is None}
    if by_content:
        rows = [by_content[digest].columns() for digest in sorted(by_content)]
        publish_table(_store(modality_name), pd.DataFrame(rows).drop(columns="error"))


def _store(modality_name: str) -> Path:
    files = modality.files(modality_name)
    code = sys.modules[files.INSPECTED.__module__].__file__
    assert code is not None
    decided_by = {"code": sha256_of_file(Path(code)), **files.decided_by()}
    return STORE / f"{sha256_of_json(decided_by)[:16]}.parquet"


def _digests(examples: Sequence[Example]) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_digest, examples))


def _digest(example: Example) -> str:
    if example.error is not None or not example.path.is_file():
        return "none"
    try:
        return sha256_of_file(example.path)
    except (OSError, MemoryError):
        return "none"


def _in_processes(
    function: Callable[[Example], Inspection], examples: Sequence[Example], modality_name: str
) -> Iterator[Inspection]:
    """Apply `function` to all examples, in order, in other processes: what goes wrong with one takes only its own.

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
        except _POOL_TROUBLE:
            yield from _one_by_one(function, chunks[done], modality_name)
            done += 1
        chunks = chunks[done:]


def _one_by_one(
    function: Callable[[Example], Inspection], examples: Sequence[Example], modality_name: str
) -> Iterator[Inspection]:
    done = 0
    while done < len(examples):
        try:
            with _pool(max_workers=1) as pool:
                for example in examples[done:]:
                    found = pool.submit(function, example).result()
                    done += 1
                    yield found
        except _POOL_TROUBLE as error:
            reason = _DIED if isinstance(error, BrokenProcessPool) else _NO_MEMORY
            done += 1
            yield _accident(reason, modality_name)


def _apply_to_all(function: Callable[[Example], Inspection], examples: Sequence[Example]) -> list[Inspection]:
    return [function(example) for example in examples]


def _pool(max_workers: int | None = None) -> ProcessPoolExecutor:
    # Fresh processes rather than forks: a fork would copy whatever locks the parent's threads hold.
    return ProcessPoolExecutor(max_workers or os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))
