"""Stage `finetune`: trains the model.

    python -m tasks.finetune      data/accepted.parquet, its files, checkpoints/base.* and `finetune` params
                                  -> models/model.safetensors, models/model.json, plots/history.csv

model.json is the model's card (`refit/model/card.py`): all that is needed to use the weights, and to know where they
came from.
"""

import dataclasses
from collections.abc import Sequence

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from refit import modality, paths
from refit.checkpoint.card import BaseCard
from refit.data.digests import data_digest, split_digest
from refit.errors import CheckpointError, ParamsError, run_stage
from refit.files import publish_table, publishing, sha256_of_file
from refit.modality.contract import Opaque
from refit.model.card import FORMAT, Card, Lineage, ValidationMeasures
from refit.model.classifier import predict_logits
from refit.params import Params, load_params, training_digest
from refit.progress import say
from refit.records import as_plain, publish_record, read_record
from refit.training.determinism import be_deterministic, environment
from refit.training.examples import Examples, read_split
from refit.training.loop import Feed, Fitted, feed_of, fit


def main() -> None:
    params = load_params()
    name = params.data.modality
    device = be_deterministic(params.finetune.num_threads, params.finetune.device)
    accepted = pd.read_parquet(paths.ACCEPTED)
    classes = sorted(set(params.validate.labels or ()) | set(accepted["label"]))
    base = read_record(paths.BASE_CARD, BaseCard, CheckpointError, "; run `dvc repro -f fetch`")
    preprocessing = modality.weights(name).preprocessing_for(base.preprocessing, params.of_modality.finetune)

    torch.manual_seed(params.seed)  # the new head starts from random weights
    network = modality.networks(name).build_network(params.finetune.model, len(classes), params.finetune.head_dropout)
    head = modality.networks(name).head_parameters(network, len(classes))
    _load_base(network, head, base, name)
    feed = feed_of(name, preprocessing, params.of_modality.finetune)
    train, val = (read_split(accepted, split, classes, name, preprocessing) for split in ("train", "val"))
    _try_out(network, train, feed, params.finetune.model, name)
    say(f"{params.finetune.model} for {len(classes)} classes, {len(train.labels):,} examples, on {device}")
    fitted = fit(network.to(device), head, train.to(device), val.to(device), feed, params.finetune, params.seed)

    with publishing(paths.MODEL_WEIGHTS) as partial_file:
        save_file({name: tensor.contiguous() for name, tensor in fitted.weights.items()}, partial_file)
    publish_table(paths.HISTORY, pd.DataFrame([dataclasses.asdict(row) for row in fitted.history]))
    publish_record(paths.MODEL_CARD, _card(params, classes, preprocessing, base, accepted, fitted, device))
    say(f"epoch {fitted.best_epoch} is the best on validation: {paths.MODEL_WEIGHTS}")


def _load_base(network: nn.Module, head: list[str], base: BaseCard, modality_name: str) -> None:
    if sha256_of_file(paths.BASE_WEIGHTS) != base.sha256:
        raise CheckpointError(
            f"{paths.BASE_WEIGHTS} is not the file that {paths.BASE_CARD} describes; run `dvc repro -f fetch`"
        )
    if base.num_tensors:
        modality.networks(modality_name).load_backbone(network, load_file(paths.BASE_WEIGHTS), head, base.uri)


def _try_out(network: nn.Module, train: Examples, feed: Feed, architecture: str, modality_name: str) -> None:
    """One example through the network, since each architecture has its own idea of what is too small."""
    try:
        predict_logits(network, train.inputs[:1], feed.network_input, batch_size=1)
    except (RuntimeError, AssertionError, ValueError) as error:  # torchvision's ViT asserts, others fail in a kernel
        size = "x".join(str(side) for side in train.inputs.shape[2:])
        raise ParamsError(
            f"`finetune.model` {architecture} does not take examples of {size} ({' '.join(str(error).split())}); give "
            f"them another size in `{modality_name}.finetune`"
        ) from None


def _card(
    params: Params,
    classes: Sequence[str],
    preprocessing: Opaque,
    base: BaseCard,
    accepted: pd.DataFrame,
    fitted: Fitted,
    device: torch.device,
) -> Card:
    best = fitted.history[fitted.best_epoch - 1]
    return Card(
        format=FORMAT,
        modality=params.data.modality,
        architecture=params.finetune.model,
        head_dropout=params.finetune.head_dropout,
        classes=tuple(classes),
        preprocessing=as_plain(preprocessing),
        temperature=fitted.temperature,
        best_epoch=fitted.best_epoch,
        validation=ValidationMeasures(accuracy=best.val_accuracy, loss=best.val_loss),
        weights_sha256=sha256_of_file(paths.MODEL_WEIGHTS),
        lineage=Lineage(
            data_digest=data_digest(accepted),
            split_digest=split_digest(accepted),
            base_uri=base.uri,
            base_sha256=base.sha256,
            params_digest=training_digest(params),
        ),
        environment=environment(device),
    )


if __name__ == "__main__":
    run_stage(main)
