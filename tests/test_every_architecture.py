"""Every classifier of torchvision takes a training step, and comes back from its file.

One of each family by default (alexnet for its like, vgg). All of them, in minutes and with 11 GB for regnet_y_128gf:

    pytest -m "slow or not slow" tests/test_every_architecture.py
"""

import multiprocessing
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from refit.files import sha256_of_file
from refit.modality.image import networks as image
from refit.modality.image import weights as published
from refit.modality.image.preprocessing import Preprocessing
from refit.model.card import FORMAT, Card, Lineage, ValidationMeasures
from refit.model.classifier import Classifier
from refit.records import as_plain, publish_record
from refit.training import frozen
from refit.training.determinism import be_deterministic, environment

CLASSES = ("a", "b", "c")
SPREAD = """alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2
    mobilenet_v3_small regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t
    vit_b_32""".split()
SIDES = {"alexnet": 64, "inception_v3": 75, "maxvit_t": 224, "squeezenet": 64, "vit": 224}
"""The smallest pictures of a family, in pixels; 32 for all others."""


def side_of(architecture: str) -> int:
    return next((side for name, side in SIDES.items() if architecture.startswith(name)), 32)


def pictures(architecture: str) -> Tensor:
    side = side_of(architecture)
    drawn = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return drawn.contiguous(memory_format=torch.channels_last)


def step(forward: Callable[[Tensor], Tensor], inputs: Tensor, network: nn.Module) -> None:
    """One step of training with AdamW on what learns. No decay: only a gradient may change a weight."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, weight_decay=0.0, foreach=False)
    logits = forward(inputs)
    loss = functional.cross_entropy(logits, logits.argmin(1))  # random weights may be certain, and then learn nothing
    assert loss.isfinite()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    optimizer.step()
    network.zero_grad()


def sums(network: nn.Module) -> dict[str, int]:
    """A checksum of everything in the state: a copy would need as much memory again."""
    return {name: zlib.crc32(tensor.contiguous().numpy().reshape(-1)) for name, tensor in network.state_dict().items()}


def changed(before: dict[str, int], network: nn.Module) -> set[str]:
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    return {name for name, value in sums(network).items() if value != before[name]}


def take_steps(architecture: str, folder: Path) -> None:
    """A step of the head alone, a step of everything, and the file."""
    be_deterministic(1, "cpu")
    torch.manual_seed(0)
    network, inputs = image.build_network(architecture, len(CLASSES), head_dropout=0.1), pictures(architecture)
    head = image.head_parameters(network, len(CLASSES))
    groups = image.layer_groups(network, head)
    backbone = [name for group in groups[:-1] for name in group.parameters]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in head)

    split = frozen.split(network, backbone, inputs)
    assert split is not None
    split.suffix.train()
    before = sums(network)
    step(split.suffix, split.prefix(inputs), network)
    assert changed(before, network) == set(head)

    network.requires_grad_(True)
    network.train()
    for module in network.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0  # a block that is left out does not learn
    before = sums(network)
    step(network, inputs, network)
    moved = changed(before, network)
    for group in groups:
        assert moved & set(group.parameters), group.name

    network.eval()
    with torch.no_grad():
        expected = network(inputs)
    comes_back(network, architecture, folder)
    del network, split  # two of the largest would not fit
    with torch.no_grad():
        classifier = Classifier.load(folder / "model.safetensors", folder / "model.json")
        assert torch.equal(classifier.network(inputs), expected)


def comes_back(network: nn.Module, architecture: str, folder: Path) -> None:
    """Weights and card as the stage `finetune` writes them."""
    save_file({n: t.contiguous() for n, t in network.state_dict().items()}, folder / "model.safetensors")
    side = side_of(architecture)
    preprocessing = Preprocessing(
        resize_size=side, crop_size=side, interpolation="bilinear", mean=published.IMAGENET_MEAN,
        std=published.IMAGENET_STD,
    )  # fmt: skip
    card = Card(
        format=FORMAT, modality="image", architecture=architecture, head_dropout=0.1, classes=CLASSES,
        preprocessing=as_plain(preprocessing), temperature=1.0, best_epoch=1,
        validation=ValidationMeasures(accuracy=0.5, loss=1.0),
        weights_sha256=sha256_of_file(folder / "model.safetensors"),
        lineage=Lineage(data_digest="", split_digest="", base_uri="scratch", base_sha256="", params_digest=""),
        environment=environment(torch.device("cpu")),
    )  # fmt: skip
    publish_record(folder / "model.json", card)


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=() if name in SPREAD else pytest.mark.slow)
        for name in torchvision.models.list_models(module=torchvision.models)
    ],
)
def test_it_takes_a_step_and_comes_back_from_its_file(architecture: str, tmp_path: Path) -> None:
    if architecture in SPREAD:
        take_steps(architecture, tmp_path)
        return
    process = multiprocessing.get_context("spawn").Process(target=take_steps, args=(architecture, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0
