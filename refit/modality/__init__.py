"""The one seam where a kind of example (images now, text next) plugs in.

A modality has two halves, so that stages which only look at files start without torch:

    files(name)     inspect(path) -> a record with sha256, sizes, perceptual hashes, error
    networks(name)  the torch half: build a network, load a backbone, read examples into one uint8 array,
                    augment a batch, turn a batch into what the network reads

`refit/modality/image/networks.py` documents each function of the second half with its shapes. Nothing else in Refit
compares a modality's name.
"""

import importlib
from types import ModuleType

_MODULES = {"image": (".image.files", ".image.networks")}


def files(name: str) -> ModuleType:
    """The torch-free half of a modality."""
    return importlib.import_module(_MODULES[name][0], __package__)


def networks(name: str) -> ModuleType:
    """The torch half of a modality."""
    return importlib.import_module(_MODULES[name][1], __package__)
