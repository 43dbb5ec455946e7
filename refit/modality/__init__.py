"""The one seam where a kind of example plugs in: pictures, texts.

A modality is a folder here, whose name `data.modality` of params.yaml says; the section of that name in params.yaml has
its settings. It is ten files, each of which keeps a Protocol of `contract.py`:

    settings        what params.yaml may say of it, and the names of its networks
    files        *  from a file to what the manifest says of it
    rules           which files are good enough
    duplicates      which files show the same
    preprocessing*  what weights bring along: how an example becomes an array
    examples     *  from a file or a request to an array
    networks     *  from arrays to logits
    weights         published weights; the preprocessing of a base checkpoint
    augment         random changes while a network learns
    sample          built-in examples; sample.yaml beside it is what params.yaml says with them (`refit use`)

`own` beside them is how a network of the user's is found (`finetune.model: package.module:factory`).
A registered model carries those with a star; all but networks, weights and augment are imported without torch.
Nothing outside of such a folder knows which kind there is, and nothing compares its name.
"""

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from .contract import (
        Augmentation,
        Duplicates,
        Examples,
        Files,
        Networks,
        Preprocessing,
        Rules,
        Sample,
        Settings,
        Weights,
    )

__all__ = [
    "augmentation",
    "contract",
    "duplicates",
    "examples",
    "files",
    "names",
    "networks",
    "own",
    "preprocessing",
    "rules",
    "sample",
    "settings",
    "weights",
]


def names() -> tuple[str, ...]:
    """The modalities that there are."""
    return tuple(sorted(path.parent.name for room in __path__ for path in Path(room).glob("*/settings.py")))


def settings(name: str) -> "Settings":
    """What params.yaml may say of it."""
    return cast("Settings", _part(name, "settings"))


def files(name: str) -> "Files":
    """How its files are inspected."""
    return cast("Files", _part(name, "files"))


def rules(name: str) -> "Rules":
    """Which of them are good enough."""
    return cast("Rules", _part(name, "rules"))


def duplicates(name: str) -> "Duplicates":
    """Which of them show the same."""
    return cast("Duplicates", _part(name, "duplicates"))


def preprocessing(name: str) -> "Preprocessing":
    """What weights bring along."""
    return cast("Preprocessing", _part(name, "preprocessing"))


def examples(name: str) -> "Examples":
    """How they become arrays."""
    return cast("Examples", _part(name, "examples"))


def networks(name: str) -> "Networks":
    """What reads these."""
    return cast("Networks", _part(name, "networks"))


def weights(name: str) -> "Weights":
    """What its networks start from."""
    return cast("Weights", _part(name, "weights"))


def augmentation(name: str) -> "Augmentation":
    """How its examples are changed while a network learns."""
    return cast("Augmentation", _part(name, "augment"))


def sample(name: str) -> "Sample":
    """Its built-in examples."""
    return cast("Sample", _part(name, "sample"))


def _part(name: str, part: str) -> object:
    if not re.fullmatch(r"[a-z]\w*", name):  # it becomes the name of a module
        raise ValueError(f"{name!r} is no name of a modality")
    return importlib.import_module(f".{name}.{part}", __package__)
