"""What `fetch` needs torch for, run as a child process that is thrown away afterwards.

    python -m refit.checkpoint.convert resolve image ResNet18_Weights.DEFAULT  address and preprocessing
    python -m refit.checkpoint.convert convert weights.pth base.safetensors    a state dict, without its pickle

`torch.load(weights_only=True)` builds tensors and plain containers only; there is no fallback to anything else.
"""

import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .. import modality
from ..errors import CheckpointError, run_stage
from ..files import publishing
from ..records import as_plain

_WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts keep the weights
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))")
"""Names such as denselayer1.norm.1.weight, which the published DenseNets still bear; today it is norm1.weight. Each
loader of torchvision renames them (torchvision/models/densenet.py, _load_state_dict)."""


def main() -> None:
    match sys.argv[1:]:
        case ["resolve", modality_name, name]:
            print(json.dumps(_resolved(modality_name, name)))
        case ["convert", source, target]:
            convert(Path(source), Path(target))
        case _:
            raise CheckpointError(
                "usage: python -m refit.checkpoint.convert (resolve MODALITY NAME | convert SOURCE TARGET)"
            )


def _resolved(modality_name: str, name: str) -> dict[str, object]:
    address, described = modality.weights(modality_name).describe_weights(name)
    return {"url": address, "described": as_plain(described)}


def convert(source: Path, target: Path) -> None:
    """Write the tensors of a PyTorch state dict as safetensors.

    Raises:
        CheckpointError: the file needs code to be loaded, is damaged, or is no state dict.
        WorkspaceError: the target cannot be written.
    """
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{source} holds more than tensors (or is no PyTorch file), and loading it would run code from it; "
            "save it again with torch.save(model.state_dict(), …) or as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source} cannot be read as a PyTorch file: {' '.join(str(error).split())}") from None
    tensors = _tensors(content, source)
    with publishing(target) as partial:
        save_file(tensors, partial)


def _tensors(content: Any, source: Path) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{source} is not a state dict (a dictionary of tensors)")
    return {_name_today(str(name)): tensor.clone().contiguous() for name, tensor in content.items()}


def _name_today(name: str) -> str:
    name = name.removeprefix("module.")
    old = _OLD_DENSENET.fullmatch(name)
    return old[1] + old[2] if old else name


if __name__ == "__main__":
    run_stage(main)
