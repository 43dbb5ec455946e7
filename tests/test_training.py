"""The image modality, and the stages around the training core, on tiny networks. One process, one torch import."""

import dataclasses
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

from refit import paths
from refit.errors import CheckpointError, DataError, ParamsError, TrainingError
from refit.modality.image import augment as augmentation
from refit.modality.image import examples as pictures
from refit.modality.image import files as image_file
from refit.modality.image import networks as image
from refit.modality.image import weights as published
from refit.modality.image.settings import ARCHITECTURES, Augment
from refit.modality.image.settings import Finetune as ImageFinetune
from refit.model.classifier import Classifier
from refit.params import Params, load_params
from refit.records import publish_record
from refit.training import shards
from refit.training.determinism import be_deterministic
from tasks import evaluate, fetch, finetune, ingest, validate

from .conftest import ROOT, draw, write_image_folder
from .trainings import PREPROCESSING
from .trainings import pictures as tiny_pictures

STILL = Augment(policy="none", rotation=0.0, translation=0.0, scale=1.0, horizontal_flip=False)


@pytest.fixture(autouse=True)
def deterministic() -> None:
    be_deterministic(1, "cpu")


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


@pytest.mark.parametrize(
    "name", ["DeepLabV3_ResNet50_Weights.DEFAULT", "ResNet18_QuantizedWeights.DEFAULT", "R3D_18_Weights.DEFAULT"]
)
def test_weights_of_other_than_classifiers_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"no weights '{name}' of a classifier"):
        published.describe_weights(name)


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


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_networks_from_tensorflow_get_the_range_of_inputs_that_they_were_trained_with(architecture: str) -> None:
    with torch.device("meta"):
        assert image.build_network(architecture, 3).transform_input is True


def test_no_augmentation_changes_nothing() -> None:
    inputs = torch.from_numpy(tiny_pictures(6)[0])
    same = augmentation.distort(inputs, torch.rand(6, augmentation.NUM_DRAWS), STILL)
    assert torch.allclose(same, inputs.float(), atol=1e-3)


def test_augmentation_flips_turns_and_shifts() -> None:
    inputs = torch.from_numpy(tiny_pictures(2)[0])
    draws = torch.full((2, 5), 0.5)
    draws[0, 4], draws[1, 4] = 0.1, 0.9
    flipped = augmentation.distort(
        inputs, draws, Augment(policy="none", rotation=0.0, translation=0.0, scale=1.0, horizontal_flip=True)
    )
    assert torch.allclose(flipped[0], inputs[0].flip(-1).float(), atol=1e-3)
    assert torch.allclose(flipped[1], inputs[1].float(), atol=1e-3)
    draws[:, 0] = 1.0
    turned = augmentation.distort(
        inputs, draws, Augment(policy="none", rotation=90.0, translation=0.0, scale=1.0, horizontal_flip=False)
    )
    quarter = [torch.rot90(inputs[0], turns, (1, 2)).float() for turns in (1, 3)]
    assert any(torch.allclose(turned[0], candidate, atol=1e-2) for candidate in quarter)
    draws[:, 0], draws[:, 2] = 0.5, 1.0
    shifted = augmentation.distort(
        inputs, draws, Augment(policy="none", rotation=0.0, translation=0.25, scale=1.0, horizontal_flip=False)
    )
    assert torch.allclose(shifted[0, :, :, :12], inputs[0, :, :, 4:].float(), atol=1e-2)
    assert (shifted[0, :, :, 12:] == 0).all()


@pytest.mark.parametrize("policy", ["trivial_augment", "rand_augment", "auto_augment"])
def test_a_policy_changes_each_picture_by_its_own_draws_alone(policy: Any) -> None:
    inputs = torch.from_numpy(tiny_pictures(6)[0])
    draws = torch.rand(6, augmentation.NUM_DRAWS, generator=torch.Generator().manual_seed(1))
    settings = ImageFinetune(size=16, augment=dataclasses.replace(STILL, policy=policy))
    changed = augmentation.augment(inputs, draws, settings)
    assert not torch.allclose(changed, inputs.float(), atol=1.0)
    assert torch.equal(augmentation.augment(inputs[2:4], draws[2:4], settings), changed[2:4])


def test_a_large_photo_is_decoded_smaller_and_looks_the_same() -> None:
    photo = draw(7, 640, 480).resize((2560, 1920), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=95)
    large = dataclasses.replace(PREPROCESSING, resize_size=256, crop_size=224)
    assert image_file.decode(buffer.getvalue(), 256).size == (640, 480)
    assert image_file.decode(buffer.getvalue()).size == (2560, 1920)
    whole = pictures.prepare(np.asarray(image_file.decode(buffer.getvalue())), large).astype(int)
    assert np.abs(pictures.prepare(buffer.getvalue(), large) - whole).mean() < 2


# The stages, in a project


def set_up(images: Path, edit_params: Callable[..., Params], **changes: Any) -> None:
    write_image_folder(images, per_class=40)
    defaults = {
        "data__source": "data/images", "checkpoint__uri": "scratch", "checkpoint__sha256": None,
        "image__finetune__size": 32, "finetune__epochs": 3, "finetune__batch_size": 16,
        "evaluate__bootstrap_samples": 100,        "validate__min_examples_per_class__val": 1,
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


def test_two_processes_by_torchrun_or_by_the_stage_itself_give_the_bytes_of_one(
    images: Path, edit_params: Callable[..., Params]
) -> None:
    set_up(images, edit_params, finetune__shards=2, finetune__epochs=2)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tasks.finetune")
    outputs = [paths.MODEL_WEIGHTS, paths.MODEL_CARD, paths.HISTORY]
    found = set()
    for module, processes in ((("tasks.finetune",), "1"), (("tasks.finetune",), "2"), (torchrun, "")):
        command = [sys.executable, "-m", *module]
        whatever = {"PYTHONHASHSEED": processes or "7", "LC_ALL": "C" if processes else "C.UTF-8"}
        environment = {**os.environ, "REFIT_PROCESSES": processes, "PYTHONPATH": str(ROOT), **whatever}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("is the best on validation") == 1
        found.add(tuple(output.read_bytes() for output in outputs))
    assert len(found) == 1


def test_processes_that_cannot_share_the_training_are_not_started(
    images: Path, edit_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(images, edit_params, finetune__shards=4)
    monkeypatch.setenv("REFIT_PROCESSES", "3")
    monkeypatch.setattr(shards, "_start_others", None)
    with pytest.raises(ParamsError, match=r"3 processes cannot share `finetune\.shards: 4`"):
        finetune.main()


def test_a_process_that_dies_before_it_comes_is_not_waited_for(
    images: Path, edit_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(TrainingError, match=r"one of the 2 processes .* is gone \(.*No module named no_such_module\)"),
        shards.started("no_such_module", 2, torch.device("cpu")),
    ):
        pass
    assert "WORLD_SIZE" not in os.environ


def test_machines_that_do_not_train_the_same_are_told_so(
    images: Path, edit_params: Callable[..., Params], tmp_path: Path
) -> None:
    set_up(images, edit_params, finetune__shards=2, finetune__epochs=1)
    other = tmp_path / "other machine"
    shutil.copytree(Path.cwd(), other)
    params = (other / "params.yaml").read_text()
    (other / "params.yaml").write_text(params.replace("label_smoothing: 0.1", "label_smoothing: 0.2"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "tasks.finetune"],
            cwd=folder,
            env={**environment, "WORLD_SIZE": "2", "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate((Path.cwd(), other))
    ]
    said = [machine.communicate(timeout=120)[1] for machine in machines]
    assert "is gone" in said[0]
    assert "do not train the same: bring data, params.yaml, code and packages of this machine" in said[1]
    assert [machine.returncode for machine in machines] != [0, 0]


def test_the_order_of_the_table_changes_nothing(images: Path, edit_params: Callable[..., Params]) -> None:
    """Files may be renamed between a kill and the next start, and the table is in the order of their names."""
    set_up(images, edit_params, finetune__epochs=2)
    outputs = [paths.MODEL_WEIGHTS, paths.MODEL_CARD, paths.HISTORY]
    found = set()
    for step in (1, -1):
        pd.read_parquet(paths.ACCEPTED)[::step].to_parquet(paths.ACCEPTED)
        finetune.main()
        found.add(tuple(output.read_bytes() for output in outputs))
    assert len(found) == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_set_that_is_too_small_whatever_the_rules_allow(
    split: str, images: Path, edit_params: Callable[..., Params]
) -> None:
    set_up(images, edit_params)
    accepted = pd.read_parquet(paths.ACCEPTED)
    accepted[accepted["split"] != split].to_parquet(paths.ACCEPTED)
    with pytest.raises(DataError, match=rf"0 {split} .*too few to train on"):
        finetune.main()
