"""Stage `finetune`: trains the model.

    python -m tasks.finetune      data/accepted.parquet, its files, checkpoints/base.* and `finetune` params
                                  -> models/model.safetensors, models/model.json, plots/history.csv
    torchrun … -m tasks.finetune  the same bytes, by as many processes as `finetune.shards` allows

model.json is the model's card (`refit/model/card.py`): all that is needed to use the weights, and to know where they
came from. A training that was killed goes on where it was (`refit/training/state.py`).
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import refit
from refit import modality, paths
from refit.checkpoint.backbone import Loaded, load_backbone
from refit.checkpoint.card import BaseCard
from refit.errors import CheckpointError, ParamsError, WorkspaceError, run_stage
from refit.files import publish_json, publish_table, publishing, sha256_of_file, sha256_of_json
from refit.modality import own
from refit.modality.contract import Opaque
from refit.model.card import FORMAT, Card, Environment, Pretrained, ValidationMeasures
from refit.params import Params, load_params
from refit.progress import say
from refit.records import as_plain, parse_record, publish_record, read_record
from refit.training.arithmetic import Arithmetic, choose_arithmetic, keep_memory
from refit.training.choices import pinned
from refit.training.determinism import be_deterministic, environment
from refit.training.examples import Examples, read_split
from refit.training.job import Feed, Job
from refit.training.lineage import lineage_of
from refit.training.loop import Fitted, fit
from refit.training.plan import Facts, make_plan
from refit.training.shards import Ranks, started
from refit.training.state import Keeper, as_table, plain


def main() -> None:
    params = load_params()
    settings = params.finetune
    device = be_deterministic(1, settings.device)
    keep_memory()
    with started("tasks.finetune", settings.shards, device) as ranks:
        _finetune(params, device, ranks)


def _finetune(params: Params, device: torch.device, ranks: Ranks) -> None:
    settings, name = params.finetune, params.data.modality
    accepted = pd.read_parquet(paths.ACCEPTED)
    classes = sorted(set(params.validate.labels or ()) | set(accepted["label"]))
    base = read_record(paths.BASE_CARD, BaseCard, CheckpointError, "; run `dvc repro -f fetch`")
    preprocessing = modality.weights(name).preprocessing_for(base.preprocessing, params.of_modality.finetune)

    torch.manual_seed(params.seed)  # the new head starts from random weights
    network = modality.networks(name).build_network(settings.model, len(classes), settings.head_dropout, preprocessing)
    head = modality.networks(name).head_parameters(network, len(classes))
    loaded = _load_base(network, _new_parameters(head, base, classes), base, params)
    network.to(device)
    train, val = (read_split(accepted, split, classes, name, preprocessing) for split in ("train", "val"))
    feed = _feed(name, preprocessing, params.of_modality.finetune)
    groups = modality.networks(name).layer_groups(network, head)
    facts = Facts(
        num_train=len(train),
        num_classes=len(classes),
        is_pretrained=base.num_tensors > 0,
        pretrained_rate=modality.settings(name).LEARNING_RATE,
    )
    plan = make_plan(facts, groups, settings)
    sample = _try_out(network, len(classes), train, feed, plan.batch_size, device, settings.model, name)
    machine = dataclasses.replace(environment(device), num_threads=0)
    # One answer for all processes: each would have a probe of its own.
    learns = any(phase.first_group == 0 for phase in plan.phases)
    chosen = choose_arithmetic(network, sample, settings, learns, as_plain(machine)) if ranks.is_first else None
    told = ranks.from_first(json.dumps(as_plain(chosen)).encode() if chosen else None)
    assert told is not None
    arithmetic = parse_record(told, Arithmetic, WorkspaceError, "the first process")
    torch.set_num_threads(arithmetic.num_threads)
    made_in = environment(device, arithmetic.precision)
    job = Job(
        network=network,
        groups=groups,
        num_classes=len(classes),
        train=train,
        val=val,
        feed=feed,
        plan=plan,
        settings=settings,
        seed=params.seed,
        device=device,
        precision=arithmetic.precision,
        features_key=sha256_of_json(
            [settings.model, own.digest(settings.model), as_plain(made_in), _code_digest(name)]
        ),
        stopped_after=pinned().stopped_after,
    )
    say(f"{settings.model} for {len(classes)} classes, {len(train):,} examples, on {device}")
    for line in (*plan.in_words(), f"{made_in.precision}, {made_in.num_threads} threads: {arithmetic.reason}"):
        say(f"  {line}")
    keeper = Keeper(_fingerprint(params, classes, accepted, base, job))
    fitted = fit(job, keeper, ranks)
    if not ranks.is_first:
        return
    if settings.max_minutes is not None:
        made_in = dataclasses.replace(made_in, stopped_after=len(fitted.history))
    with publishing(paths.MODEL_WEIGHTS) as partial_file:
        save_file(plain(fitted.weights), partial_file)
    publish_table(paths.HISTORY, as_table(fitted.history))
    publish_record(
        paths.MODEL_CARD, _card(params, classes, preprocessing, base, loaded, accepted, fitted, job, made_in)
    )
    publish_json(paths.WORK, dataclasses.asdict(fitted.work))
    keeper.clear()
    say(f"epoch {fitted.best_epoch} is the best on validation: {paths.MODEL_WEIGHTS}")


def _new_parameters(head: list[str], base: BaseCard, classes: Sequence[str]) -> list[str]:
    """What starts from random weights: the head, unless a registered version goes on with its own classes."""
    return [] if base.format == "refit" and base.classes == tuple(classes) else head


def _load_base(network: nn.Module, new: list[str], base: BaseCard, params: Params) -> Pretrained | None:
    """Raises CheckpointError as `load_backbone` does, and for a file that is not the card's."""
    if sha256_of_file(paths.BASE_WEIGHTS) != base.sha256:
        raise CheckpointError(
            f"{paths.BASE_WEIGHTS} is not the file that {paths.BASE_CARD} describes; run `dvc repro -f fetch`"
        )
    if not base.num_tensors:
        return None
    origin = f"{base.uri} of {base.architecture}" if base.architecture else base.uri
    checkpoint, weights = params.checkpoint, load_file(paths.BASE_WEIGHTS)
    kind = params.data.modality
    loaded = load_backbone(network, weights, new, kind, origin, checkpoint.prefix, checkpoint.min_loaded)
    say(loaded.table())
    return _pretrained(loaded)


def _pretrained(loaded: Loaded) -> Pretrained:
    return Pretrained(
        prefix=loaded.prefix,
        share=loaded.share,
        loaded=len(loaded.loaded),
        missing=len(loaded.missing),
        unexpected=len(loaded.unexpected),
        reshaped=len(loaded.reshaped),
        differing=tuple(name for _, names in loaded.rows() for name in names[:4]),
        has_folded_norms=loaded.has_folded_norms,
    )


def _feed(modality_name: str, preprocessing: Opaque, settings: Opaque) -> Feed:
    """The modality's functions; `settings` are what it adds to the section `finetune`."""
    augmentation = modality.augmentation(modality_name)
    return Feed(
        network_input=partial(modality.networks(modality_name).network_input, preprocessing=preprocessing),
        augment=partial(augmentation.augment, settings=settings),
        extents=modality.networks(modality_name).extents,
        num_draws=augmentation.NUM_DRAWS,
        digest=sha256_of_json(as_plain(settings)),
    )


def _try_out(
    network: nn.Module,
    num_classes: int,
    train: Examples,
    feed: Feed,
    batch_size: int,
    device: torch.device,
    architecture: str,
    modality_name: str,
) -> torch.Tensor:
    """Some examples, once they went through the network: each architecture has its own idea of what is too small."""
    prepared = torch.from_numpy(train.some(min(batch_size, 16))).to(device)
    inputs = feed.network_input(prepared)
    try:
        with torch.inference_mode():
            logits = network.eval()(inputs[:1])
    except (RuntimeError, AssertionError, ValueError) as error:  # torchvision's ViT asserts, others fail in a kernel
        size = "x".join(str(side) for side in prepared.shape[2:])
        raise ParamsError(
            f"`finetune.model` {architecture} does not take examples of {size} ({' '.join(str(error).split())}); give "
            f"them another size in `{modality_name}.finetune`"
        ) from None
    if logits.shape != (1, num_classes):
        raise ParamsError(
            f"`finetune.model` {architecture} gives {logits.shape} for one example, not (1, {num_classes}) logits"
        )
    return inputs


def _code_digest(modality_name: str) -> str:
    """Of the code that trains: another one has neither use for the state of a killed training nor for features."""
    root = Path(refit.__file__).parent
    folders = (
        root / "training",
        root / "model",
        root / "scoring",
        root / "checkpoint",
        root / "modality" / modality_name,
    )
    files = [Path(__file__), *(file for folder in folders for file in sorted(folder.glob("*.py")))]
    return sha256_of_json([sha256_of_file(file) for file in files])


def _fingerprint(params: Params, classes: Sequence[str], accepted: pd.DataFrame, base: BaseCard, job: Job) -> str:
    """Of all that decides the result: a state of another training is never picked up."""
    lineage = as_plain(lineage_of(params, accepted, base))
    return sha256_of_json([lineage, list(classes), job.features_key, job.train.shelf.key])


def _card(
    params: Params,
    classes: Sequence[str],
    preprocessing: Opaque,
    base: BaseCard,
    loaded: Pretrained | None,
    accepted: pd.DataFrame,
    fitted: Fitted,
    job: Job,
    made_in: Environment,
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
        lineage=lineage_of(params, accepted, base),
        environment=made_in,
        plan=job.plan.in_words(),
        pretrained=loaded,
        network_sha256=own.digest(params.finetune.model),
    )


if __name__ == "__main__":
    run_stage(main)
