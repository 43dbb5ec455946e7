"""The torch half of the image modality: how pictures become batches, and which network reads them.

The only importer of torchvision. A preprocessing is a plain dictionary that travels with the weights:

    resize_size    the shorter side is scaled to this, in pixels    crop_size    then a centred square of this
    interpolation  bilinear or bicubic                              mean, std    of RGB in [0, 1], per channel

Examples are kept as uint8 until they reach the device that trains; they are decoded once per process.
"""

import hashlib
import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ...errors import CheckpointError, DataError, ParamsError
from ...params import Augment
from ...progress import track
from . import files as image_file

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NUM_AUGMENT_DRAWS = 5
"""How many uniform numbers `augment` wants for each picture."""

_AUXILIARY_HEADS = ("AuxLogits.", "aux1.", "aux2.")  # of inception and googlenet: for training from scratch only


def describe_weights(name: str) -> dict[str, Any]:
    """Address, architecture, preprocessing and classes of weights that torchvision publishes.

    Raises:
        CheckpointError: torchvision knows no such weights; the message lists the near ones.
    """
    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, KeyError):
        family = name.split("_")[0].split(".")[0].lower()
        known = [
            str(entry)
            for model in torchvision.models.list_models(module=torchvision.models)
            for entry in torchvision.models.get_model_weights(model)
            if str(entry).lower().startswith(family)
        ]
        raise CheckpointError(
            f"torchvision has no weights {name!r}; "
            + (f"near ones: {', '.join(known)}" if known else "an example of a name: ResNet18_Weights.IMAGENET1K_V1")
        ) from None
    preset = weights.transforms()
    return {
        "url": weights.url,
        "architecture": type(weights).__name__.removesuffix("_Weights").lower(),
        "preprocessing": {
            "resize_size": preset.resize_size[0],
            "crop_size": preset.crop_size[0],
            "interpolation": preset.interpolation.value,
            "mean": list(preset.mean),
            "std": list(preset.std),
        },
        "classes": list(weights.meta["categories"]),
    }


def preprocessing_for(card: dict[str, Any], image_size: int | None) -> dict[str, Any]:
    """The preprocessing that a base checkpoint was trained with, at another size if one is asked for.

    Raises:
        ParamsError: neither the checkpoint nor params.yaml says how large the pictures are.
    """
    known = card.get("preprocessing")
    if known is None:
        if image_size is None:
            raise ParamsError(
                "the base checkpoint does not say which image size it was trained with; "
                "set `finetune.image_size` in params.yaml (224 for most networks trained on ImageNet)"
            )
        return {"resize_size": image_size, "crop_size": image_size, "interpolation": "bilinear", **IMAGENET}
    if image_size is None:
        return dict(known)
    resize_size = round(known["resize_size"] * image_size / known["crop_size"])
    return known | {"resize_size": resize_size, "crop_size": image_size}


def build_network(architecture: str, num_outputs: int, head_dropout: float = 0.0) -> nn.Module:
    """A network with random weights: (n, 3, height, width) float32 -> logits (n, num_outputs)."""
    options: dict[str, Any] = {}
    if architecture in ("googlenet", "inception_v3"):
        # Their published weights come from TensorFlow and want its range of inputs; torchvision sets
        # transform_input whenever it loads them. Always set here, it follows from the architecture alone.
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    network: nn.Module = torchvision.models.get_model(
        architecture, weights=None, num_classes=num_outputs, **options
    ).to(memory_format=torch.channels_last)
    if head_dropout:
        _, head = _head(network, num_outputs)
        head.register_forward_pre_hook(
            lambda module, inputs: (functional.dropout(inputs[0], head_dropout, module.training),)
        )
    return network


def head_parameters(network: nn.Module, num_outputs: int) -> list[str]:
    """Names of the parameters of the output layer: what is new for a new set of classes."""
    name, head = _head(network, num_outputs)
    return [f"{name}.{parameter}" for parameter, _ in head.named_parameters()]


def _head(network: nn.Module, num_outputs: int) -> tuple[str, nn.Module]:
    """torchvision names the output layer differently in each family; it is the last one of the right width."""
    heads = [
        (name, module)
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_outputs)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_outputs)
    ]
    return heads[-1]


def load_backbone(network: nn.Module, weights: dict[str, Tensor], head: Sequence[str], origin: str) -> None:
    """Put pretrained weights into `network`, all but the parameters named in `head`.

    The counters `num_batches_tracked` of batch norms may be missing, as in checkpoints older than them (2018).

    Raises:
        CheckpointError: any other difference between the two, listed from both sides, or weights that are not
            finite.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name not in head}
    offered = {
        name: tensor for name, tensor in weights.items() if name not in head and not name.startswith(_AUXILIARY_HEADS)
    }
    missing = sorted(name for name in wanted.keys() - offered.keys() if not name.endswith(".num_batches_tracked"))
    unknown = sorted(offered.keys() - wanted.keys())
    reshaped = [
        f"{name} {tuple(offered[name].shape)} instead of {wanted[name]}"
        for name in sorted(wanted.keys() & offered.keys())
        if tuple(offered[name].shape) != wanted[name]
    ]
    if missing or unknown or reshaped:
        differences = [
            f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
            for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", reshaped))
            if names
        ]
        raise CheckpointError(
            f"the checkpoint {origin} does not fit `finetune.model`: {'; '.join(differences)}. "
            "Choose the model that the checkpoint was made with"
        )
    damaged = [name for name, tensor in offered.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if damaged:
        raise CheckpointError(f"the checkpoint {origin} holds values that are not finite, first in {damaged[0]}")
    network.load_state_dict(offered, strict=False)


def read_examples(files: Sequence[tuple[str, str]], preprocessing: dict[str, Any], what: str) -> Tensor:
    """Decode files, each given as (path, SHA-256), into one array (n, 3, crop_size, crop_size) uint8.

    Raises:
        DataError: a file is gone, or is not the one that was validated.
    """
    size = preprocessing["crop_size"]
    examples = torch.empty((len(files), 3, size, size), dtype=torch.uint8)

    def read(index: int) -> None:
        path, sha256 = files[index]
        examples[index] = torch.from_numpy(prepare(_verified_bytes(path, sha256), preprocessing))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in track(pool.map(read, range(len(files))), what, len(files)):
            pass
    return examples


def prepare(picture: bytes | np.ndarray, preprocessing: dict[str, Any]) -> np.ndarray:
    """One picture as the network's square (3, crop_size, crop_size) uint8.

    Args:
        picture: an encoded file, or pixels as (height, width), or (height, width, channels) with 1 channel
            (gray), 3 (RGB) or 4 (RGBA), uint8.

    Raises:
        ValueError: the picture cannot be read; the message is for the user.
    """
    image = _from_pixels(picture) if isinstance(picture, np.ndarray) else image_file.decode(picture)
    rgb = image_file.to_rgb(image)
    resize, crop = preprocessing["resize_size"], preprocessing["crop_size"]
    width, height = (max(crop, side * resize // min(rgb.size)) for side in rgb.size)
    rgb = rgb.resize((width, height), Image.Resampling[preprocessing["interpolation"].upper()])
    left, top = round((width - crop) / 2), round((height - crop) / 2)  # rounded as torchvision does
    square = rgb.crop((left, top, left + crop, top + crop))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))  # (3, crop, crop) uint8


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or not pixels.size:
        raise ValueError(
            f"pixels must be (height, width) or (height, width, 1, 3 or 4) uint8, found {pixels.shape} {pixels.dtype}"
        )
    image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and channels == 1 else pixels)
    image_file.refuse_ribbon(image)
    return image


def network_input(examples: Tensor, preprocessing: dict[str, Any]) -> Tensor:
    """(n, 3, height, width), uint8 or float in [0, 255] -> the same shape, float32, normalised per channel."""
    mean = torch.tensor(preprocessing["mean"], device=examples.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing["std"], device=examples.device).view(1, 3, 1, 1) * 255
    # Channels last: convolutions of a batch of pictures run 1.5 times as fast on a CPU, and more on a GPU.
    return ((examples.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(examples: Tensor, draws: Tensor, settings: Augment) -> Tensor:
    """Rotate, scale, shift and mirror each picture by its own random amount, in one resampling.

    Args:
        examples: (n, 3, height, width) uint8.
        draws: (n, NUM_AUGMENT_DRAWS) float32, uniform in [0, 1).

    Returns:
        (n, 3, height, width) float32 in [0, 255]; what comes from outside a picture is black.
    """
    signed = 2 * draws - 1  # (n, 5) in [-1, 1)
    angle = signed[:, 0] * math.radians(settings.rotation)
    zoom = torch.exp(-signed[:, 1] * math.log(settings.scale))
    flip = torch.ones_like(zoom)
    if settings.horizontal_flip:
        flip = torch.where(draws[:, 4] < 0.5, -1.0, 1.0)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    shift_x, shift_y = (2 * settings.translation * signed[:, column] for column in (2, 3))
    rows = (torch.stack([flip * cos, -sin, shift_x], 1), torch.stack([flip * sin, cos, shift_y], 1))
    grid = functional.affine_grid(torch.stack(rows, 1), list(examples.shape), align_corners=False)
    return functional.grid_sample(examples.float(), grid, align_corners=False)


def _verified_bytes(path: str, sha256: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} was validated but cannot be read now ({error.strerror}); run `dvc repro -f ingest`"
        ) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path} was changed after it was validated; run `dvc repro -f ingest`")
    return content


def as_png(pixels: np.ndarray) -> bytes:
    """(3, height, width) uint8 as an encoded PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()
