"""Published weights of networks for pictures, and the preprocessing that a base checkpoint was trained with."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torchvision.models

from ...errors import CheckpointError, ParamsError
from ...records import as_plain
from ..contract import Described
from .preprocessing import Preprocessing, read_preprocessing
from .settings import Finetune

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def describe_weights(name: str) -> tuple[str, Described]:
    """(address, description) of weights that torchvision publishes.

    Raises:
        CheckpointError: torchvision knows no such weights; the message lists the near ones.
    """
    published = [
        entry
        for model in torchvision.models.list_models(module=torchvision.models)  # the classifiers in full precision
        for entry in torchvision.models.get_model_weights(model)
    ]
    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, KeyError):
        weights = None
    if weights not in published:
        family = name.split("_")[0].split(".")[0].lower()
        near = [str(entry) for entry in published if str(entry).lower().startswith(family)]
        raise CheckpointError(
            f"torchvision has no weights {name!r} of a classifier; "
            + (f"near ones: {', '.join(near)}" if near else "an example of a name: ResNet18_Weights.IMAGENET1K_V1")
        )
    preset = weights.transforms()
    preprocessing = Preprocessing(
        resize_size=preset.resize_size[0],
        crop_size=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    return weights.url, Described(
        architecture=type(weights).__name__.removesuffix("_Weights").lower(),
        preprocessing=as_plain(preprocessing),
        classes=tuple(weights.meta["categories"]),
    )


def preprocessing_for(base: Mapping[str, object] | None, settings: Finetune) -> Preprocessing:
    """The preprocessing that a base checkpoint was trained with, at another size if one is asked for.

    Args:
        base: what the checkpoint's card says of it; None: nothing.
        settings: the section `image.finetune` of params.yaml.

    Raises:
        ParamsError: neither the checkpoint nor params.yaml says how large the pictures are.
    """
    size = settings.size
    if base is None:
        if size is None:
            raise ParamsError(
                "the base checkpoint does not say which image size it was trained with; "
                "set `image.finetune.size` in params.yaml (224 for most networks trained on ImageNet)"
            )
        return Preprocessing(
            resize_size=size, crop_size=size, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
    known = read_preprocessing(base, "the base checkpoint")
    if size is None:
        return known
    return dataclasses.replace(known, resize_size=round(known.resize_size * size / known.crop_size), crop_size=size)


def read_folder(folder: Path, target: Path) -> Described:  # noqa: ARG001
    """Always a refusal: a checkpoint for pictures is one file.

    Raises:
        CheckpointError: with what to write.
    """
    raise CheckpointError(f"{folder} is a folder; name the file in it that has the weights")
