"""Random changes to pictures while a network learns them."""

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from .settings import Augment, Finetune

NUM_DRAWS = 7
"""How many uniform numbers `augment` wants for each picture: five for `distort`, two for a policy."""

_POLICIES = {
    "trivial_augment": v2.TrivialAugmentWide,  # Müller and Hutter 2021
    "rand_augment": v2.RandAugment,  # Cubuk et al. 2020
    "auto_augment": v2.AutoAugment,  # Cubuk et al. 2019, the policy of ImageNet
}


def augment(examples: Tensor, draws: Tensor, settings: Finetune) -> Tensor:
    """The section `image.finetune.augment` of params.yaml: a policy, then `distort`.

    Args:
        examples: (n, 3, height, width) uint8.
        draws: (n, NUM_DRAWS) float32, uniform in [0, 1).

    Returns:
        (n, 3, height, width), float32 in [0, 255].
    """
    if settings.augment.policy != "none":
        transform = _POLICIES[settings.augment.policy]()
        seeds = (draws[:, 5:] * 2**24).long().tolist()  # float32 has that many steps
        examples = torch.stack([_changed(*each, transform) for each in zip(examples, seeds, strict=True)])
    return distort(examples, draws, settings.augment)


def _changed(picture: Tensor, seed: list[int], transform: v2.Transform) -> Tensor:
    torch.default_generator.manual_seed(seed[0] << 24 | seed[1])  # the policies draw on the CPU
    changed: Tensor = transform(picture)
    return changed


def distort(examples: Tensor, draws: Tensor, settings: Augment) -> Tensor:
    """Rotate, scale, shift and mirror each picture by its own random amount, in one resampling.

    Args:
        examples: (n, 3, height, width) uint8.
        draws: (n, 5 or more) float32, uniform in [0, 1).

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
