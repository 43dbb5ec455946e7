"""Checkpoints as other programs write them: read without running anything, and put into the right network."""

import argparse
import collections
import os
import pickle
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from refit.checkpoint.backbone import Loaded, load_backbone
from refit.checkpoint.convert import convert
from refit.errors import CheckpointError
from refit.modality.image import networks as image
from refit.model.card import Card
from refit.records import as_record

ARCHITECTURE = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def pretrained() -> dict[str, Tensor]:
    """Weights that no fresh network has, with a head of nine outputs and statistics in the batch norms."""
    torch.manual_seed(3)
    state = image.build_network(ARCHITECTURE, 9).state_dict()
    return {
        name: tensor if name.endswith("num_batches_tracked") else torch.rand_like(tensor)
        for name, tensor in state.items()
    }


def load(weights: Mapping[str, Tensor], architecture: str = ARCHITECTURE, **options: Any) -> tuple[nn.Module, Loaded]:
    """A fresh network of three outputs with these weights in its backbone."""
    torch.manual_seed(0)
    network = image.build_network(architecture, 3)
    return network, load_backbone(network, weights, image.head_parameters(network, 3), "image", "file:x", **options)


def require_backbone(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """The network's backbone is these weights; its head is not."""
    torch.manual_seed(0)
    fresh = image.build_network(ARCHITECTURE, 3)
    head = image.head_parameters(fresh, 3)
    for name, tensor in network.state_dict().items():
        expected = fresh.state_dict()[name] if name in head else weights[name].to(tensor.dtype)
        assert tensor.dtype == fresh.state_dict()[name].dtype
        assert torch.equal(tensor, expected), name


def saved(content: object, folder: Path) -> Path:
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def converted(content: object, folder: Path, key: str | None = None) -> dict[str, Tensor]:
    convert(saved(content, folder), folder / "base.safetensors", key)
    return load_file(folder / "base.safetensors")


# Layouts of files


def optimizer_state() -> dict[str, Any]:
    """Of a step that was taken: tensors of two dimensions, by number."""
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


BESIDE: dict[str, Callable[[], Any]] = {
    "epoch": lambda: 90,
    "optimizer": optimizer_state,
    "optimizer_states": lambda: [optimizer_state()],
    "args": lambda: argparse.Namespace(lr=np.float64(0.1), data=Path("data/x"), opt="adamw", betas=(0.9, 0.99)),
    "best_acc1": lambda: torch.tensor(77.1),
    "best": lambda: np.float32(77.1),
    "step": lambda: np.int64(5),
    "class_weights": lambda: torch.ones(9),
    "rng": lambda: {"numpy": np.random.get_state(), "torch": torch.get_rng_state()},
    "history": lambda: collections.defaultdict(list, loss=[1.0, 0.5]),
    "meta": lambda: collections.OrderedDict(name="x", counts=collections.Counter("aab")),
    "config": lambda: types.SimpleNamespace(depth=3),
    "callbacks": lambda: {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9), "best_model_path": "x.ckpt"}},
    "hyper_parameters": lambda: {"lr": 0.1},
    "confusion": lambda: torch.ones(9, 9),
    "criterion": lambda: {"centers": torch.ones(9, 4)},
}
"""What training scripts put beside the weights."""


@pytest.mark.parametrize(
    "key", "state_dict model model_state_dict model_state net network params ema weights my_own module".split()
)
def test_weights_are_found_under_any_name(key: str, pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    assert converted({key: pretrained}, tmp_path).keys() == pretrained.keys()
    assert converted({key: {"state_dict": pretrained}}, tmp_path).keys() == pretrained.keys()


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_weights_is_read_over(name: str, pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    found = converted({"model": pretrained, name: BESIDE[name]()}, tmp_path)
    assert found.keys() == pretrained.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in pretrained.items())


def test_a_plain_state_dict_may_have_an_epoch_and_an_optimizer(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    flat = pretrained | {"epoch": 3, "optimizer": optimizer_state()}
    assert converted(flat, tmp_path).keys() == pretrained.keys()
    assert converted(collections.OrderedDict(pretrained), tmp_path).keys() == pretrained.keys()


def test_everything_at_once_is_a_checkpoint_to_go_on_from(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    everything = {name: make() for name, make in BESIDE.items()}
    assert converted({"state_dict": pretrained, **everything}, tmp_path).keys() == pretrained.keys()


def test_two_networks_in_a_file_are_a_question(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    average = {name: tensor + 1 for name, tensor in pretrained.items()}
    both = {"model": pretrained, "model_ema": average, "epoch": 1}
    with pytest.raises(CheckpointError) as caught:
        converted(both, tmp_path)
    count = len(pretrained)
    assert f"holds model ({count} tensors), model_ema ({count} tensors): set `checkpoint.key`" in str(caught.value)
    assert torch.equal(converted(both, tmp_path, "model_ema")["conv1.0.weight"], average["conv1.0.weight"])
    nested = {"ema": {"state_dict": average}, "model": {"state_dict": pretrained}}
    assert torch.equal(converted(nested, tmp_path, "ema.state_dict")["fc.bias"], average["fc.bias"])
    with pytest.raises(CheckpointError, match=r"no weights under `checkpoint\.key` 'teacher'; it holds model \("):
        converted(both, tmp_path, "teacher")
    said = convert(saved(both, tmp_path), tmp_path / "base.safetensors", "model")
    assert said == {"key": "model", "others": ["model_ema"]}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"epoch": 3, "optimizer": {"state": {}}}, "is not a state dict"),
        ([torch.ones(2, 2)], "is not a state dict"),
        (
            {"x": torch.ones(2, 2).to_sparse()},
            r"holds x as a tensor without plain values \(quantized, sparse or meta\)",
        ),
        ({"x": torch.ones(2, 2, device="meta")}, "without plain values"),
    ],
)
def test_what_holds_no_weights_is_said_to(content: object, expected: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=expected):
        converted(content, tmp_path)
    assert not (tmp_path / "base.safetensors").exists()


def test_a_file_that_refers_to_itself_ends(tmp_path: Path) -> None:
    knot: dict[str, Any] = {}
    knot["model"] = knot
    with pytest.raises(CheckpointError, match="is not a state dict"):
        converted(knot, tmp_path)


def test_a_damaged_file_and_a_script_are_named(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    file = saved(pretrained, tmp_path)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth cannot be read as a PyTorch file"):
        convert(file, tmp_path / "base.safetensors")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth .*TorchScript"):
        convert(file, tmp_path / "base.safetensors")


# Nothing of a file is run


class Runs:
    """Makes a folder if the file is ever unpickled with code allowed."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


@pytest.mark.parametrize("call", [os.mkdir, os.system, exec, eval, getattr, pickle.loads, nn.Linear, torch.load])
def test_a_hostile_file_is_refused_and_not_run(
    call: Callable[..., Any], pretrained: dict[str, Tensor], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    file = saved({"model": pretrained, "args": Runs(call, str(canary))}, tmp_path)
    with pytest.raises(CheckpointError, match="loading it would run code from it"):
        convert(file, tmp_path / "base.safetensors")
    assert not canary.exists()
    assert not (tmp_path / "base.safetensors").exists()


def test_what_is_read_over_is_never_built(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    """Not even the classes that are allowed: an array of a terabyte costs nothing, a wrong date stops nothing."""
    rebuild = np.zeros(1).__reduce__()[0]
    hostile = {
        "array": Runs(rebuild, np.ndarray, (1 << 40,), b"b"),
        "dtype": Runs(np.dtype, "no such type"),
        "path": Runs(type(Path()), 1, 2, 3),
    }
    assert converted({"model": pretrained, **hostile}, tmp_path).keys() == pretrained.keys()


# Names


PREFIXES = (
    "module.", "_orig_mod.", "backbone.", "encoder.", "model.", "net.", "model._orig_mod.backbone.",
    "module._orig_mod.model.", "_forward_module.model.", "student.backbone.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_whatever_stands_before_the_names_is_taken_off(prefix: str, pretrained: dict[str, Tensor]) -> None:
    network, loaded = load({f"{prefix}{name}": tensor for name, tensor in pretrained.items()})
    require_backbone(network, pretrained)
    assert (loaded.prefix, loaded.share) == (prefix, 1.0)
    assert loaded.rows() == []
    assert f"(prefix `{prefix}` taken off)" in loaded.table()


def test_a_safetensors_file_has_prefixes_too(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    behind = {f"module.{name}": tensor.contiguous() for name, tensor in pretrained.items()}
    save_file(behind, tmp_path / "x.safetensors")
    network, _ = load(load_file(tmp_path / "x.safetensors"))
    require_backbone(network, pretrained)


def test_real_wrappers_write_what_is_read(tmp_path: Path) -> None:
    """A module as DataParallel, torch.compile and an average of weights would save it."""
    inner = image.build_network(ARCHITECTURE, 9)
    averaged = torch.optim.swa_utils.AveragedModel(inner)
    wrapped = [nn.DataParallel(inner), torch.compile(inner), torch.compile(nn.DataParallel(inner)), averaged]
    for wrapper in wrapped:
        network, loaded = load(converted({"model": wrapper.state_dict(), "epoch": 2}, tmp_path), min_loaded=0.9)
        require_backbone(network, inner.state_dict())
        assert loaded.unexpected == (("n_averaged",) if wrapper is averaged else ())


def test_wrappers_in_the_middle_of_a_name_are_looked_through(pretrained: dict[str, Tensor]) -> None:
    compiled = {re.sub(r"^(stage\d\.\d)\.", r"\1._orig_mod.", name): tensor for name, tensor in pretrained.items()}
    assert compiled.keys() != pretrained.keys()
    network, loaded = load({f"model.{name}": tensor for name, tensor in compiled.items()})
    require_backbone(network, pretrained)
    assert loaded.prefix == "model."


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    other = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in pretrained.items()}
    network, loaded = load(converted(other, tmp_path))
    require_backbone(network, other)
    assert loaded.share == 1.0


def test_a_file_as_lightning_writes_it(pretrained: dict[str, Tensor], tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in pretrained.items()} | {"criterion.weight": torch.ones(9)}
    content = {
        "state_dict": state,
        "pytorch-lightning_version": "2.5",
        **{name: make() for name, make in BESIDE.items()},
    }
    network, loaded = load(converted(content, tmp_path))
    require_backbone(network, pretrained)
    assert loaded.unexpected == ("criterion.weight",)
    assert "| unexpected | 1 | criterion.weight |" in loaded.table()


def test_a_network_that_is_there_twice_is_a_question(pretrained: dict[str, Tensor]) -> None:
    """As of a self-supervised pair: `student` and `teacher` beside each other."""
    average = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in pretrained.items()}
    pair = {f"student.{name}": tensor for name, tensor in pretrained.items()}
    pair |= {f"teacher.{name}": tensor for name, tensor in average.items()}
    with pytest.raises(
        CheckpointError, match=r"more than once, behind 'student\.', 'teacher\.': set `checkpoint\.prefix`"
    ):
        load(pair, min_loaded=0.9)
    network, loaded = load(pair, min_loaded=0.9, prefix="teacher.")
    require_backbone(network, average)
    assert len(loaded.unexpected) == len(pretrained)
    with pytest.raises(CheckpointError, match=r"0 names fit.*or set `checkpoint\.prefix` to .*, such as 'teacher\.'"):
        load(pair, min_loaded=0.9, prefix="Teacher.")


# How much of it


def test_a_little_may_differ_and_is_always_shown(pretrained: dict[str, Tensor]) -> None:
    weights = dict(pretrained) | {"extra.weight": torch.ones(2, 2)}
    del weights["conv1.1.bias"]
    weights["conv1.0.weight"] = torch.ones(24, 1, 3, 3)
    _, loaded = load(weights, min_loaded=0.9)
    assert loaded.missing == ("conv1.1.bias",)
    assert loaded.unexpected == ("extra.weight",)
    assert loaded.reshaped == ("conv1.0.weight (24, 1, 3, 3) instead of (24, 3, 3, 3)",)
    assert 0.99 < loaded.share < 1
    shown = loaded.table()
    assert "| missing | 1 | conv1.1.bias |" in shown
    assert "| of another shape | 1 | conv1.0.weight (24, 1, 3, 3) instead of (24, 3, 3, 3) |" in shown
    assert "warning: what is missing or of another shape starts from random values" in shown


def test_the_share_is_of_values_and_all_of_them_by_default(pretrained: dict[str, Tensor]) -> None:
    values = {
        name: tensor.numel() for name, tensor in pretrained.items() if not name.startswith("fc.") and "num_" not in name
    }
    weights = {name: tensor for name, tensor in pretrained.items() if name != "conv5.0.weight"}
    share = 1 - values["conv5.0.weight"] / sum(values.values())
    with pytest.raises(
        CheckpointError, match=r"brings 43\.\d% of the backbone .* asks for 100%.*missing: conv5.0.weight"
    ):
        load(weights)
    assert load(weights, min_loaded=share - 1e-6)[1].share == pytest.approx(share)


def test_another_network_is_refused_with_the_nearest_names(pretrained: dict[str, Tensor]) -> None:
    renamed = {name.replace("conv1.0", "stem.conv"): tensor for name, tensor in pretrained.items()}
    renamed = {name.replace("stage", "stages"): tensor for name, tensor in renamed.items()}
    network = image.build_network(ARCHITECTURE, 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_backbone(network, renamed, image.head_parameters(network, 3), "image", "file:x of resnet18", None, 0.9)
    said = str(caught.value)
    assert re.search(r"file:x of resnet18 brings \d+\.\d% of the backbone of `finetune\.model`.* asks for 90%", said)
    assert "Nearest (the network's ~ the file's): conv1.0.weight (24, 3, 3, 3) ~ " in said
    assert re.search(r"stage2\.0\.[\w.]+ \([\d, ]+\) ~ stages2\.0\.[\w.]+ \([\d, ]+\)", said)
    assert "\n" not in said
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items()), "nothing is loaded"


@pytest.mark.parametrize("other", ["resnet34", "resnet50", "mobilenet_v2", "wide_resnet50_2"])
def test_a_network_of_the_same_family_is_not_taken_for_it(other: str) -> None:
    """A deeper one has all names of the shallower, in the same shapes."""
    with pytest.raises(CheckpointError, match=r"`checkpoint\.min_loaded` asks for 90%"):
        load(image.build_network(other, 5).state_dict(), "resnet18", min_loaded=0.9)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: weights["conv1.0.weight"].fill_(float("inf")), "not finite, first in conv1.0.weight"),
        (lambda weights: weights.update({"conv1.0.weight": torch.full((24, 3, 3, 3), torch.nan).half()}), "not finite"),
        (lambda weights: weights.update({"conv1.0.weight": torch.ones(24, 3, 3, 3).char()}), "int8: it is a quantized"),
    ],
)
def test_values_that_are_none_are_refused(
    change: Callable[[Any], Any], expected: str, pretrained: dict[str, Tensor]
) -> None:
    weights = {name: tensor.clone() for name, tensor in pretrained.items()}
    change(weights)
    with pytest.raises(CheckpointError, match=expected):
        load(weights)


def test_norms_without_statistics_are_warned_of(pretrained: dict[str, Tensor]) -> None:
    assert not load(pretrained)[1].has_folded_norms
    folded = {
        name: torch.zeros_like(tensor) if "running_mean" in name else torch.ones_like(tensor) if "running_var" in name
        else tensor
        for name, tensor in pretrained.items()
    }  # fmt: skip
    _, loaded = load(folded)
    assert "warning: all batch norms have mean 0 and variance 1: they were folded into the" in loaded.table()
    without = {name: tensor for name, tensor in pretrained.items() if "running_" not in name}
    assert load(without, min_loaded=0.9)[1].has_folded_norms
    vit = image.build_network("vit_b_32", 3)
    assert not load(vit.state_dict(), "vit_b_32")[1].has_folded_norms, "it has no batch norms"


def test_the_head_of_other_classes_is_left_out(pretrained: dict[str, Tensor]) -> None:
    network, loaded = load(pretrained)
    require_backbone(network, pretrained)
    assert "fc.weight" not in loaded.loaded
    without = {name: tensor for name, tensor in pretrained.items() if not name.startswith("fc.")}
    require_backbone(load(without)[0], pretrained)


def test_counters_of_batch_norms_may_be_missing(pretrained: dict[str, Tensor]) -> None:
    _, loaded = load({name: tensor for name, tensor in pretrained.items() if "num_batches" not in name})
    assert loaded.rows() == []


def test_a_card_from_before_says_nothing_of_it() -> None:
    card = {
        "format": 2, "modality": "image", "architecture": "resnet18", "head_dropout": 0.0, "classes": ["a", "b"],
        "preprocessing": {}, "temperature": 1.0, "best_epoch": 1, "validation": {"accuracy": 1.0, "loss": 0.0},
        "weights_sha256": "0", "lineage": dict.fromkeys(
            ("data_digest", "split_digest", "base_uri", "base_sha256", "params_digest"), "0"
        ),
        "environment": {
            "python": "3", "machine": "m", "cpu_capability": "c", "device": "cpu", "num_threads": 1, "torch": "2",
            "torchvision": "0",
        },
    }  # fmt: skip
    assert as_record(card, Card, CheckpointError, "a card").pretrained is None


# Older names


def test_a_densenet_is_read_with_the_names_that_it_was_published_with(tmp_path: Path) -> None:
    network = image.build_network("densenet121", 3)
    published = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    for prefix in ("", "module."):
        behind = {f"{prefix}{name}": tensor for name, tensor in published.items()}
        _, loaded = load(converted(behind, tmp_path), "densenet121")
        assert (loaded.prefix, loaded.rows()) == (prefix, [])


def test_a_mobilenet_is_read_with_the_names_from_before_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = image.build_network("mobilenet_v2", 9).state_dict()
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    old = {name: tensor for name, tensor in state.items() if ".conv." not in name}
    for block in range(1, 18):  # convolution, norm and ReLU in turn, without a ReLU at the end
        places = (0, 3) if block == 1 else (0, 3, 6)
        names = [n for at in places for n in (f"{at}.weight", *(f"{at + 1}.{part}" for part in norm))]
        tensors = [tensor for name, tensor in state.items() if name.startswith(f"features.{block}.conv.")]
        old |= {f"features.{block}.conv.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}
    assert {"features.1.conv.3.weight", "features.2.conv.4.running_mean", "features.2.conv.7.bias"} <= old.keys()
    network, loaded = load(converted({"model": old}, tmp_path), "mobilenet_v2")
    assert loaded.rows() == []
    for name, tensor in network.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(architecture: str) -> None:
    state = image.build_network(architecture, 3).state_dict()
    auxiliary = {"AuxLogits.fc.weight": torch.ones(3, 768), "aux1.conv.conv.weight": torch.ones(128, 512, 1, 1)}
    weights = {f"module.{name}": tensor for name, tensor in (state | auxiliary).items()}
    assert load(weights, architecture)[1].rows() == []
