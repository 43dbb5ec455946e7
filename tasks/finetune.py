"""Stage `finetune`: trains the model.

    python -m tasks.finetune      data/accepted.parquet, its images, checkpoints/base.* and `finetune` params
                                  -> models/model.safetensors, models/model.json, plots/history.csv

model.json, the model's card, holds all that is needed to use the weights and to know where they came from:

    format                    1; a reader refuses what it does not know
    modality, architecture, head_dropout, classes (in the order of the logits), preprocessing
    temperature               logits are divided by it to give calibrated probabilities
    best_epoch, validation    the epoch that was kept and its measures
    weights_sha256            of model.safetensors
    lineage                   digests of the data, its split, the base checkpoint and the parameters
    environment               the class in which training again gives the same bits
"""

import dataclasses
import json
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from refit import modality, paths
from refit.errors import CheckpointError, ParamsError, run_stage
from refit.files import publish_json, publish_table, publishing, sha256_of_file
from refit.params import Params, load_params, training_digest
from refit.progress import say
from refit.training.determinism import be_deterministic, environment, example_keys
from refit.training.loop import Examples, Fitted, fit, predict_logits


def main() -> None:
    params = load_params()
    device = be_deterministic(params.finetune.num_threads, params.finetune.device)
    networks = modality.networks(params.data.modality)
    accepted = pd.read_parquet(paths.ACCEPTED)
    classes = sorted(set(params.validate.labels or ()) | set(accepted["label"]))
    base = json.loads(paths.BASE_CARD.read_text())
    preprocessing = networks.preprocessing_for(base, params.finetune.image_size)

    torch.manual_seed(params.seed)  # the new head starts from random weights
    network = networks.build_network(params.finetune.model, len(classes), params.finetune.head_dropout)
    head = networks.head_parameters(network, len(classes))
    _load_base(network, head, base, networks)
    train, val = (
        _read(accepted[accepted["split"] == split], classes, preprocessing, networks, split)
        for split in ("train", "val")
    )
    _try_out(network, train, preprocessing, networks, params.finetune.model)
    say(f"{params.finetune.model} for {len(classes)} classes, {len(train.labels):,} images, on {device}")
    fitted = fit(
        network.to(device),
        head,
        train.to(device),
        val.to(device),
        networks,
        preprocessing,
        params.finetune,
        params.seed,
    )

    with publishing(paths.MODEL_WEIGHTS) as partial:
        save_file({name: tensor.contiguous() for name, tensor in fitted.weights.items()}, partial)
    publish_table(paths.HISTORY, pd.DataFrame([dataclasses.asdict(row) for row in fitted.history]))
    publish_json(paths.MODEL_CARD, _card(params, classes, preprocessing, base, fitted, device))
    say(f"epoch {fitted.best_epoch} is the best on validation: {paths.MODEL_WEIGHTS}")


def _load_base(network: nn.Module, head: list[str], base: dict[str, Any], networks: Any) -> None:
    found = sha256_of_file(paths.BASE_WEIGHTS)
    if found != base["sha256"]:
        raise CheckpointError(
            f"{paths.BASE_WEIGHTS} is not the file that {paths.BASE_CARD} describes; run `dvc repro -f fetch`"
        )
    if base["num_tensors"]:
        networks.load_backbone(network, load_file(paths.BASE_WEIGHTS), head, base["uri"])


def _read(rows: pd.DataFrame, classes: list[str], preprocessing: dict[str, Any], networks: Any, split: str) -> Examples:
    files = list(zip(rows["path"], rows["sha256"], strict=True))
    indices = {label: index for index, label in enumerate(classes)}
    return Examples(
        inputs=networks.read_examples(files, preprocessing, f"read {split}"),
        labels=torch.tensor([indices[label] for label in rows["label"]]),
        keys=example_keys(list(rows["sha256"])),
    )


def _try_out(
    network: nn.Module, train: Examples, preprocessing: dict[str, Any], networks: Any, architecture: str
) -> None:
    """One example through the network, since each architecture has its own idea of what is too small."""
    try:
        predict_logits(network, train.inputs[:1], networks, preprocessing, batch_size=1)
    except (RuntimeError, AssertionError, ValueError) as error:  # torchvision's ViT asserts, others fail in a kernel
        size = "x".join(str(side) for side in train.inputs.shape[2:])
        raise ParamsError(
            f"`finetune.model` {architecture} does not take images of {size} pixels "
            f"({' '.join(str(error).split())}); set `finetune.image_size` to what it was made for, 224 for most"
        ) from None


def _card(
    params: Params,
    classes: list[str],
    preprocessing: dict[str, Any],
    base: dict[str, Any],
    fitted: Fitted,
    device: torch.device,
) -> dict[str, Any]:
    validation = json.loads(paths.VALIDATION_SUMMARY.read_text())
    best = fitted.history[fitted.best_epoch - 1]
    return {
        "format": 1,
        "modality": params.data.modality,
        "architecture": params.finetune.model,
        "head_dropout": params.finetune.head_dropout,
        "classes": classes,
        "preprocessing": preprocessing,
        "temperature": fitted.temperature,
        "best_epoch": fitted.best_epoch,
        "validation": {"accuracy": best.val_accuracy, "loss": best.val_loss},
        "weights_sha256": sha256_of_file(paths.MODEL_WEIGHTS),
        "lineage": {
            "data_digest": validation["data_digest"],
            "split_digest": validation["split_digest"],
            "base_uri": base["uri"],
            "base_sha256": base["sha256"],
            "params_digest": training_digest(params),
        },
        "environment": environment(device),
    }


if __name__ == "__main__":
    run_stage(main)
