"""Groups of layers, and the cut behind the frozen ones, over the families of torchvision's classifiers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import VisionTransformer
from torchvision.models.maxvit import MaxVit

from refit.modality.image import networks as image
from refit.modality.image.settings import ARCHITECTURES
from refit.training import frozen
from refit.training.determinism import be_deterministic

SMALLEST = {"alexnet": 64, "inception_v3": 75, "squeezenet1_1": 33, "vit_b_32": 64, "maxvit_t": 64}
"""Sides of pictures that a family wants; 32 for the others."""
SMALL: dict[str, Callable[[int], nn.Module]] = {  # theirs want 224 pixels
    "vit_b_32": lambda outputs: VisionTransformer(64, 32, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64,
                                                  num_classes=outputs),
    "maxvit_t": lambda outputs: MaxVit((64, 64), 8, partition_size=2, block_channels=[8, 16], block_layers=[1, 2],
                                       head_dim=8, stochastic_depth_prob=0.2, num_classes=outputs),
}  # fmt: skip
FAMILIES = """resnet18 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 densenet121 efficientnet_b0 vgg11_bn alexnet
    squeezenet1_1 googlenet inception_v3 regnet_y_400mf mnasnet0_5 convnext_tiny swin_t swin_v2_t vit_b_32
    maxvit_t""".split()


@pytest.fixture(autouse=True)
def deterministic() -> None:
    be_deterministic(1, "cpu")


class Unfilled(TorchFunctionMode):
    """Networks without memory for their weights: even the largest is made in a blink."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {}))


def build(architecture: str, num_outputs: int = 3, head_dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    if architecture not in SMALL:
        return image.build_network(architecture, num_outputs, head_dropout)
    return SMALL[architecture](num_outputs).to(memory_format=torch.channels_last)


def pictures(architecture: str, count: int = 2) -> Tensor:
    side = SMALLEST.get(architecture, 32)
    drawn = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return drawn.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_is_in_one_group_and_the_head_is_the_last(architecture: str) -> None:
    with Unfilled():
        network = image.build_network(architecture, 3)
    head = image.head_parameters(network, 3)
    groups = image.layer_groups(network, head)
    order = [name for name, _ in network.named_parameters()]
    assert sorted(name for group in groups for name in group.parameters) == sorted(order)
    assert groups[-1].parameters == tuple(head)
    assert len(groups) >= 8
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        assert any(name.startswith(f"{group.name}.") for name in group.parameters)
        assert list(group.parameters) == [name for name in order if name in group.parameters]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_groups_come_in_the_order_in_which_they_run(architecture: str) -> None:
    network = build(architecture).eval()
    groups = image.layer_groups(network, image.head_parameters(network, 3))
    ran: list[str] = []
    for group in groups:
        module = network.get_submodule(group.name)
        module.register_forward_pre_hook(lambda _module, _inputs, name=group.name: ran.append(name))
    with torch.no_grad():
        network(pictures(architecture, 1))
    assert ran == [group.name for group in groups]


NAMES = {
    "resnet18": ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0",
                 "layer4.1", "fc"],
    "vgg11": [f"features.{index}" for index in (0, 3, 6, 8, 11, 13, 16, 18)]
             + ["classifier.0", "classifier.3", "classifier.6"],
    "vit_b_32": ["conv_proj", *(f"encoder.layers.encoder_layer_{index}" for index in range(12)), "heads.head"],
    "shufflenet_v2_x0_5": ["conv1", *(f"stage2.{index}" for index in range(4)),
                           *(f"stage3.{index}" for index in range(8)), *(f"stage4.{index}" for index in range(4)),
                           "conv5", "fc"],
}  # fmt: skip


@pytest.mark.parametrize("architecture", NAMES)
def test_groups_have_the_names_that_a_user_would_write(architecture: str) -> None:
    with Unfilled():
        network = image.build_network(architecture, 3)
    assert [g.name for g in image.layer_groups(network, image.head_parameters(network, 3))] == NAMES[architecture]


def test_tokens_belong_to_the_first_group_and_the_last_norm_to_the_last_one() -> None:
    with Unfilled():
        network = image.build_network("vit_b_32", 3)
    groups = image.layer_groups(network, ["heads.head.weight", "heads.head.bias"])
    assert {"class_token", "encoder.pos_embedding", "conv_proj.bias"} <= set(groups[0].parameters)
    assert "encoder.ln.weight" in groups[-2].parameters


class Wrapped(nn.Module):
    """Somebody's own network around a known one; its head was defined first, and a norm starts it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(512, 3)
        self.norm = nn.BatchNorm2d(3)
        self.backbone = torchvision.models.resnet18()
        self.backbone.fc = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(self.norm(inputs)))


def test_a_network_in_a_network_is_split_too() -> None:
    network = Wrapped()
    groups = image.layer_groups(network, image.head_parameters(network, 3))
    assert [group.name for group in groups][:3] == ["backbone.conv1", "backbone.layer1.0", "backbone.layer1.1"]
    assert "norm.weight" in groups[0].parameters
    assert [groups[-2].name, groups[-1].name] == ["backbone.layer4.1", "head"]


def names_frozen(network: nn.Module, where: str) -> list[str]:
    """Parameters of the whole backbone, or of its first half."""
    groups = image.layer_groups(network, image.head_parameters(network, 3))
    count = len(groups) - 1 if where == "head" else len(groups) // 2
    return [name for group in groups[:count] for name in group.parameters]


def gradients(network: nn.Module, forward: Callable[[], Tensor]) -> dict[str, Tensor]:
    network.zero_grad()
    torch.manual_seed(7)  # dropout
    forward().square().sum().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("where", ["head", "half"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_parts_are_the_whole(architecture: str, where: str) -> None:
    network, inputs = build(architecture), pictures(architecture)
    names, states = names_frozen(network, where), list(network.state_dict())
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in names)
    found = frozen.split(network, names, inputs)
    assert found is not None
    assert list(network.state_dict()) == states

    rows = found.prefix(inputs)
    kept = rows.clone()
    assert rows.shape[0] == len(inputs)
    assert rows.ndim == 2
    network.eval()
    with torch.no_grad():
        assert torch.equal(found.suffix.eval()(rows), network(inputs))

    found.suffix.train()
    whole = gradients(network, lambda: network(inputs))
    parts = gradients(network, lambda: found.suffix(rows))
    assert whole.keys() == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert torch.equal(rows, kept)  # no module worked in place on somebody's cache
    assert torch.equal(found.prefix(inputs), kept)  # and the prefix is in evaluation mode, whatever the rest is in


def head_only(network: nn.Module, inputs: Tensor) -> frozen.Split | None:
    return frozen.split(network, names_frozen(network, "head"), inputs)


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "swin_t", "densenet121"])
@pytest.mark.parametrize("where", ["head", "half"])
def test_under_autocast_too(architecture: str, where: str) -> None:
    network, inputs = build(architecture), pictures(architecture)
    names = names_frozen(network, where)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in names)
    with torch.autocast("cpu", torch.bfloat16):
        found = frozen.split(network, names, inputs)
        assert found is not None
        rows = found.prefix(inputs)
        with torch.no_grad():
            assert torch.equal(found.suffix.eval()(rows), network.eval()(inputs))
        found.suffix.train()
    with torch.autocast("cpu", torch.bfloat16):  # anew: what was cast without gradients is kept for the block
        parts = gradients(network, lambda: found.suffix(rows))
        whole = gradients(network, lambda: network(inputs))
    assert len(whole) == len(parts) > 0
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_to_split_inside_of_autocast_does_not_stop_the_learning() -> None:
    network, inputs = build("resnet18"), pictures("resnet18")
    with torch.autocast("cpu", torch.bfloat16):
        found = head_only(network, inputs)
        assert found is not None
        found.suffix.train()
        assert "fc.weight" in gradients(network, lambda: found.suffix(found.prefix(inputs)))


def test_rows_are_as_short_as_can_be() -> None:
    network, inputs = build("resnet18"), pictures("resnet18")
    found = head_only(network, inputs)
    assert found is not None
    assert found.prefix(inputs).shape == (2, 512)
    below = [name for name, _ in network.named_parameters() if not name.startswith(("layer4", "fc"))]
    found = frozen.split(network, below, inputs)
    assert found is not None
    assert found.prefix(inputs).shape == (2, 256 * 2 * 2)


def differ(draw: Callable[[], Tensor]) -> bool:
    with torch.no_grad():
        return not torch.equal(draw(), draw())


@pytest.mark.parametrize(
    ("architecture", "is_active"),
    [("efficientnet_b0", True), ("mobilenet_v3_small", True), ("inception_v3", True), ("squeezenet1_1", True),
     ("vgg11_bn", True), ("alexnet", False), ("resnet18", False)],
)  # fmt: skip
def test_a_dropout_before_the_trainable_part_stays_active(architecture: str, is_active: bool) -> None:
    """alexnet's last one has a frozen layer behind it."""
    network, inputs = build(architecture), pictures(architecture)
    found = head_only(network, inputs)
    assert found is not None
    rows = found.prefix(inputs)
    assert differ(lambda: found.suffix.train()(rows)) == is_active
    assert not differ(lambda: found.suffix.eval()(rows))
    assert not differ(lambda: found.prefix(inputs))


@pytest.mark.parametrize("architecture", ["resnet18", "densenet121", "squeezenet1_1", "mobilenet_v2"])
def test_the_dropout_of_params_is_in_the_suffix(architecture: str) -> None:
    network, inputs = build(architecture, head_dropout=0.5), pictures(architecture)
    assert list(network.state_dict()) == list(build(architecture).state_dict())
    found = head_only(network, inputs)
    assert found is not None
    rows = found.prefix(inputs)
    assert differ(lambda: found.suffix.train()(rows))
    network.eval()
    found.suffix.train()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.get_submodule(image.head_parameters(network, 3)[0].rpartition(".")[0]).requires_grad_(True)
    whole, parts = gradients(network, lambda: network(inputs)), gradients(network, lambda: found.suffix(rows))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_frozen_norms_keep_their_statistics_and_trained_ones_move() -> None:
    network, inputs = build("resnet18"), pictures("resnet18")
    names = names_frozen(network, "half")
    found = frozen.split(network, names, inputs)
    assert found is not None
    network.train()
    found.suffix.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found.suffix(found.prefix(inputs))
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    expected = {name for name in before if "running" in name or "num_batches" in name}
    assert moved == {name for name in expected if f"{name.rpartition('.')[0]}.weight" not in names}


class Branching(nn.Module):
    """Its path depends on what it sees: no symbolic trace."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.other = nn.Conv2d(3, 8, 3)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs) if inputs.sum() > 0 else self.other(inputs)
        return self.head(self.dropout(features.mean((2, 3))))


def test_what_cannot_be_traced_is_cut_before_its_head() -> None:
    network, inputs = Branching(), pictures("resnet18")
    found = head_only(network, inputs)
    assert found is not None
    assert found.prefix(inputs).shape == (2, 8)
    with torch.no_grad():
        assert torch.equal(found.suffix(found.prefix(-inputs)), network(-inputs))


def test_but_not_where_a_dropout_would_be_lost_or_a_block_learns() -> None:
    assert head_only(Branching(dropout=0.5), pictures("resnet18")) is None
    assert frozen.split(Branching(), ["body.weight", "body.bias"], pictures("resnet18")) is None


class Functional(nn.Module):
    """Its dropout is a function, which a trace would freeze in one mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mid, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.mid(self.body(inputs).mean((2, 3)))
        return self.head(nn.functional.dropout(features, 0.5, self.training))


def test_a_path_that_depends_on_the_mode_is_not_traced() -> None:
    assert frozen.split(Functional(), ["body.weight", "body.bias"], pictures("resnet18")) is None


class Sized(nn.Module):
    """Needs the sizes of its input late, takes a position's bias, and mixes the batch into another dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.bias = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.block = nn.Linear(30, 5)
        self.head = nn.Linear(8 * 30 * 5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        count, _, side, _ = inputs.shape
        turned = (self.body(inputs) + self.bias).transpose(0, 1)  # (8, n, …)
        mixed = self.block(turned.reshape(8, count, side - 2, -1))
        return self.head(mixed.transpose(0, 1).reshape(count, -1))


def test_sizes_are_found_again_and_the_cut_moves_to_where_the_batch_comes_first() -> None:
    network, inputs = Sized(), pictures("resnet18", 3)
    found = frozen.split(network, ["body.weight", "body.bias", "bias"], inputs)
    assert found is not None
    assert found.prefix(inputs).shape == (3, 8 * 30 * 30)
    many = pictures("resnet18", 5)
    with torch.no_grad():
        assert torch.equal(found.suffix(found.prefix(many)), network(many))


def test_nothing_to_gain_is_no_split() -> None:
    network, inputs = build("resnet18"), pictures("resnet18")
    everything = [name for name, _ in network.named_parameters()]
    for names in ([], everything, ["fc.weight"], ["layer4.1.bn2.weight"]):
        assert frozen.split(network, names, inputs) is None


def test_training_without_a_split_evaluates_what_is_frozen() -> None:
    network = build("resnet18")
    frozen.set_training(network, names_frozen(network, "half"))
    assert not network.get_submodule("layer1.0.bn1").training
    assert network.get_submodule("layer4.0.bn1").training
