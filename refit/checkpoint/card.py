"""The card of the base checkpoint: checkpoints/base.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BaseCard:
    """What was fetched, and what the source says of itself (None: nothing)."""

    uri: str  # without credentials
    source_sha256: str | None  # of what was fetched; None: from scratch
    sha256: str  # of base.safetensors
    pinned: bool  # whether params.yaml named the SHA-256 of the source
    format: Literal["safetensors", "torch", "none"]  # of the source
    num_tensors: int
    architecture: str | None
    preprocessing: Mapping[str, object] | None
    classes: tuple[str, ...] | None
