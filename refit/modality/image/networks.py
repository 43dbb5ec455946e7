"""The networks that read pictures: torchvision's classifiers, and the user's own. A registered model carries this."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ParamsError
from .. import own
from ..contract import LayerGroup
from .preprocessing import Preprocessing

extents = None
"""All squares are of one size."""

TRAINING_ONLY = ("AuxLogits.", "aux1.", "aux2.")  # of inception and googlenet: for training from scratch
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))")
"""Names such as denselayer1.norm.1.weight, which the published DenseNets still bear; today it is norm1.weight. Each
loader of torchvision renames them (torchvision/models/densenet.py, _load_state_dict)."""
_OLD_MOBILENET = re.compile(r".*features\.1\.conv\.1\.running_mean")
"""A name that only the MobileNetV2 from before torchvision had one has, whose layout other programs still write."""
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def build_network(
    architecture: str,
    num_outputs: int,
    head_dropout: float = 0.0,
    preprocessing: Preprocessing | None = None,  # noqa: ARG001
) -> nn.Module:
    """A network with random weights: (n, 3, height, width) float32 -> logits (n, num_outputs).

    Args:
        architecture: torchvision's name, or package.module:factory.

    Raises:
        ParamsError: the user's own network cannot be built, or has no output layer of that width.
    """
    network = (
        _own(architecture, num_outputs) if own.is_own(architecture) else _of_torchvision(architecture, num_outputs)
    )
    network = network.to(memory_format=torch.channels_last)
    if head_dropout:
        _, head = _head(network, num_outputs)
        head.register_forward_pre_hook(
            lambda module, inputs: (functional.dropout(inputs[0], head_dropout, module.training),)
        )
    return network


def _own(architecture: str, num_outputs: int) -> nn.Module:
    network = own.build(architecture, num_outputs)
    if not isinstance(network, nn.Module):
        raise ParamsError(f"{architecture} must give a torch.nn.Module, found {type(network).__name__}")
    if not _heads(network, num_outputs):
        raise ParamsError(f"{architecture} has no output layer: no nn.Linear or nn.Conv2d with {num_outputs} outputs")
    return network


def _of_torchvision(architecture: str, num_outputs: int) -> nn.Module:
    options: dict[str, Any] = {}
    if architecture in ("googlenet", "inception_v3"):
        # Their published weights come from TensorFlow and want its range of inputs; torchvision sets
        # transform_input whenever it loads them. Always set here, it follows from the architecture alone.
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    network: nn.Module = torchvision.models.get_model(architecture, weights=None, num_classes=num_outputs, **options)
    return network


def head_parameters(network: nn.Module, num_outputs: int) -> list[str]:
    """Names of the parameters of the output layer: what is new for a new set of classes."""
    name, head = _head(network, num_outputs)
    return [f"{name}.{parameter}" for parameter, _ in head.named_parameters()]


def _head(network: nn.Module, num_outputs: int) -> tuple[str, nn.Module]:
    """torchvision names the output layer differently in each family; it is the last one of the right width."""
    return _heads(network, num_outputs)[-1]


def _heads(network: nn.Module, num_outputs: int) -> list[tuple[str, nn.Module]]:
    return [
        (name, module)
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_outputs)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_outputs)
    ]


def layer_groups(network: nn.Module, head: Sequence[str]) -> list[LayerGroup]:
    """The blocks of a network from the input to the output, each with its parameters; `head` is the last one.

    Blocks are found in the tree of modules: lists and sequences are split, and so is what holds a list of blocks. What
    has no weights of its own, such as a norm or a token, belongs to the block before it, and to the first one if there
    is none. The order is that in which the network's modules were defined.
    """
    order = {name: index for index, (name, _) in enumerate(network.named_parameters())}
    waiting = order.keys() - set(head)
    found: list[tuple[str, list[str]]] = []
    for name, parameters, is_block in _units(network, "", frozenset(waiting), frozenset(head)):
        own = [parameter for parameter in parameters if parameter in waiting]  # a shared one counts once
        waiting -= set(own)
        if found and (not is_block or not found[-1][0]):
            found[-1] = (found[-1][0] or (name if is_block else ""), found[-1][1] + own)
        elif own:
            found.append((name if is_block else "", own))
    found.append((head[0].rpartition(".")[0], list(head)))
    return [LayerGroup(name, tuple(sorted(parameters, key=order.__getitem__))) for name, parameters in found]


def _units(
    module: nn.Module, name: str, backbone: frozenset[str], head: frozenset[str]
) -> Iterator[tuple[str, list[str], bool]]:
    """(name, names of parameters, whether it is a block) in the order of the tree of modules."""
    prefix = f"{name}." if name else ""
    everything = {f"{prefix}{own}" for own, _ in module.named_parameters()}
    is_split = everything >= backbone or not head.isdisjoint(everything) or _is_split(module)
    own = [f"{prefix}{own}" for own, _ in module.named_parameters(recurse=not is_split)]
    yield name, own, not is_split and _num_layers(module) > 0
    for child_name, child in module.named_children() if is_split else ():
        yield from _units(child, f"{prefix}{child_name}", backbone, head)


def _is_split(module: nn.Module) -> bool:
    """Whether a module is several blocks. Two layers side by side inside of a block do not make it two."""
    if isinstance(module, _CONTAINERS):
        children = list(module.children())
        return sum(_num_layers(child) > 0 for child in children) > 1 or any(map(_is_split, children))
    lists = (part for part in module.modules() if isinstance(part, _CONTAINERS))
    return any(sum(_num_layers(child) > 1 for child in part.children()) > 1 for part in lists)


def _num_layers(module: nn.Module) -> int:
    """How many modules in it have weights: a convolution or a linear layer with its norm is one."""
    return sum(any(weight.ndim > 1 for weight in part.parameters(recurse=False)) for part in module.modules())


def names_today(names: Collection[str]) -> dict[str, str]:
    """The names of a checkpoint's tensors -> what torchvision calls them today, behind whatever prefix."""
    is_old_mobilenet = any(_OLD_MOBILENET.fullmatch(name) for name in names)
    return {name: _mobilenet_today(name) if is_old_mobilenet else _densenet_today(name) for name in names}


def _densenet_today(name: str) -> str:
    old = _OLD_DENSENET.fullmatch(name)
    return old[1] + old[2] if old else name


def _mobilenet_today(name: str) -> str:
    """A block's layers had one number each; today each convolution is a block with its norm, but for the last one."""
    old = re.fullmatch(r"(.*features\.(\d+)\.conv\.)(\d)\.(\w+)", name)
    if old is None:
        return name
    last = 3 if old[2] == "1" else 6  # the first block does not expand its input
    position = int(old[3])
    place = f"{position // 3}.{position % 3}" if position < last else f"{last // 3 + position - last}"
    return f"{old[1]}{place}.{old[4]}"


def network_input(examples: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(n, 3, height, width), uint8 or float in [0, 255] -> the same shape, float32, normalised per channel."""
    mean = torch.tensor(preprocessing.mean, device=examples.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=examples.device).view(1, 3, 1, 1) * 255
    # Channels last: convolutions of a batch of pictures run 1.5 times as fast on a CPU, and more on a GPU.
    return ((examples.float() - mean) / std).contiguous(memory_format=torch.channels_last)
