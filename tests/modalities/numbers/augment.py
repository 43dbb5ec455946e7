"""Numbers with a little noise."""

from torch import Tensor

from .files import COUNT
from .settings import Finetune

NUM_DRAWS = COUNT


def augment(examples: Tensor, draws: Tensor, settings: Finetune) -> Tensor:
    """(n, 4) and (n, 4) draws -> (n, 4)."""
    return examples + settings.noise * (2 * draws - 1)
