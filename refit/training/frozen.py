"""A network cut in two where its frozen layers end, so that these run once for each example and not in every epoch.

    split = frozen.split(network, names_of_frozen_parameters, sample)
    rows = split.prefix(inputs)      # cached
    logits = split.suffix(rows)      # trained

The network is traced with torch.fx, each frozen or trainable block as one node. The prefix is what does not depend on
any trainable parameter; modules in it run in evaluation mode. A dropout with no frozen layer between it and the first
trainable one stays in the suffix.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd


@dataclass(frozen=True)
class Split:
    """The two parts of a network. They share its modules, so that to train the suffix is to train the network.

    `network.eval()` followed by `suffix.train()` puts the whole network in the mode in which the suffix trains.
    Both parts work under the autocast state in which the network was split.
    """

    prefix: Callable[[Tensor], Tensor]
    """Inputs (n, …) -> rows (n, d), without gradients and in evaluation mode, whatever mode the network is in."""
    suffix: nn.Module
    """Rows (n, d) -> logits (n, num_outputs). Its modes are `train()` and `eval()`; what is frozen in it stays in
    evaluation mode. It does not change the rows."""


def split(network: nn.Module, frozen: Collection[str], sample: Tensor) -> Split | None:
    """Cut `network` behind its frozen layers.

    Args:
        frozen: names of the parameters that do not learn.
        sample: (n, …) as the network reads it; of two examples or more if it has several paths by size.

    Returns:
        None where there is nothing to gain (no frozen layer at the input, or no trainable one), or where the two parts
        do not give the bits of the whole network.
    """
    names = dict(network.named_parameters())
    trainable = {parameter for name, parameter in names.items() if name not in set(frozen)}
    if not trainable or len(trainable) == len(names):
        return None
    with _evaluating(network), torch.no_grad():
        whole = network(sample)
        for cut in (_cut_by_trace, _cut_at_module):
            found = cut(network, trainable, sample)
            if found and torch.equal(found.suffix.eval()(found.prefix(sample)), whole):
                return found
    return None


def set_training(network: nn.Module, frozen: Collection[str]) -> None:
    """Training mode for a network that could not be split; modules all of whose parameters are frozen evaluate."""
    learning = {parameter for name, parameter in network.named_parameters() if name not in set(frozen)}
    network.train()
    _evaluate_frozen(network, learning)


def _cut_by_trace(network: nn.Module, trainable: set[nn.Parameter], sample: Tensor) -> Split | None:
    """Cut the graph of the network at the last values that no trainable parameter has touched."""
    graph = _trace(network, trainable)
    if graph is None:
        return None
    source, *others = (node for node in graph.nodes if node.op == "placeholder")
    result = graph.output_node().args[0]
    if others or not isinstance(result, fx.Node):
        return None
    owned = {node: _parameters(network, node) for node in graph.nodes}
    from_input = _following([source])
    later = _following(node for node in graph.nodes if owned[node] & trainable)
    later |= _following(_last_dropouts(network, owned, from_input, later))
    while True:
        frontier = [n for n in graph.nodes if n in from_input and n not in later and not later.isdisjoint(n.users)]
        first, needed = _subgraph({source: "inputs"}, {}, frontier)
        if not any(owned[node] for node in needed):
            return None  # nothing frozen would be left in it
        before = fx.GraphModule(network, first)
        values = [_Value(*pair, len(sample)) for pair in zip(before(sample), before(_twice(sample)), strict=True)]
        strange = [node for node, value in zip(frontier, values, strict=True) if value.is_strange]
        if not strange:
            break
        if any(owned[node] for node in strange):
            return None
        later |= _following(strange)  # the suffix makes it from what it is made of
    rows = [index for index, value in enumerate(values) if value.is_row]
    if not rows:
        return None
    known = {node: value for node, value in zip(frontier, values, strict=True) if not value.is_row}
    second, _ = _subgraph({frontier[index]: f"part_{index}" for index in rows}, known, [result])

    def until(inputs: Tensor) -> list[Tensor]:
        computed = before(inputs)
        return [computed[index] for index in rows]

    after = fx.GraphModule(network, second)
    return _halves(network, until, after, [values[index].value for index in rows], trainable)


def _cut_at_module(network: nn.Module, trainable: set[nn.Parameter], sample: Tensor) -> Split | None:
    """Cut a network that cannot be traced before the one module in which all learning is.

    A dropout directly before it would be lost: then there is no cut. (A function that drops cannot be seen.)
    """
    holders = [part for part in network.modules() if part is not network and trainable <= set(part.parameters())]
    if not holders:
        return None
    module = holders[-1]  # the innermost

    def until(inputs: Tensor) -> list[Tensor]:
        seen: list[Tensor] = []
        # Before the hooks of the module itself, which run again in the suffix.
        handle = module.register_forward_pre_hook(lambda _, arguments: seen.extend(arguments), prepend=True)
        try:
            network(inputs)
        finally:
            handle.remove()
        return seen

    ran: list[nn.Module] = []
    watched = [part for part in network.modules() if part is module or not list(part.children())]
    handles = [part.register_forward_pre_hook(lambda part, _: ran.append(part)) for part in watched]
    try:
        seen = until(sample)
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor) or seen[0].shape[:1] != sample.shape[:1]:
        return None
    for part in reversed(ran[: ran.index(module)]):
        if _drops(part):
            return None
        if list(part.parameters()):
            break
    return _halves(network, until, module, seen, trainable)


def _halves(
    network: nn.Module,
    until: Callable[[Tensor], Sequence[Tensor]],
    after: nn.Module,
    frontier: Sequence[Tensor],
    trainable: set[nn.Parameter],
) -> Split | None:
    """A split at the tensors of `frontier`, which `until` computes and `after` takes."""
    layouts = [_Layout.of(tensor) for tensor in frontier]
    dtypes = {layout.dtype for layout in layouts}
    if len(dtypes) > 1 and not all(dtype.is_floating_point for dtype in dtypes):
        return None  # whole numbers would lose digits
    dtype = functools.reduce(torch.promote_types, dtypes)

    def prefix(inputs: Tensor) -> Tensor:
        with _evaluating(network), torch.no_grad():
            parts = [layout.to_row(part).to(dtype) for layout, part in zip(layouts, until(inputs), strict=True)]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    return Split(prefix, _Suffix(after, layouts, trainable))


class _Tracer(fx.Tracer):
    """What is frozen as a whole, or learns as a whole, is one node: it need not be traceable, and keeps its hooks."""

    def __init__(self, trainable: set[nn.Parameter]) -> None:
        super().__init__()
        self.trainable = trainable

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if super().is_leaf_module(m, module_qualified_name) or not list(m.children()):
            return True
        if type(m).forward is nn.Sequential.forward:
            return False  # its last module may be a dropout
        own = set(m.parameters())
        return bool(own) and (own <= self.trainable or not own & self.trainable)


def _trace(network: nn.Module, trainable: set[nn.Parameter]) -> fx.Graph | None:
    """The graph of a network, if it is the same in training and in evaluation mode."""
    graphs = []
    try:
        for mode in (True, False):
            network.train(mode)
            graphs.append(_Tracer(trainable).trace(network))
    except Exception:  # tracing runs anybody's `forward` on stand-ins for tensors, which may raise anything
        network.eval()
        return None
    return graphs[1] if str(graphs[0]) == str(graphs[1]) else None


@dataclass(frozen=True)
class _Value:
    """What a node gave for a sample of `count` examples, and for the sample twice."""

    value: Any
    doubled: Any
    count: int

    @property
    def is_row(self) -> bool:
        """A tensor with the batch first."""
        if not isinstance(self.value, Tensor):
            return False
        one, two = self.value.shape, self.doubled.shape
        return one[:1] == (self.count,) and two[:1] == (2 * self.count,) and one[1:] == two[1:]

    @property
    def is_count(self) -> bool:
        """The size of the batch."""
        return isinstance(self.value, int) and (self.value, self.doubled) == (self.count, 2 * self.count)

    @property
    def is_strange(self) -> bool:
        """None of these, and not the same for all batches."""
        if isinstance(self.value, Tensor):
            return not self.is_row
        return not self.is_count and bool(self.value != self.doubled)


@dataclass(frozen=True)
class _Layout:
    """How a tensor lies in a row: its dimensions in the order of memory, so that it comes back with its strides."""

    shape: tuple[int, ...]  # without the batch
    order: tuple[int, ...]  # dimensions 1.., the one with the largest stride first
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "_Layout":
        strides = tensor.stride()
        order = sorted(range(1, tensor.ndim), key=lambda dim: -strides[dim])
        return cls(tuple(tensor.shape[1:]), tuple(order), tensor.dtype)

    def to_row(self, tensor: Tensor) -> Tensor:
        return tensor.permute(0, *self.order).reshape(len(tensor), -1)

    def from_row(self, row: Tensor) -> Tensor:
        lying = row.to(self.dtype).view(len(row), *(self.shape[dim - 1] for dim in self.order))
        return lying.permute(0, *(1 + self.order.index(dim) for dim in range(1, len(self.order) + 1)))


class _Suffix(nn.Module):
    """From rows to logits."""

    def __init__(self, after: nn.Module, layouts: Sequence[_Layout], trainable: set[nn.Parameter]) -> None:
        super().__init__()
        self.after, self.layouts, self.trainable = after, layouts, trainable

    def forward(self, rows: Tensor) -> Tensor:
        parts = torch.split(rows, [math.prod(layout.shape) for layout in self.layouts], dim=1)
        # Copies, since the first module may work in place and the rows may be somebody's cache.
        copies = [part.clone(memory_format=torch.contiguous_format) for part in parts]
        result = self.after(*(layout.from_row(part) for layout, part in zip(self.layouts, copies, strict=True)))
        return result[0] if isinstance(result, tuple) else result

    def train(self, mode: bool = True) -> "_Suffix":
        super().train(mode)
        _evaluate_frozen(self, self.trainable)
        return self


def _evaluate_frozen(network: nn.Module, trainable: set[nn.Parameter]) -> None:
    for module in network.modules():
        own = set(module.parameters())
        if own and not own & trainable:
            module.eval()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _parameters(network: nn.Module, node: fx.Node) -> set[nn.Parameter]:
    if node.op == "call_module":
        return set(network.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        value = getattr(network.get_submodule(path), name)
        return {value} if isinstance(value, nn.Parameter) else set()
    return set()


def _following(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes and all that is computed from them."""
    found, waiting = set[fx.Node](), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.users
    return found


def _last_dropouts(
    network: nn.Module, owned: dict[fx.Node, set[nn.Parameter]], from_input: set[fx.Node], later: set[fx.Node]
) -> list[fx.Node]:
    """Dropouts between the last frozen layers and the first trainable ones."""
    found, seen = [], set(later)
    waiting = [node for after in later for node in after.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node in seen or node not in from_input or owned[node]:
            continue
        seen.add(node)
        if node.op == "call_module" and _drops(network.get_submodule(str(node.target))):
            found.append(node)
        waiting += node.all_input_nodes
    return found


def _drops(module: nn.Module) -> bool:
    return isinstance(module, _DropoutNd) and module.p > 0


def _subgraph(
    inputs: dict[fx.Node, str], known: dict[fx.Node, _Value], wanted: Sequence[fx.Node]
) -> tuple[fx.Graph, set[fx.Node]]:
    """The part of a graph that computes `wanted` from `inputs` and from values that are known beforehand.

    Returns:
        A graph whose output is the tuple of `wanted`, and the nodes of the old graph that it computes.
    """
    graph, copies = fx.Graph(), dict[fx.Node, Any]()
    for node, name in inputs.items():
        copies[node] = graph.placeholder(name)
    for node, value in known.items():
        first = copies[next(iter(inputs))]
        copies[node] = graph.call_method("size", (first, 0)) if value.is_count else value.value
    needed, waiting = set[fx.Node](), list(wanted)
    while waiting:
        node = waiting.pop()
        if node not in copies and node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    for node in next(iter(inputs)).graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in wanted))
    return graph, needed


def _twice(sample: Tensor) -> Tensor:
    layout = _Layout.of(sample)
    return layout.from_row(torch.cat([layout.to_row(sample)] * 2))
