"""Random changes to texts while a network learns them."""

import torch
from torch import Tensor

from .networks import HIDDEN
from .settings import Finetune

NUM_DRAWS = 2


def augment(examples: Tensor, draws: Tensor, settings: Finetune) -> Tensor:
    """Hide a run of tokens of each text, of random length and place; never its first and its last token.

    Args:
        examples: (n, max_tokens + 1) as `prepare` gives them.
        draws: (n, 2) float32, uniform in [0, 1).

    Returns:
        The same, with HIDDEN for what is hidden.
    """
    if not settings.hide:
        return examples
    inner = (examples >= 0).sum(1) - 2  # (n,)
    length = (draws[:, 0] * settings.hide * inner).floor()
    start = 1 + (draws[:, 1] * (inner - length + 1)).floor()
    place = torch.arange(examples.shape[1], device=examples.device)  # (max_tokens,)
    is_hidden = (place >= start[:, None]) & (place < (start + length)[:, None])
    return examples.masked_fill(is_hidden, HIDDEN)
