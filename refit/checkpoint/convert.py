"""What `fetch` needs torch for, run as a child process that is thrown away afterwards.

    python -m refit.checkpoint.convert resolve image ResNet18_Weights.DEFAULT  address and preprocessing
    python -m refit.checkpoint.convert convert weights.pth base.safetensors    a state dict, without its pickle
    python -m refit.checkpoint.convert convert weights.pth base.safetensors model_ema     the one under this key
    python -m refit.checkpoint.convert folder text bert/ base.safetensors      several files, and what they say

`torch.load(weights_only=True)` builds tensors and plain containers only. What training scripts put beside the weights
(`_LEFT_OUT`) is read over; any other class is refused. Nothing of the file is ever called, and there is no fallback.
"""

import json
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .. import modality
from ..errors import CheckpointError, run_stage
from ..files import publishing
from ..records import as_plain


class _LeftOut:
    """What stands in for a value that is not wanted: it takes whatever the file says of it, and keeps nothing."""

    def __init__(self, *said: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_LEFT_OUT = (
    """
    argparse.Namespace types.SimpleNamespace
    pathlib.PosixPath pathlib.WindowsPath pathlib._local.PosixPath pathlib._local.WindowsPath
    numpy.dtype numpy.ndarray
    numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct
    numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct
    builtins.dict builtins.list builtins.int builtins.float
    """
).split()
"""What training scripts put beside the weights: settings, paths, NumPy's numbers and arrays."""
_ALLOWED: list[Any] = [(_LeftOut, name) for name in _LEFT_OUT] + [(lambda *_factory: {}, "collections.defaultdict")]
_DEEPEST = 4  # levels at which weights are looked for
_RIVAL = 0.1  # a state dict with fewer tensors than this share of the largest is not the network


def main() -> None:
    match sys.argv[1:]:
        case ["resolve", modality_name, name]:
            print(json.dumps(_resolved(modality_name, name)))
        case ["convert", source, target, *key]:
            print(json.dumps(convert(Path(source), Path(target), *key)))
        case ["folder", modality_name, folder, target]:
            print(json.dumps(_read_folder(modality_name, Path(folder), Path(target))))
        case _:
            raise CheckpointError(
                "usage: python -m refit.checkpoint.convert "
                "(resolve MODALITY NAME | convert SOURCE TARGET [KEY] | folder MODALITY FOLDER TARGET)"
            )


def _resolved(modality_name: str, name: str) -> dict[str, object]:
    address, described = modality.weights(modality_name).describe_weights(name)
    return {"url": address, "described": as_plain(described)}


def _read_folder(modality_name: str, folder: Path, target: Path) -> dict[str, object]:
    with publishing(target) as partial:
        return as_plain(modality.weights(modality_name).read_folder(folder, partial))


def convert(source: Path, target: Path, key: str | None = None) -> dict[str, object]:
    """Write the tensors of a PyTorch state dict as safetensors; give where they lay, and where others lie.

    Args:
        key: where in the file, with dots between the levels; `.` is the file itself. None: the only place.

    Raises:
        CheckpointError: the file needs code to be loaded, is damaged, or holds no state dict or several.
        WorkspaceError: the target cannot be written.
    """
    found = _state_dicts(_content(source))
    if not found:
        raise CheckpointError(f"{source} is not a state dict (a dictionary of tensors), and holds none")
    largest = max(map(len, found.values()))
    rivals = [path for path, tensors in found.items() if len(tensors) >= _RIVAL * largest]
    if key is None and len(rivals) > 1:
        raise CheckpointError(f"{source} holds {_named(found, rivals)}: set `checkpoint.key` to the one that is meant")
    path = rivals[0] if key is None else key
    if path not in found:
        raise CheckpointError(f"{source} has no weights under `checkpoint.key` {key!r}; it holds {_named(found)}")
    tensors = {name: _dense(name, tensor, source) for name, tensor in found[path].items()}
    with publishing(target) as partial:
        save_file(tensors, partial)
    return {"key": path, "others": [other for other in found if other != path]}


def _content(source: Path) -> object:
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            f"{source} holds more than tensors{f' ({named[1]})' if named else ''} or is no PyTorch file, and loading "
            "it would run code from it; save it again with torch.save(model.state_dict(), …) or as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source} cannot be read as a PyTorch file: {' '.join(str(error).split())}") from None
    except Exception as error:  # whatever a damaged or hostile file makes of the plain classes
        raise CheckpointError(f"{source} cannot be read as a PyTorch file: {type(error).__name__}: {error}") from None


def _state_dicts(content: object, path: str = ".", depth: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Every dictionary that looks like a network's, by where it lies: one of its tensors has at least two dimensions.

    So the state of an optimizer, which is by number, and scores, class weights and generators are none.
    """
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    found = {path: tensors} if any(tensor.dim() > 1 for tensor in tensors.values()) else {}
    for name, value in content.items():
        if isinstance(name, str) and not name.startswith("optim"):
            found |= _state_dicts(value, name if path == "." else f"{path}.{name}", depth + 1)
    return found


def _named(found: Mapping[str, Mapping[str, torch.Tensor]], paths: list[str] | None = None) -> str:
    by_size = sorted(found if paths is None else paths, key=lambda path: (-len(found[path]), path))
    shown = ", ".join(f"{path} ({len(found[path])} tensors)" for path in by_size[:6])
    return f"{shown} and {len(by_size) - 6} more" if len(by_size) > 6 else shown


def _dense(name: str, tensor: torch.Tensor, source: Path) -> torch.Tensor:
    if tensor.is_quantized or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(
            f"{source} holds {name} as a tensor without plain values (quantized, sparse or meta); "
            "save the network in float32, float16 or bfloat16"
        )
    return tensor.detach().clone().contiguous()


if __name__ == "__main__":
    run_stage(main)
