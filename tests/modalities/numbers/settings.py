"""What params.yaml may say of numbers."""

from pydantic.dataclasses import dataclass

from ...params import STRICT, Policy

SLICES = ("sign",)
STATISTICS = ("largest",)
CHECKPOINT_FILES = ()
MIXES = ("mixup",)
LEARNING_RATE = 0.001
ARCHITECTURES = ("line",)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rules:
    """What may be wrong with numbers."""

    largest: Policy


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Validate:
    """Which numbers are good enough."""

    rules: Rules
    largest: float


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Finetune:
    """How they are changed."""

    noise: float


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NumbersSettings:
    """The section `numbers`."""

    validate: Validate
    finetune: Finetune


SETTINGS = NumbersSettings


def contradictions(settings: NumbersSettings, is_from_scratch: bool) -> list[str]:
    """There are none."""
    return []
