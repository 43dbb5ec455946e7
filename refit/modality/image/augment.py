"""Random changes to pictures while a network learns them."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from .settings import Augment, Finetune

NUM_DRAWS = 5
"""How many uniform numbers `augment` wants for each picture."""


def augment(examples: Tensor, draws: Tensor, settings: Finetune) -> Tensor:
    """`distort` by the section `image.finetune` of params.yaml."""
    return distort(examples, draws, settings.augment)


def distort(examples: Tensor, draws: Tensor, settings: Augment) -> Tensor:
    """Rotate, scale, shift and mirror each picture by its own random amount, in one resampling.

    Args:
        examples: (n, 3, height, width) uint8.
        draws: (n, NUM_DRAWS) float32, uniform in [0, 1).

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
