"""From files to batches: what the loop and the evaluation read.

Each example is decoded once; what comes out is kept (`cache.py`), keyed by the bytes of the file, the preprocessing and
the code and libraries that do it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from .. import modality
from ..errors import DataError
from ..files import sha256_of_file, sha256_of_json
from ..modality.contract import Opaque
from ..progress import track
from ..records import as_plain
from .cache import FORMAT, Produce, Rows, Shelf
from .choices import available_cores
from .determinism import example_keys

_PIECE = 64
"""Examples that are decoded side by side, and held in memory until they are kept."""

_TOLD_AT_ONCE = 1024


@dataclass(frozen=True)
class Examples:
    """The examples of one split. Nothing is read before it is asked for."""

    sha256s: tuple[str, ...]  # of the files' bytes
    labels: np.ndarray  # (n,) int64
    shelf: Shelf
    prepare: Produce

    def __len__(self) -> int:
        return len(self.sha256s)

    @cached_property
    def keys(self) -> np.ndarray:
        """(n,) uint64, identities for the counter-based randomness."""
        return example_keys(self.sha256s)

    @cached_property
    def rows(self) -> Rows:
        """Prepared examples, (n, …) as the modality prepares them. The first time, what is not kept is decoded.

        Raises:
            DataError: a file is gone, or is not the one that was validated, or cannot be read any more.
        """
        return self.shelf.rows([bytes.fromhex(sha256) for sha256 in self.sha256s], self.prepare)

    def some(self, count: int) -> np.ndarray:
        """(count, …): prepared examples, the first ones again and again, without reading the others."""
        return np.concatenate(list(self.prepare(np.resize(np.arange(min(count, len(self))), count))))


def read_split(
    accepted: pd.DataFrame, split: str, classes: Sequence[str], modality_name: str, preprocessing: Opaque
) -> Examples:
    """The accepted examples of one split, with their labels as indices of `classes`."""
    rows = accepted[accepted["split"] == split]
    files = list(zip(rows["path"], rows["sha256"], strict=True))
    indices = {label: index for index, label in enumerate(classes)}
    return Examples(
        sha256s=tuple(rows["sha256"]),
        labels=np.array([indices[label] for label in rows["label"]], dtype=np.int64),
        shelf=Shelf("decoded", _preparation_digest(modality_name, preprocessing)),
        prepare=_Preparation(files, modality_name, preprocessing, f"read {split}"),
    )


def slices_of(examples: Examples, modality_name: str, preprocessing: Opaque) -> dict[str, np.ndarray]:
    """What the modality says of prepared examples, by which a model may be judged apart: by name, (n,) words."""
    told = modality.examples(modality_name).slices
    if told is None:
        return {}
    pieces = np.array_split(np.arange(len(examples)), max(1, len(examples) // _TOLD_AT_ONCE))
    found = [told(examples.rows.gather(piece), preprocessing) for piece in pieces]
    return {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}


@dataclass(frozen=True)
class _Preparation:
    """Prepares files, each given as (path, SHA-256), in threads."""

    files: Sequence[tuple[str, str]]
    modality_name: str
    preprocessing: Opaque
    what: str

    def __call__(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        pieces = [indices[start : start + _PIECE] for start in range(0, len(indices), _PIECE)]
        with ThreadPoolExecutor(available_cores()) as pool:
            for piece in track(pieces, self.what, len(pieces)) if len(indices) > _TOLD_AT_ONCE else pieces:
                yield np.stack(list(pool.map(self._read, piece)))

    def _read(self, index: int) -> np.ndarray:
        path, sha256 = self.files[index]
        try:
            return modality.examples(self.modality_name).prepare(_verified_bytes(path, sha256), self.preprocessing)
        except ValueError as error:
            raise DataError(f"{path} was validated but cannot be read now: {error}") from None


def _preparation_digest(modality_name: str, preprocessing: Opaque) -> str:
    """Of all that decides a prepared example, beside the bytes of its file."""
    files = modality.files(modality_name)
    code = [files.__file__, modality.examples(modality_name).__file__]  # type: ignore[attr-defined]
    return sha256_of_json(
        [
            FORMAT,
            modality_name,
            as_plain(preprocessing),
            dict(files.decided_by()),
            [sha256_of_file(Path(file)) for file in code],
        ]
    )


def _verified_bytes(path: str, sha256: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} was validated but cannot be read now ({error.strerror}); bring it back with `dvc pull`, or run "
            "`dvc repro -f ingest`"
        ) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path} was changed after it was validated; run `dvc repro -f ingest`")
    return content
