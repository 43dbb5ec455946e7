"""From files to one array: what the loop and the evaluation read."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import modality
from ..errors import DataError
from ..modality.contract import Opaque
from ..progress import track
from .determinism import example_keys


@dataclass(frozen=True)
class Examples:
    """Prepared examples of one split."""

    inputs: Tensor  # (n, …) as the modality prepares them
    labels: Tensor  # (n,) int64
    keys: np.ndarray  # (n,) uint64, identities for the counter-based randomness

    def to(self, device: torch.device) -> "Examples":
        """The same with its tensors on `device`."""
        return Examples(self.inputs.to(device), self.labels.to(device), self.keys)


def read_inputs(files: Sequence[tuple[str, str]], modality_name: str, preprocessing: Opaque, what: str) -> Tensor:
    """Prepare files, each given as (path, SHA-256), in threads: one array (n, …).

    Raises:
        DataError: a file is gone, or is not the one that was validated, or cannot be read any more.
    """
    prepare = modality.examples(modality_name).prepare

    def read(file: tuple[str, str]) -> np.ndarray:
        try:
            return prepare(_verified_bytes(*file), preprocessing)
        except ValueError as error:
            raise DataError(f"{file[0]} was validated but cannot be read now: {error}") from None

    inputs = np.empty((0,))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, prepared in enumerate(track(pool.map(read, files), what, len(files))):
            if index == 0:
                inputs = np.empty((len(files), *prepared.shape), dtype=prepared.dtype)
            inputs[index] = prepared
    return torch.from_numpy(inputs)


def read_split(
    accepted: pd.DataFrame, split: str, classes: Sequence[str], modality_name: str, preprocessing: Opaque
) -> Examples:
    """The accepted examples of one split, with their labels as indices of `classes`."""
    rows = accepted[accepted["split"] == split]
    files = list(zip(rows["path"], rows["sha256"], strict=True))
    indices = {label: index for index, label in enumerate(classes)}
    return Examples(
        inputs=read_inputs(files, modality_name, preprocessing, f"read {split}"),
        labels=torch.tensor([indices[label] for label in rows["label"]]),
        keys=example_keys(list(rows["sha256"])),
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
