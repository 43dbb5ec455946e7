"""What Refit's stage `finetune` puts together before it trains, for the benchmarks that look inside it.

project = read_project()                                      # params, classes, preprocessing
feed = feed_of(project.params, project.preprocessing)
job = job_of("image", settings, (train, val), feed, len(project.classes), seed=0)
"""

from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch

from refit import modality, paths
from refit.checkpoint.card import BaseCard
from refit.errors import CheckpointError
from refit.modality.contract import Opaque
from refit.params import Finetune, Params, load_params
from refit.records import read_record
from refit.training.examples import Examples, read_split
from refit.training.job import Feed, Job
from refit.training.plan import Facts, make_plan


@dataclass(frozen=True)
class Project:
    """A project in whose folder we are, once `ingest`, `validate` and `fetch` have run."""

    params: Params
    base: BaseCard
    accepted: pd.DataFrame
    classes: tuple[str, ...]
    preprocessing: Opaque

    def split(self, name: str) -> Examples:
        """The examples of train, val or test."""
        return read_split(self.accepted, name, self.classes, self.params.data.modality, self.preprocessing)


def read_project() -> Project:
    """Raises CheckpointError, ParamsError: a file is missing or broken."""
    params, accepted = load_params(), pd.read_parquet(paths.ACCEPTED)
    base = read_record(paths.BASE_CARD, BaseCard, CheckpointError, "; run `dvc repro -f fetch`")
    weights = modality.weights(params.data.modality)
    preprocessing = weights.preprocessing_for(base.preprocessing, params.of_modality.finetune)
    return Project(params, base, accepted, tuple(sorted(set(accepted["label"]))), preprocessing)


def feed_of(params: Params, preprocessing: Opaque) -> Feed:
    """How prepared examples reach the network."""
    networks, augmentation = modality.networks(params.data.modality), modality.augmentation(params.data.modality)
    return Feed(
        network_input=partial(networks.network_input, preprocessing=preprocessing),
        augment=partial(augmentation.augment, settings=params.of_modality.finetune),
        num_draws=augmentation.NUM_DRAWS,
        extents=networks.extents,
    )


def job_of(
    modality_name: str,
    settings: Finetune,
    splits: tuple[Examples, Examples],
    feed: Feed,
    num_classes: int,
    seed: int,
    preprocessing: Opaque = None,
) -> Job:
    """A training from random weights, in fp32, on the CPU; `splits` are train and val. `preprocessing` is needed where
    it says how large the network is."""
    networks, (train, val) = modality.networks(modality_name), splits
    torch.manual_seed(seed)
    network = networks.build_network(settings.model, num_classes, settings.head_dropout, preprocessing)
    groups = networks.layer_groups(network, networks.head_parameters(network, num_classes))
    facts = Facts(num_train=len(train), num_classes=num_classes, is_pretrained=True)
    return Job(
        network=network,
        groups=groups,
        num_classes=num_classes,
        train=train,
        val=val,
        feed=feed,
        plan=make_plan(facts, groups, settings),
        settings=settings,
        seed=seed,
        device=torch.device("cpu"),
    )
