"""The training core and the image modality, on tiny networks and tensors. One process, one torch import."""

import dataclasses
import io
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms import v2

from refit import paths
from refit.checkpoint import convert as legacy
from refit.errors import CheckpointError, DataError, ParamsError, TrainingError
from refit.modality.image import augment as augmentation
from refit.modality.image import examples as pictures
from refit.modality.image import files as image_file
from refit.modality.image import networks as image
from refit.modality.image import weights as published
from refit.modality.image.preprocessing import Preprocessing
from refit.modality.image.settings import ARCHITECTURES, Augment
from refit.modality.image.settings import Finetune as ImageFinetune
from refit.model.classifier import Classifier, predict_logits
from refit.params import Params, load_params
from refit.records import publish_record
from refit.training import loop as training
from refit.training.determinism import be_deterministic, example_keys
from refit.training.examples import Examples
from refit.training.loop import Epoch, Feed, best_epoch, fit, learning_rate_at, split_in_batches
from tasks import evaluate, fetch, finetune, ingest, validate

from .conftest import draw, write_image_folder

PREPROCESSING = Preprocessing(
    resize_size=16, crop_size=16, interpolation="bilinear", mean=published.IMAGENET_MEAN, std=published.IMAGENET_STD
)
STILL = Augment(rotation=0.0, translation=0.0, scale=1.0, horizontal_flip=False)


@pytest.fixture(autouse=True)
def deterministic() -> None:
    be_deterministic(1, "cpu")


def tiny_network(num_outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, num_outputs),
    )  # fmt: skip


def examples(count: int = 90) -> Examples:
    """Three classes that differ in the channel that is bright."""
    generator = np.random.default_rng(3)
    labels = torch.arange(count) % 3
    inputs = generator.integers(0, 120, (count, 3, 16, 16), dtype=np.uint8)
    inputs[np.arange(count), labels.numpy()] += 80
    return Examples(torch.from_numpy(inputs), labels, example_keys([f"{n:016x}" + "0" * 48 for n in range(count)]))


def settings(**changes: Any) -> Any:
    defaults: dict[str, Any] = {
        "trainable": "all", "epochs": 4, "batch_size": 16, "learning_rate": 0.02, "head_learning_rate_factor": 1.0,
        "weight_decay": 0.01, "warmup_fraction": 0.1, "label_smoothing": 0.1,
    }  # fmt: skip
    return SimpleNamespace(**defaults | changes)


HEAD = ["5.weight", "5.bias"]
FEED = Feed(
    network_input=partial(image.network_input, preprocessing=PREPROCESSING),
    augment=partial(
        augmentation.distort, settings=Augment(rotation=20.0, translation=0.1, scale=1.2, horizontal_flip=True)
    ),
    num_draws=augmentation.NUM_DRAWS,
)


def run(train: Examples, seed: int = 1, network: nn.Module | None = None, **changes: Any) -> training.Fitted:
    network = network or tiny_network()
    return fit(network, HEAD, train, examples(30), FEED, settings(**changes), seed)


def equal(left: training.Fitted, right: training.Fitted) -> bool:
    return left.history == right.history and all(
        torch.equal(left.weights[name], right.weights[name]) for name in left.weights
    )


def test_it_learns() -> None:
    fitted = run(examples(), epochs=8)
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss
    assert max(row.val_accuracy for row in fitted.history) > 0.9


def test_the_same_again_gives_the_same_bits() -> None:
    torch.manual_seed(99)  # the state of torch's generator must not matter
    first = run(examples())
    torch.manual_seed(100)
    torch.rand(7)
    assert equal(first, run(examples()))


def test_the_order_in_which_examples_come_does_not_matter() -> None:
    train = examples()
    turned = Examples(train.inputs.flip(0), train.labels.flip(0), train.keys[::-1].copy())
    assert equal(run(train), run(turned))


def test_another_seed_gives_another_result() -> None:
    assert not equal(run(examples(), seed=1), run(examples(), seed=2))


def test_dropout_is_repeatable_too() -> None:
    def dropping() -> nn.Module:
        network = tiny_network()
        network.insert(5, nn.Dropout(0.5))  # type: ignore[operator]
        return network

    head = ["6.weight", "6.bias"]
    first, second = (fit(dropping(), head, examples(), examples(30), FEED, settings(), 1) for _ in range(2))
    assert equal(first, second)


def test_a_frozen_backbone_does_not_move_and_the_head_does() -> None:
    network = tiny_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fitted = run(examples(), network=network, trainable="head")
    for name, tensor in before.items():
        assert torch.equal(fitted.weights[name], tensor) == (name not in HEAD), name


def test_the_weights_kept_are_those_of_the_best_epoch() -> None:
    fitted = run(examples(), learning_rate=0.3, epochs=6)
    network = tiny_network()
    network.load_state_dict(fitted.weights)
    val = examples(30)
    logits = predict_logits(network, val.inputs, FEED.network_input, 16)
    accuracy = (logits.argmax(1) == val.labels.numpy()).mean()
    assert accuracy == fitted.history[fitted.best_epoch - 1].val_accuracy
    assert accuracy == max(row.val_accuracy for row in fitted.history)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.5)], 2),
        ([(0.7, 1.0), (0.7, 0.9), (0.7, 0.95)], 2),
        ([(0.7, 1.0), (0.7, 1.0)], 1),
    ],
)
def test_the_best_epoch(rows: list[tuple[float, float]], expected: int) -> None:
    history = [Epoch(number, 0, 0, 0, loss, accuracy) for number, (accuracy, loss) in enumerate(rows, start=1)]
    assert best_epoch(history) == expected


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 1, batch 1; try a lower"):
        network = tiny_network()
        network[5].bias.data.fill_(float("nan"))  # type: ignore[index, union-attr, operator]
        run(examples(), network=network)


class Unrepeatable(nn.Module):
    """Refuses as torch does where it has no deterministic kernel."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(
            "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, …"
        )


def test_a_network_that_cannot_be_trained_repeatably_is_said_to_be_so() -> None:
    network = tiny_network()
    network[0] = Unrepeatable()  # type: ignore[operator]
    expected = (
        "adaptive_max_pool2d_backward_cuda has no deterministic implementation there; set `finetune.device` to cpu"
    )
    with pytest.raises(TrainingError, match=expected):
        run(examples(), network=network)


def test_the_workspace_of_cublas_is_fixed_unless_the_user_has_done_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    be_deterministic(1, "cpu")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    be_deterministic(1, "cpu")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_at(step, 100, 0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate_at(0, 10, 0.0) == 1


@pytest.mark.parametrize(
    ("count", "size", "expected"), [(10, 5, [5, 5]), (11, 5, [5, 6]), (12, 5, [5, 5, 2]), (3, 5, [3]), (1, 5, [1])]
)
def test_no_batch_of_one(count: int, size: int, expected: list[int]) -> None:
    assert [piece.stop - piece.start for piece in split_in_batches(count, size)] == expected


def test_the_head_learns_faster_and_norms_do_not_decay() -> None:
    optimizer = training._optimizer(tiny_network(), HEAD, settings(head_learning_rate_factor=10.0))
    groups = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in optimizer.param_groups}
    assert groups == {(0.02, 0.01): 1, (0.02, 0.0): 3, (0.2, 0.01): 1, (0.2, 0.0): 1}


# The image modality


def test_the_architectures_are_those_of_torchvision() -> None:
    assert list(ARCHITECTURES) == torchvision.models.list_models(module=torchvision.models)


# RegNet computes its widths with tensors, so that it cannot be built without data; two small ones stand for all.
BUILT_WITH_DATA = ("regnet_x_400mf", "regnet_y_400mf")
BUILT_WITHOUT = [name for name in ARCHITECTURES if not name.startswith("regnet")]


@pytest.mark.parametrize("architecture", [*BUILT_WITHOUT, *BUILT_WITH_DATA])
def test_every_architecture_gets_the_head_that_is_asked_for(architecture: str) -> None:
    with torch.device("cpu" if architecture in BUILT_WITH_DATA else "meta"):  # some networks hold a gigabyte
        network, original = (image.build_network(architecture, num_outputs) for num_outputs in (7, 1000))
    head = image.head_parameters(network, 7)
    differing = {
        name for name, tensor in network.state_dict().items() if tensor.shape != original.state_dict()[name].shape
    }
    assert differing == set(head)


def test_pretrained_weights_are_loaded_all_but_the_head() -> None:
    network = image.build_network("shufflenet_v2_x0_5", 3)
    weights = {
        name: torch.ones_like(tensor)
        for name, tensor in image.build_network("shufflenet_v2_x0_5", 9).state_dict().items()
    }
    head = image.head_parameters(network, 3)
    before = {name: network.state_dict()[name].clone() for name in head}
    image.load_backbone(network, weights, head, "x")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if name in head else torch.ones_like(tensor)), name


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: weights.pop("conv1.0.weight"), "missing: conv1.0.weight"),
        (lambda weights: weights.update({"extra": torch.ones(1)}), "unknown: extra"),
        (
            lambda weights: weights.update({"conv1.0.weight": torch.ones(4, 3, 3, 3)}),
            r"of another shape: conv1.0.weight \(4, 3, 3, 3\) instead of \(24, 3, 3, 3\)",
        ),
        (lambda weights: weights["conv1.0.weight"].fill_(float("inf")), "not finite, first in conv1.0.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change: Callable[[Any], Any], expected: str) -> None:
    network = image.build_network("shufflenet_v2_x0_5", 3)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    change(weights)
    with pytest.raises(CheckpointError, match=expected):
        image.load_backbone(network, weights, image.head_parameters(network, 3), "file:x")


def test_published_weights_bring_their_preprocessing() -> None:
    address, described = published.describe_weights("ResNet18_Weights.IMAGENET1K_V1")
    assert described.architecture == "resnet18"
    assert address.startswith("https://")
    assert described.preprocessing == {
        "resize_size": 256, "crop_size": 224, "interpolation": "bilinear", "mean": published.IMAGENET_MEAN,
        "std": published.IMAGENET_STD,
    }  # fmt: skip
    assert (
        published.preprocessing_for(described.preprocessing, ImageFinetune(size=112, augment=STILL)).resize_size == 128
    )
    with pytest.raises(ParamsError, match=r"set `image\.finetune\.size`"):
        published.preprocessing_for(None, ImageFinetune(size=None, augment=STILL))


@pytest.mark.parametrize("size", [(90, 60), (61, 47), (40, 41), (17, 100), (20, 25)])
def test_a_picture_is_prepared_as_torchvision_would(size: tuple[int, int]) -> None:
    picture = draw(4, *size)
    preset = v2.Compose([v2.Resize(20), v2.CenterCrop(16)])
    expected = np.asarray(preset(picture)).transpose(2, 0, 1)
    assert (pictures.prepare(encoded(picture), dataclasses.replace(PREPROCESSING, resize_size=20)) == expected).all()


def encoded(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_every_form_of_a_picture_gives_the_same_pixels() -> None:
    gray = draw(5, 16, 16).convert("L")
    reference = pictures.prepare(encoded(gray), PREPROCESSING)
    forms: list[Any] = [
        encoded(gray.convert("RGB")), encoded(gray.convert("RGBA")), encoded(gray.convert("LA")), np.asarray(gray),
        np.asarray(gray)[:, :, None], np.asarray(gray.convert("RGB")), np.asarray(gray.convert("RGBA")),
    ]  # fmt: skip
    for form in forms:
        assert (pictures.prepare(form, PREPROCESSING) == reference).all()
    assert reference.shape == (3, 16, 16)
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = gray.transpose(Image.Transpose.ROTATE_270)
    assert (pictures.prepare(encoded(turned, exif=exif), PREPROCESSING) == reference).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.float32), np.zeros(4, np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8),
        np.zeros((4, 4, 3, 1), np.uint8),
    ],
)  # fmt: skip
def test_pixels_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pixels must be \(height, width\) or"):
        pictures.prepare(pixels, PREPROCESSING)


def test_a_picture_like_a_ribbon_is_refused_before_it_is_scaled_up() -> None:
    ribbon = Image.new("RGB", (8, 8 * image_file.MAX_ASPECT + 1))
    for picture in (encoded(ribbon), np.asarray(ribbon)):
        with pytest.raises(ValueError, match="8 x 401 pixels, longer than 50 times its width"):
            pictures.prepare(picture, PREPROCESSING)
    assert pictures.prepare(encoded(ribbon.crop((0, 0, 8, 400))), PREPROCESSING).shape == (3, 16, 16)


def test_counters_of_batch_norms_may_be_missing() -> None:
    network = image.build_network("shufflenet_v2_x0_5", 3)
    weights = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    image.load_backbone(network, weights, image.head_parameters(network, 3), "file:x")


def test_a_densenet_is_converted_to_the_names_of_today(tmp_path: Path) -> None:
    network = image.build_network("densenet121", 3)
    published = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    torch.save(published, tmp_path / "published.pth")
    legacy.convert(tmp_path / "published.pth", tmp_path / "base.safetensors")
    converted = load_file(tmp_path / "base.safetensors")
    image.load_backbone(network, converted, image.head_parameters(network, 3), "file:x")


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_networks_from_tensorflow_get_the_range_of_inputs_that_they_were_trained_with(architecture: str) -> None:
    with torch.device("meta"):
        assert image.build_network(architecture, 3).transform_input is True


def test_no_augmentation_changes_nothing() -> None:
    inputs = examples(6).inputs
    same = augmentation.distort(inputs, torch.rand(6, augmentation.NUM_DRAWS), STILL)
    assert torch.allclose(same, inputs.float(), atol=1e-3)


def test_augmentation_flips_turns_and_shifts() -> None:
    inputs = examples(2).inputs
    draws = torch.full((2, 5), 0.5)
    draws[0, 4], draws[1, 4] = 0.1, 0.9
    flipped = augmentation.distort(
        inputs, draws, Augment(rotation=0.0, translation=0.0, scale=1.0, horizontal_flip=True)
    )
    assert torch.allclose(flipped[0], inputs[0].flip(-1).float(), atol=1e-3)
    assert torch.allclose(flipped[1], inputs[1].float(), atol=1e-3)
    draws[:, 0] = 1.0
    turned = augmentation.distort(
        inputs, draws, Augment(rotation=90.0, translation=0.0, scale=1.0, horizontal_flip=False)
    )
    quarter = [torch.rot90(inputs[0], turns, (1, 2)).float() for turns in (1, 3)]
    assert any(torch.allclose(turned[0], candidate, atol=1e-2) for candidate in quarter)
    draws[:, 0], draws[:, 2] = 0.5, 1.0
    shifted = augmentation.distort(
        inputs, draws, Augment(rotation=0.0, translation=0.25, scale=1.0, horizontal_flip=False)
    )
    assert torch.allclose(shifted[0, :, :, :12], inputs[0, :, :, 4:].float(), atol=1e-2)
    assert (shifted[0, :, :, 12:] == 0).all()


# The stages, in a project


def set_up(images: Path, edit_params: Callable[..., Params], **changes: Any) -> None:
    write_image_folder(images, per_class=40)
    defaults = {
        "data__source": "data/images", "checkpoint__uri": "scratch", "checkpoint__sha256": None,
        "image__finetune__size": 32, "finetune__epochs": 3, "finetune__batch_size": 16,
        "evaluate__bootstrap_samples": 100,        "validate__min_images_per_class__val": 1,
    }  # fmt: skip
    edit_params(**defaults | changes)
    for stage in (ingest, validate, fetch):
        stage.main()


@pytest.fixture
def trained(images: Path, edit_params: Callable[..., Params]) -> Path:
    set_up(images, edit_params)
    finetune.main()
    return images


def test_finetune_and_evaluate_leave_what_they_promise(trained: Path) -> None:
    evaluate.main()
    card = json.loads(paths.MODEL_CARD.read_text())
    assert card["classes"] == ["cat", "dog"]
    assert card["architecture"] == "shufflenet_v2_x0_5"
    assert card["lineage"]["base_uri"] == "scratch"
    evaluation = json.loads(paths.EVALUATION.read_text())
    assert evaluation["num_examples"] == sum(row["support"] for row in evaluation["per_class"].values())
    assert "Evaluation on" in paths.EVALUATION_REPORT.read_text()
    for output in (paths.PREDICTIONS, paths.CONFUSION_PLOT, paths.RELIABILITY_PLOT, paths.HISTORY):
        assert output.stat().st_size > 0


def test_a_whole_run_again_gives_the_same_bytes(trained: Path) -> None:
    outputs = [path for stage in ("finetune", "evaluate") for path in paths.STAGE_OUTPUTS[stage]]
    evaluate.main()
    before = [output.read_bytes() for output in outputs]
    finetune.main()
    evaluate.main()
    assert [output.read_bytes() for output in outputs] == before


def test_the_report_shows_the_worst_errors_as_pictures(trained: Path) -> None:
    classifier = Classifier.load(paths.MODEL_WEIGHTS, paths.MODEL_CARD)
    card = dataclasses.replace(classifier.card, classes=("dog", "cat"))  # every right answer is now a mistake
    publish_record(paths.MODEL_CARD, card)
    evaluate.main()
    page = paths.EVALUATION_REPORT.read_text()
    assert page.count("data:image/png;base64,") > 0
    assert "http" not in page.replace("http-equiv", "")


def test_an_image_that_changed_after_validation_stops_the_training(
    images: Path, edit_params: Callable[..., Params]
) -> None:
    set_up(images, edit_params)
    for file in images.rglob("*.png"):
        file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(DataError, match="was changed after it was validated"):
        finetune.main()
    assert not paths.MODEL_WEIGHTS.exists()


def test_a_base_that_was_swapped_stops_the_training(images: Path, edit_params: Callable[..., Params]) -> None:
    set_up(images, edit_params)
    save_file({"x": torch.ones(1)}, paths.BASE_WEIGHTS)
    with pytest.raises(CheckpointError, match="run `dvc repro -f fetch`"):
        finetune.main()


def test_images_too_small_for_the_model_are_said_to_be_so(images: Path, edit_params: Callable[..., Params]) -> None:
    set_up(images, edit_params, finetune__model="vit_b_16")
    with pytest.raises(ParamsError, match=r"vit_b_16 does not take .* 32x32 .*another size in `image\.finetune`"):
        finetune.main()
    edit_params(finetune__model="alexnet")
    with pytest.raises(ParamsError, match=r"alexnet does not take examples of 32x32 .*Output size is too small"):
        finetune.main()


def test_a_gpu_that_is_not_there_is_an_error(images: Path, edit_params: Callable[..., Params]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    set_up(images, edit_params, finetune__device="cuda")
    with pytest.raises(ParamsError, match="torch sees no GPU here"):
        finetune.main()


def test_a_model_whose_files_do_not_belong_together_is_refused(trained: Path) -> None:
    weights = load_file(paths.MODEL_WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, paths.MODEL_WEIGHTS)
    with pytest.raises(CheckpointError, match="one of them was changed"):
        Classifier.load(paths.MODEL_WEIGHTS, paths.MODEL_CARD)
    paths.MODEL_WEIGHTS.unlink()
    with pytest.raises(CheckpointError, match=r"`dvc pull` brings it back"):
        Classifier.load(paths.MODEL_WEIGHTS, paths.MODEL_CARD)


def test_predictions_do_not_depend_on_their_company(trained: Path) -> None:
    classifier = Classifier.load(paths.MODEL_WEIGHTS, paths.MODEL_CARD)
    files = [file.read_bytes() for file in sorted(trained.rglob("*.png"))[:5]]
    together = classifier.predict(files)
    assert together.sum(axis=1) == pytest.approx(1)
    for row, file in zip(together, files, strict=True):
        assert classifier.predict([file])[0] == pytest.approx(row, abs=1e-5)
    assert classifier.predict([]).shape == (0, 2)
    with pytest.raises(ValueError, match=r"example 1: not an image \(text\)"):
        classifier.predict([files[0], b"no image"])


def test_head_dropout_changes_training_only(images: Path, edit_params: Callable[..., Params]) -> None:
    set_up(images, edit_params, finetune__head_dropout=0.5, finetune__epochs=1)
    finetune.main()
    classifier = Classifier.load(paths.MODEL_WEIGHTS, paths.MODEL_CARD)
    inputs = torch.zeros(1, 3, 32, 32)
    assert torch.equal(classifier.network(inputs), classifier.network(inputs))
    classifier.network.train()
    inputs = torch.rand(2, 3, 32, 32)
    torch.manual_seed(1)
    first = classifier.network(inputs)
    assert not torch.equal(first, classifier.network(inputs))
    assert load_params().finetune.head_dropout == 0.5
