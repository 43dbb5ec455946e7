"""What a training will do, decided before it begins: everything that params.yaml leaves on `auto`, with the reason.

    plan = make_plan(facts, settings)        pure: the same facts give the same plan

What the defaults rest on, and how little that is yet, is in docs/training.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ParamsError
from ..modality.contract import LayerGroup
from ..params import Finetune

PROBE_LEARNING_RATE = 0.003
"""AdamW's peak rate where only the head learns ahead of the rest."""

_PROBE_EPOCHS = 10


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a plan depends on beside the settings."""

    num_train: int
    num_classes: int
    is_pretrained: bool
    pretrained_rate: float = 0.0003  # the modality's peak rate where pretrained layers learn


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Some epochs with the same layers learning."""

    name: str
    first_group: int  # the layer groups from this one on learn, those below are frozen
    epochs: int
    learning_rate: float  # AdamW's peak rate at the top of the backbone


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done, and why."""

    strategy: Literal["head", "lp_ft", "staged", "full"]
    phases: tuple[Phase, ...]
    batch_size: int
    views: int  # copies of each example whose features are kept where layers are frozen; the first one is unchanged
    reasons: tuple[str, ...]

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def in_words(self) -> tuple[str, ...]:
        """What will be done, then the reasons, a line each."""
        phases = "; then ".join(
            f"{phase.name}, {phase.epochs} epochs at up to {phase.learning_rate:g}" for phase in self.phases
        )
        return (f"{self.strategy}: {phases}; batches of {self.batch_size}", *self.reasons)


def make_plan(facts: Facts, groups: Sequence[LayerGroup], settings: Finetune) -> Plan:
    """The plan for these facts.

    Raises:
        ParamsError: `finetune.freeze_until` names no part of the network, or leaves nothing to learn.
    """
    reasons: list[str] = []
    head, lowest = len(groups) - 1, _first_after(settings.freeze_until, groups)
    strategy = settings.strategy
    if strategy == "auto":
        strategy = _strategy(facts, reasons)
    batch_size = settings.batch_size
    if batch_size == "auto":
        batch_size = _batch_size(facts, reasons)
    rate = settings.learning_rate
    if rate == "auto":
        rate = _learning_rate(facts, strategy, reasons)
    probe = Phase(name="head", first_group=head, epochs=_PROBE_EPOCHS, learning_rate=PROBE_LEARNING_RATE)
    full = Phase(name="full", first_group=lowest, epochs=settings.epochs, learning_rate=rate)
    match strategy:
        case "head":
            phases: tuple[Phase, ...] = (replace(probe, epochs=settings.epochs, learning_rate=rate),)
        case "full":
            phases = (full,)
        case "lp_ft":
            phases = (probe, full)
        case "staged":
            half = Phase(name="top", first_group=(head + lowest) // 2, epochs=settings.epochs // 2, learning_rate=rate)
            phases = (probe, half, replace(full, epochs=settings.epochs - half.epochs))
    _say_what_rests(phases, settings, reasons)
    phases = _within_budget(phases, facts.num_train, batch_size, settings.max_steps, reasons)
    return Plan(strategy=strategy, phases=phases, batch_size=batch_size, views=settings.views, reasons=tuple(reasons))


def num_steps(num_examples: int, batch_size: int) -> int:
    """Of an epoch: a last batch of one joins the one before, since batch norm needs two."""
    full, rest = divmod(num_examples, batch_size)
    return max(1, full + (rest > 1))


def _strategy(facts: Facts, reasons: list[str]) -> Literal["head", "lp_ft", "full"]:
    if not facts.is_pretrained:
        reasons.append("strategy full: without pretrained weights all layers must learn")
        return "full"
    reasons.append("strategy lp_ft: a head that fits the pretrained features first keeps them from being torn")
    return "lp_ft"


def _batch_size(facts: Facts, reasons: list[str]) -> int:
    size = 64
    while size > 16 and facts.num_train < 20 * size:
        size //= 2
    reasons.append(f"batch_size {size}: at least 20 steps an epoch with {facts.num_train:,} examples, from 16 to 64")
    return size


def _learning_rate(facts: Facts, strategy: str, reasons: list[str]) -> float:
    rate = PROBE_LEARNING_RATE if strategy == "head" else facts.pretrained_rate if facts.is_pretrained else 0.002
    reasons.append(f"learning_rate {rate}: for {strategy}, see docs/training.md")
    return rate


def _say_what_rests(phases: tuple[Phase, ...], settings: Finetune, reasons: list[str]) -> None:
    """What is asked for and does nothing where only features of frozen layers are read."""
    frozen = [phase.name for phase in phases if phase.first_group and phase.epochs]
    asked = [name for name in ("mixup", "cutmix") if getattr(settings, name)]
    if frozen and asked:
        reasons.append(f"{' and '.join(asked)}: not in phase {', '.join(frozen)}, which learns on kept features")


def _within_budget(
    phases: tuple[Phase, ...], num_train: int, batch_size: int, max_steps: int | None, reasons: list[str]
) -> tuple[Phase, ...]:
    """Fewer epochs where the steps would be too many; a phase of none is left out.

    Raises:
        ParamsError: the budget is less than an epoch for each phase.
    """
    steps = num_steps(num_train, batch_size)
    phases = tuple(phase for phase in phases if phase.epochs)
    if max_steps is None or steps * sum(phase.epochs for phase in phases) <= max_steps:
        return phases
    if max_steps < steps * len(phases):
        raise ParamsError(
            f"`finetune.max_steps` is {max_steps:,}, less than an epoch for each phase: {len(phases)} of {steps:,}"
        )
    share = max_steps / (steps * sum(phase.epochs for phase in phases))
    reasons.append(f"{share:.0%} of the epochs: no more than {max_steps:,} steps, `finetune.max_steps`")
    left = max_steps // steps
    kept = []
    for after, phase in zip(range(len(phases) - 1, -1, -1), phases, strict=True):
        kept.append(replace(phase, epochs=min(max(1, int(phase.epochs * share)), left - after)))
        left -= kept[-1].epochs
    return tuple(kept)


def _first_after(freeze_until: str | None, groups: Sequence[LayerGroup]) -> int:
    """The first layer group that may learn: the one after the module, which is a group, a part of one, or several."""
    if freeze_until is None:
        return 0
    inside = [
        index
        for index, group in enumerate(groups)
        if any(f"{name}.".startswith(f"{freeze_until}.") for name in (group.name, *group.parameters))
    ]
    if not inside or inside[-1] == len(groups) - 1:
        raise ParamsError(
            f"`finetune.freeze_until` is {freeze_until!r}, "
            + ("the output layer, so that nothing would learn" if inside else "which is no module of this network")
            + f"; from the input on: {', '.join(group.name for group in groups[:-1])}"
        )
    return inside[-1] + 1
