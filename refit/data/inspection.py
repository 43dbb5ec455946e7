"""Inspecting many files: in disposable processes (`children.py`), and each content only once.

    inspections = inspect_all(examples, "image")        one record per example, in order

What a picture is found to be is a function of its bytes, of the inspecting code and of the decoders, so it is kept
under the digests of all three (.refit/inspections/<decided by>.parquet) and not computed again: when a set grows, only
what is new is decoded. A flow may fill the same store from other machines first (`flows/prepare.py`); the results are
the same.

Only pictures that were decoded are kept. A failure is looked at again each time, since it may be an accident: libjpeg,
libwebp and libtiff say of a good file that it is damaged when they get no memory.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from .. import modality
from ..files import publish_json, publish_table, sha256_of_file, sha256_of_json
from ..modality.contract import Inspection
from ..paths import ACCIDENTS
from ..progress import say, track
from .child import AGAIN
from .children import inspect_in_children
from .sources import Example

STORE = Path(".refit/inspections")
CHUNK = 64


def inspect_all(examples: Sequence[Example], modality_name: str) -> list[Inspection]:
    """Inspect all examples; those whose content was inspected before are not decoded again."""
    known = recall(modality_name)
    digests = _digests(examples) if known else [""] * len(examples)
    fresh = [example for example, digest in zip(examples, digests, strict=True) if digest not in known]
    if known:
        say(f"{len(examples) - len(fresh):,} of {len(examples):,} known by their content")
    found = iter(list(track(inspect_some(fresh, modality_name), "decode", len(fresh))))
    inspections = [known[digest] if digest in known else next(found) for digest in digests]
    if fresh:
        remember([*known.values(), *inspections], modality_name)
    _note_accidents(examples, inspections)
    return inspections


def inspect_some(
    examples: Sequence[Example], modality_name: str, num_children: int | None = None
) -> Iterator[Inspection]:
    """Inspect examples, in order, in disposable processes; those that the source calls unusable are not looked at."""
    kind = modality.files(modality_name).INSPECTED
    paths = [example.path for example in examples if example.error is None]
    found = inspect_in_children(paths, modality_name, num_children)
    for example in examples:
        yield next(found) if example.error is None else kind(error=example.error, rule=example.rule)


def _note_accidents(examples: Sequence[Example], inspections: Sequence[Inspection]) -> None:
    """For the flow: the files are what they were, so that DVC would see no reason to look at them again."""
    noted = [str(example.path) for example, found in zip(examples, inspections, strict=True) if found.is_accident]
    ACCIDENTS.unlink(missing_ok=True)
    if noted:
        publish_json(ACCIDENTS, noted)
        say(f"{len(noted):,} could not be inspected this time, first {noted[0]}; {AGAIN}")


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
