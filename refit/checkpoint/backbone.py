"""From the weights of a checkpoint into a network: which names mean the same, and whether enough of them do.

    loaded = load_backbone(network, load_file("checkpoints/base.safetensors"), head, "image", "file:weights.pth")
    say(loaded.table())

Files have the names of the program that wrote them: behind `module.` (several GPUs), `model.` (Lightning), `backbone.`,
with `_orig_mod.` in them (torch.compile). What stands before the network's own names is found by looking at the names:
the prefix with which most values fit.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .. import modality
from ..errors import CheckpointError

_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Modules that torch.compile, FSDP and activation checkpointing put in between, anywhere in a name."""
_COUNTER = "num_batches_tracked"  # of batch norms: older checkpoints (2018) have none, and it changes no output
_SHOWN = 4  # names in a row of the table, or in a message
_FOLDED = 1e-3  # how near 0 and 1 the statistics of batch norms lie that do nothing


@dataclass(frozen=True)
class Loaded:
    """What of a network came from a checkpoint, by the network's names; `unexpected` are the file's."""

    origin: str
    prefix: str  # taken off the file's names
    share: float  # of the backbone's values, those that the file has too much in the same modules counted in
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]  # each with both shapes
    has_folded_norms: bool  # all batch norms are left with mean 0 and variance 1

    def table(self) -> str:
        """For the log: a line, and a table where not everything fits."""
        taken = f" (prefix `{self.prefix}` taken off)" if self.prefix else ""
        lines = [f"{self.origin}: {_percent(self.share)} of the backbone, {len(self.loaded)} tensors{taken}"]
        if rows := self.rows():
            lines += ["| names | count | such as |", "|---|---:|---|"]
            lines += [f"| {what} | {len(names)} | {_some(names)} |" for what, names in rows]
        if self.missing or self.reshaped:
            lines.append("warning: what is missing or of another shape starts from random values")
        if self.has_folded_norms:
            lines.append(
                "warning: all batch norms have mean 0 and variance 1: they were folded into the convolutions, or are "
                "not in the file. Good for `finetune.strategy: head`; other training changes every activation"
            )
        return "\n".join(lines)

    def rows(self) -> list[tuple[str, tuple[str, ...]]]:
        """What does not fit."""
        rows = [("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.reshaped)]
        return [row for row in rows if row[1]]


def load_backbone(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    head: Sequence[str],
    modality_name: str,
    origin: str,
    prefix: str | None = None,
    min_loaded: float = 1.0,
) -> Loaded:
    """Put pretrained weights into `network`, all but the parameters named in `head`, in the network's own precision.

    Args:
        prefix: what stands before the network's names in `weights`; None: found.
        min_loaded: the share of the backbone's values that must come from the checkpoint.

    Raises:
        CheckpointError: less than that fits, with the nearest names and shapes from both sides; several prefixes fit
            alike; or weights are not finite, or no floating point numbers.
    """
    networks = modality.networks(modality_name)
    today = networks.names_today(weights.keys())
    offered = {today[name]: tensor for name, tensor in weights.items()}
    backbone = {name: tensor for name, tensor in network.state_dict().items() if name not in head}
    wanted = {name: tuple(tensor.shape) for name, tensor in backbone.items()}
    prefixes = _prefixes(offered, wanted) if prefix is None else [prefix]
    tried = [_fit(offered, wanted, head, networks.TRAINING_ONLY, prefix) for prefix in prefixes]
    fit = _only([fit for fit in tried if fit.share >= min_loaded], origin)
    if fit is None:
        best = max(tried, key=lambda fit: fit.share)
        raise CheckpointError(_misfit(best, offered, wanted, origin, min_loaded))
    _require_numbers(fit.tensors, backbone, origin)
    state = network.state_dict()  # with the versions of its modules, which MNASNet asks for
    state.update(fit.tensors)
    network.load_state_dict(state)
    return Loaded(
        origin,
        fit.prefix,
        fit.share,
        tuple(fit.tensors),
        fit.missing,
        fit.unexpected,
        fit.reshaped,
        _is_folded(network),
    )


@dataclass(frozen=True)
class _Fit:
    """How a file fits with one prefix."""

    prefix: str
    share: float
    tensors: Mapping[str, Tensor]  # what can be loaded, by the network's names
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]


def _fit(
    offered: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    head: Sequence[str],
    training_only: Sequence[str],
    prefix: str,
) -> _Fit:
    named = {_bare(name[len(prefix) :]): name for name in offered if name.startswith(prefix)}
    left_out = {*head, *(name for name in named if name.startswith(tuple(training_only)))}
    same = {name: offered[named[name]] for name in wanted if name in named}
    fitting = {name: tensor for name, tensor in same.items() if tuple(tensor.shape) == wanted[name]}
    extra = sorted(name for name in named.keys() - wanted.keys() - left_out if not name.endswith(_COUNTER))
    modules = {name.split(".")[0] for name in wanted}
    surplus = [name for name in extra if name.split(".")[0] in modules]  # of a deeper network of the same family
    values = {name: math.prod(shape) for name, shape in wanted.items() if not name.endswith(_COUNTER)}
    all_values = sum(values.values()) + sum(offered[named[name]].numel() for name in surplus)
    return _Fit(
        prefix=prefix,
        share=sum(values.get(name, 0) for name in fitting) / max(all_values, 1),
        tensors=fitting,
        missing=tuple(sorted(name for name in wanted.keys() - same.keys() if not name.endswith(_COUNTER))),
        unexpected=(
            *(named[name] for name in extra),
            *sorted(name for name in offered if not name.startswith(prefix)),
        ),
        reshaped=tuple(
            f"{name} {tuple(tensor.shape)} instead of {wanted[name]}"
            for name, tensor in sorted(same.items())
            if name not in fitting
        ),
    )


def _prefixes(offered: Iterable[str], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Everything that stands before a name of the network in a name of the file, the shortest first."""
    found: set[str] = set()
    for name in offered:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        found |= {name[:at] for at in starts if not _WRAPPERS.match(name[at:]) and _bare(name[at:]) in wanted}
    return sorted(found, key=lambda prefix: (len(prefix), prefix)) or [""]


def _only(enough: Sequence[_Fit], origin: str) -> _Fit | None:
    if len(enough) > 1:
        named = ", ".join(f"{fit.prefix!r}" for fit in enough)
        raise CheckpointError(
            f"the checkpoint {origin} holds the network more than once, behind {named}: set `checkpoint.prefix` to the "
            "one that is meant"
        )
    return enough[0] if enough else None


def _misfit(
    fit: _Fit, offered: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], origin: str, min_loaded: float
) -> str:
    """Why it is not the network's checkpoint, in a line that shows names from both sides."""
    rows = Loaded(origin, fit.prefix, fit.share, (), fit.missing, fit.unexpected, fit.reshaped, False).rows()
    differences = "; ".join(f"{what}: {_some(names)}" for what, names in rows)
    shapes = {name: tuple(offered[name].shape) for name in fit.unexpected}
    near = {name: difflib.get_close_matches(name, shapes, n=1, cutoff=0.4) for name in fit.missing[:_SHOWN]}
    pairs = [f"{name} {wanted[name]} ~ {found[0]} {shapes[found[0]]}" for name, found in near.items() if found]
    nearest = f". Nearest (the network's ~ the file's): {', '.join(pairs)}" if pairs else ""
    known = [found for found in _prefixes(offered, wanted) if found != fit.prefix]
    other = f", or set `checkpoint.prefix` to what stands before its names, such as {known[-1]!r}" if known else ""
    return (
        f"the checkpoint {origin} brings {_percent(fit.share)} of the backbone of `finetune.model`, and "
        f"`checkpoint.min_loaded` asks for {min_loaded:.0%}: {len(fit.tensors)} names fit; {differences}{nearest}. "
        f"Choose the model that the checkpoint was made with{'' if fit.tensors else other}"
    )


def _require_numbers(tensors: Mapping[str, Tensor], backbone: Mapping[str, Tensor], origin: str) -> None:
    for name, tensor in tensors.items():
        if backbone[name].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(f"the checkpoint {origin} holds {name} as {tensor.dtype}: it is a quantized network")
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise CheckpointError(f"the checkpoint {origin} holds values that are not finite, first in {name}")


def _is_folded(network: nn.Module) -> bool:
    """A batch norm that was trained has statistics; one that was folded into its convolution does nothing."""
    state = network.state_dict()
    means = [tensor for name, tensor in state.items() if name.endswith("running_mean")]
    variances = [tensor for name, tensor in state.items() if name.endswith("running_var")]
    return bool(means) and all(
        bool(((tensor - neutral).abs() <= _FOLDED).all())
        for tensors, neutral in ((means, 0.0), (variances, 1.0))
        for tensor in tensors
    )


def _bare(name: str) -> str:
    return _WRAPPERS.sub("", name)


def _percent(share: float) -> str:
    """Rounded down: 100.0% is all of it."""
    return f"{math.floor(1000 * share) / 10:.1f}%"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
