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
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn

from refit import modality, paths
from refit.checkpoint.backbone import Loaded
from refit.checkpoint.card import BaseCard
from refit.errors import CheckpointError, DataError, ParamsError, WorkspaceError, run_stage
from refit.files import publish_json, publish_table, publishing, sha256_of_file, sha256_of_json
from refit.modality import own
from refit.model.card import FORMAT, Card, Environment, Pretrained, ValidationMeasures
from refit.params import Params, load_params
from refit.progress import say
from refit.records import as_plain, parse_record, publish_record, read_record
from refit.training.arithmetic import Arithmetic, choose_arithmetic, keep_memory
from refit.training.choices import pinned
from refit.training.determinism import be_deterministic, environment
from refit.training.examples import Examples, read_split, slices_of
from refit.training.job import Feed, Job
from refit.training.lineage import lineage_of
from refit.training.loop import Fitted, fit
from refit.training.plan import Facts, make_plan
from refit.training.shards import Ranks, started
from refit.training.start import Start, features_key, start_from
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
    # One order whatever the files are called: sums, and a state of before they were renamed, depend on it.
    accepted = pd.read_parquet(paths.ACCEPTED).sort_values(["sha256", "label"], ignore_index=True)
    base = read_record(paths.BASE_CARD, BaseCard, CheckpointError, "; run `dvc repro -f fetch`")
    start = start_from(params, accepted, base, device)
    classes, network, groups, feed = start.classes, start.network, start.groups, start.feed
    if start.loaded:
        say(start.loaded.table())
    train, val = (read_split(accepted, split, classes, name, start.preprocessing) for split in ("train", "val"))
    if len(classes) < 2 or not len(train) or not len(val):
        raise DataError(
            f"{len(train):,} train and {len(val):,} val examples of {len(classes)} classes are too few to train on, "
            "whatever `validate.rules` allow; add examples"
        )
    facts = Facts(
        num_train=len(train),
        num_classes=len(classes),
        is_pretrained=base.num_tensors > 0,
        pretrained_rate=modality.settings(name).LEARNING_RATE,
    )
    plan = make_plan(facts, groups, settings)
    sample = _try_out(network, len(classes), train, feed, plan.batch_size, device, settings.model, name)
    packages = modality.examples(name).REQUIRES
    machine = dataclasses.replace(environment(device, packages=packages), num_threads=0)
    # One answer for all processes: each would have a probe of its own.
    learns = any(phase.first_group == 0 for phase in plan.phases)
    chosen = choose_arithmetic(network, sample, settings, learns, as_plain(machine)) if ranks.is_first else None
    told = ranks.from_first(json.dumps(as_plain(chosen)).encode() if chosen else None)
    assert told is not None
    arithmetic = parse_record(told, Arithmetic, WorkspaceError, "the first process")
    torch.set_num_threads(arithmetic.num_threads)
    made_in = environment(device, arithmetic.precision, packages)
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
        features_key=features_key(params, made_in),
        stopped_after=pinned().stopped_after,
    )
    say(f"{settings.model} for {len(classes)} classes, {len(train):,} examples, on {device}")
    read = _read_of(train, name, start)
    for line in (*plan.in_words(), *read, f"{made_in.precision}, {made_in.num_threads} threads: {arithmetic.reason}"):
        say(f"  {line}")
    fingerprint = _fingerprint(params, classes, accepted, base, job)
    if ranks.from_first(fingerprint.encode()) != fingerprint.encode():
        raise WorkspaceError(
            "this process and the first one do not train the same: bring data, params.yaml, code and packages of this "
            "machine to those of the first"
        )
    keeper = Keeper(fingerprint)
    fitted = fit(job, keeper, ranks)
    if not ranks.is_first:
        return
    if settings.max_minutes is not None:
        made_in = dataclasses.replace(made_in, stopped_after=len(fitted.history))
    with publishing(paths.MODEL_WEIGHTS) as partial_file:
        save_file(plain(fitted.weights), partial_file)
    publish_table(paths.HISTORY, as_table(fitted.history))
    card = _card(params, start, base, accepted, fitted, job, made_in)
    publish_record(paths.MODEL_CARD, dataclasses.replace(card, plan=(*card.plan, *read)))
    publish_json(paths.WORK, dataclasses.asdict(fitted.work))
    keeper.clear()
    say(f"epoch {fitted.best_epoch} is the best on validation: {paths.MODEL_WEIGHTS}")


def _read_of(train: Examples, modality_name: str, start: Start) -> list[str]:
    """How much of the training examples the network sees, as far as the modality tells: a line for each property."""
    lines = []
    for name, words in slices_of(train, modality_name, start.preprocessing).items():
        counts = pd.Series(words).value_counts().items()
        lines.append(f"{name} of the training examples: " + ", ".join(f"{count:,} {word}" for word, count in counts))
    return lines


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


def _fingerprint(params: Params, classes: Sequence[str], accepted: pd.DataFrame, base: BaseCard, job: Job) -> str:
    """Of all that decides the result: a state of another training is never picked up."""
    lineage = as_plain(lineage_of(params, accepted, base))
    code = sha256_of_file(Path(__file__))
    return sha256_of_json([lineage, list(classes), job.features_key, job.train.shelf.key, code])


def _card(
    params: Params,
    start: Start,
    base: BaseCard,
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
        classes=start.classes,
        preprocessing=as_plain(start.preprocessing),
        temperature=fitted.temperature,
        best_epoch=fitted.best_epoch,
        validation=ValidationMeasures(accuracy=best.val_accuracy, loss=best.val_loss),
        weights_sha256=sha256_of_file(paths.MODEL_WEIGHTS),
        lineage=lineage_of(params, accepted, base),
        environment=made_in,
        plan=job.plan.in_words(),
        pretrained=_pretrained(start.loaded) if start.loaded else None,
        network_sha256=own.digest(params.finetune.model),
    )


if __name__ == "__main__":
    run_stage(main)
