"""The card of the base checkpoint: checkpoints/base.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Format = Literal["safetensors", "torch", "folder", "refit", "none"]
"""Of what was fetched. folder: several files, which the modality reads;
refit: the weights of a registered version; none: from scratch."""


@dataclass(frozen=True, kw_only=True)
class BaseCard:
    """What was fetched, and what the source says of itself (None: nothing)."""

    uri: str  # without credentials
    version: str | None = None  # what a moving address stood for: models:/digits/3, hf:owner/repo@<commit>/file
    source_sha256: str | None  # of what was fetched; None: from scratch
    sha256: str  # of base.safetensors
    pinned: bool  # whether params.yaml named the SHA-256 of the source
    format: Format
    key: str | None = None  # where in a PyTorch file the weights lay; `.`: they are the file
    num_tensors: int
    architecture: str | None
    preprocessing: Mapping[str, object] | None
    classes: tuple[str, ...] | None
