"""There are no published weights of networks for numbers."""

from collections.abc import Mapping
from pathlib import Path

from ...errors import CheckpointError
from ..contract import Described
from .preprocessing import Preprocessing
from .settings import Finetune


def describe_weights(name: str) -> tuple[str, Described]:
    """Always a refusal."""
    raise CheckpointError(f"there are no weights {name!r} for numbers")


def preprocessing_for(base: Mapping[str, object] | None, settings: Finetune) -> Preprocessing:
    """A scale."""
    return Preprocessing(0.5)


def read_folder(folder: Path, target: Path) -> Described:
    """Always a refusal."""
    raise CheckpointError(f"{folder} is a folder")
