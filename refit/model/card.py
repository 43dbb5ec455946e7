"""The card of a model: models/model.json, all that is needed to use its weights and to know where they came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError
from ..records import read_record


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What has to be equal for the same bits to come out: the environment class of a result.

    None: there is none of it here, or (in the cards of format 1) it was not recorded.
    """

    python: str
    machine: str  # x86_64, aarch64
    cpu_capability: str  # of torch's kernels: AVX2, AVX512
    device: str  # cpu, or the name of the GPU
    num_threads: int
    torch: str
    torchvision: str
    numpy: str | None = None
    pillow: str | None = None
    libjpeg: str | None = None  # of Pillow: another decoder gives other pixels
    cuda: str | None = None
    cudnn: str | None = None
    processor: str | None = None  # and its own bf16
    precision: Literal["fp32", "bf16"] | None = None  # of the training's big products
    libraries: tuple[str, ...] = ()  # others that the modality reads its examples with, and their versions
    stopped_after: int | None = None  # epochs, of a training whose `finetune.max_minutes` were over


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Digests of what the model was made from."""

    data_digest: str
    split_digest: str
    base_uri: str
    base_sha256: str
    params_digest: str


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What of the network came from the base checkpoint; counts are of tensors."""

    prefix: str  # taken off the checkpoint's names
    share: float  # of the backbone's values
    loaded: int
    missing: int
    unexpected: int
    reshaped: int
    differing: tuple[str, ...]  # the first few names of the last three
    has_folded_norms: bool  # its batch norms do nothing


@dataclass(frozen=True, kw_only=True)
class ValidationMeasures:
    """Of the epoch that was kept."""

    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model is. Format 1 had no versions of NumPy, Pillow and CUDA in its environment."""

    format: Literal[1, 2]
    modality: str
    architecture: str
    head_dropout: float
    classes: tuple[str, ...]  # in the order of the logits
    preprocessing: Mapping[str, object]  # the modality's
    temperature: float  # logits are divided by it to give calibrated probabilities
    best_epoch: int
    validation: ValidationMeasures
    weights_sha256: str
    lineage: Lineage
    environment: Environment
    plan: tuple[str, ...] = ()  # what was done, and what was decided for each `auto`, with the reason
    pretrained: Pretrained | None = None  # None: from scratch, or of before this was written down
    network_sha256: str | None = None  # of the source of a network of the user's


FORMAT: Literal[2] = 2


def read_card(path: Path) -> Card:
    """The card in a file.

    Raises:
        CheckpointError: it is missing, damaged, or of a format that this version of Refit does not read.
    """
    return read_record(path, Card, CheckpointError, "; `dvc pull` brings it back, `dvc repro` makes it again")
