"""What a modality's files must have. mypy holds the built-in ones to it; a test holds a toy one of numbers.

Types that only the modality itself understands (its preprocessing, its example before it is an array, its settings) are
handed through as they are: everybody else gets them from one of its functions and gives them to another.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pandera.pandas as pa
    from _typeshed import DataclassInstance
    from torch import Tensor, nn

Signature = bytes  # the name `bytes` is that of a field below

Opaque = Any
"""Understood by the modality alone."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is known of one file, of whatever kind. With an `error`, what comes from its content is empty."""

    sha256: str = ""  # of the file's bytes
    bytes: int = 0
    content_sha256: str = ""  # of what the file says, decoded: equal for a copy with other metadata
    signature: Signature = b""  # what near-duplicates are told by, of one length for all; empty: not looked for
    error: str | None = None
    rule: str = ""  # with an `error`: the one in params.yaml that it breaks
    is_accident: bool = False  # the error is of this time and machine only, not of the file

    def columns(self) -> dict[str, object]:
        """What the manifest says of it."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "is_accident"}


class UnusableError(ValueError):
    """Why a file gives no example, in words for the user; `rule` is the one in params.yaml that it breaks."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule


@dataclass(frozen=True, kw_only=True)
class Described:
    """What published weights, or the head of a checkpoint's file, say of themselves."""

    architecture: str | None = None
    preprocessing: Mapping[str, object] | None = None
    classes: tuple[str, ...] | None = None


class ModalityValidate(Protocol):
    """What a modality adds to the section `validate`.

    `rules` is a record whose every field is a rule, its value the policy; `refit/params/sections.py` has those that all
    modalities share."""

    @property
    def rules(self) -> "DataclassInstance": ...


class ModalitySettings(Protocol):
    """The section of params.yaml that has the modality's name: what it adds to the sections of these stages."""

    @property
    def validate(self) -> ModalityValidate: ...

    @property
    def finetune(self) -> Opaque: ...


class Settings(Protocol):
    """`settings.py`. `SLICES` are columns of words in the manifest by which a model may be judged apart, `STATISTICS`
    columns of numbers that say what an example looks like. `CHECKPOINT_FILES` are patterns of the files that make a
    checkpoint's folder (none: it is one file), `MIXES` the keys of `finetune` that blend two examples and make sense
    here, `LEARNING_RATE` what `auto` means where pretrained layers learn."""

    @property
    def SETTINGS(self) -> type[ModalitySettings]: ...  # noqa: N802
    @property
    def ARCHITECTURES(self) -> Sequence[str]: ...  # noqa: N802
    @property
    def SLICES(self) -> Sequence[str]: ...  # noqa: N802
    @property
    def STATISTICS(self) -> Sequence[str]: ...  # noqa: N802
    @property
    def CHECKPOINT_FILES(self) -> Sequence[str]: ...  # noqa: N802
    @property
    def MIXES(self) -> Sequence[str]: ...  # noqa: N802
    @property
    def LEARNING_RATE(self) -> float: ...  # noqa: N802

    def contradictions(self, settings: Opaque, is_from_scratch: bool) -> list[str]: ...


class Files(Protocol):
    """`files.py`. `COLUMN` is the column of a table that holds examples themselves (None: they are always files). What
    `inspect` gives is of the type `INSPECTED`, each of whose fields is a column of the manifest. It
    never raises for a bad file; MemoryError and OSError are accidents. `excerpt` gives what a page shows of a file's
    bytes, at most 100 kB: the address of a small picture (data:image/…), or words; ValueError for what cannot be read.
    `decided_by` names what decides both beside the bytes and this file: versions of decoders. `KIND` is schema.org's
    name of what an example is (ImageObject, Text)."""

    @property
    def COLUMN(self) -> str | None: ...  # noqa: N802
    @property
    def INSPECTED(self) -> type[Inspection]: ...  # noqa: N802

    @property
    def KIND(self) -> str: ...  # noqa: N802

    def inspect(self, path: Path) -> Inspection: ...

    def excerpt(self, content: bytes) -> str: ...

    def decided_by(self) -> Mapping[str, str | None]: ...


class Rules(Protocol):
    """`rules.py`: columns that the manifest must have, and columns that a good row must have; `derived` adds those that
    follow from several others. The `error` of a check of a good row is `<rule>: <what is wrong>`, with the name of one
    of the settings' `rules`."""

    def manifest_columns(self) -> "dict[str, pa.Column]": ...

    def derived(self, rows: "pd.DataFrame") -> "pd.DataFrame": ...

    def row_columns(self, settings: Opaque) -> "dict[str, pa.Column]": ...


class Duplicates(Protocol):
    """`duplicates.py`: how near-duplicates are told; `refit/data/duplicates.py` searches. An example has a hash of 64
    bits for each view of it, first of all as it is. It is a candidate where one of them is within that view's radius
    (at most 11 bits) of the first hash of another; or, `IS_BY_VIEW`, of the hash of the same view of another. `same`
    then says whether they show the same, of (k, 3) rows of two examples and the view of the first; and `closer`, of
    those that it believes, where an example has many look-alikes. Each answer depends on its row alone."""

    @property
    def RADII(self) -> tuple[int, ...]: ...  # noqa: N802
    @property
    def IS_BY_VIEW(self) -> bool: ...  # noqa: N802

    def hashes_of(self, signatures: "np.ndarray", views: Sequence[int]) -> "np.ndarray": ...

    def same(self, signatures: "np.ndarray", candidates: "np.ndarray") -> "np.ndarray": ...

    def closer(self, signatures: "np.ndarray", candidates: "np.ndarray") -> "np.ndarray": ...


class Preprocessing(Protocol):
    """`preprocessing.py`. It reads what a card says, and raises CheckpointError where that is not whole."""

    def read_preprocessing(self, plain: Mapping[str, object], where: str) -> Opaque: ...


class Examples(Protocol):
    """`examples.py`. `REQUIRES` names the packages that a registered model needs to read its examples. `prepare` and
    `parse` raise ValueError, in words for the user, for what they cannot read. `request` gives a file's bytes as a
    request would have them. `picture` gives what a page shows of an example: the address of a picture
    (data:image/…), or words.

    `slices` says of (n, …) prepared examples by what a model may be judged apart, beside the manifest's columns: by
    name, a word for each example. None: by nothing."""

    @property
    def INPUT(self) -> str: ...  # noqa: N802
    @property
    def REQUIRES(self) -> Sequence[str]: ...  # noqa: N802

    def prepare(self, example: Opaque, preprocessing: Opaque) -> "np.ndarray": ...

    def parse(self, value: object) -> Opaque: ...

    def request(self, content: bytes) -> object: ...

    def picture(self, prepared: "np.ndarray", preprocessing: Opaque) -> str: ...

    @property
    def slices(self) -> "Callable[[np.ndarray, Opaque], Mapping[str, np.ndarray]] | None": ...


@dataclass(frozen=True)
class LayerGroup:
    """Layers that learn together, or are frozen together: a block of a network."""

    name: str  # of the module it starts with, such as layer3.1
    parameters: tuple[str, ...]  # names, in the order of `named_parameters`


class Networks(Protocol):
    """`networks.py`. `network_input` takes (n, …) as `prepare` gives them, or as `augment` changed them.

    `layer_groups` has every parameter in one group, from the input to the output; `head` is the last group alone.
    `names_today` says what the tensors of an older checkpoint are called now; its tensors of `TRAINING_ONLY` are not
    wanted.

    `extents` says of (n, …) prepared examples how large each is for the network, (n,) int64: those of one extent make
    batches of one shape, whatever their company. None: all are alike."""

    @property
    def TRAINING_ONLY(self) -> Sequence[str]: ...  # noqa: N802

    def build_network(
        self, architecture: str, num_outputs: int, head_dropout: float = 0.0, preprocessing: Opaque = None
    ) -> "nn.Module": ...

    def head_parameters(self, network: "nn.Module", num_outputs: int) -> list[str]: ...

    def layer_groups(self, network: "nn.Module", head: Sequence[str]) -> list[LayerGroup]: ...

    def names_today(self, names: Collection[str]) -> Mapping[str, str]: ...

    @property
    def extents(self) -> "Callable[[np.ndarray], np.ndarray] | None": ...

    def network_input(self, examples: "Tensor", preprocessing: Opaque) -> "Tensor": ...


class Weights(Protocol):
    """`weights.py`. `read_folder` writes the weights in a checkpoint's folder to `target`, as safetensors."""

    def describe_weights(self, name: str) -> tuple[str, Described]: ...

    def preprocessing_for(self, base: Mapping[str, object] | None, settings: Opaque) -> Opaque: ...

    def read_folder(self, folder: Path, target: Path) -> Described: ...


class Sample(Protocol):
    """`sample.py`. `write` puts examples into an empty folder, laid out as a data source, and says what they are;
    `decided_by` names what decides them, beside this file."""

    def decided_by(self) -> Mapping[str, str]: ...

    def write(self, folder: Path) -> str: ...


class Augmentation(Protocol):
    """`augment.py`. `draws` is (n, NUM_DRAWS) float32, uniform in [0, 1)."""

    @property
    def NUM_DRAWS(self) -> int: ...  # noqa: N802

    def augment(self, examples: "Tensor", draws: "Tensor", settings: Opaque) -> "Tensor": ...
