"""A network as its training begins: with the weights of the base checkpoint in it, and what feeds it.

    start = start_from(params, accepted, base, device)

Whoever wants the same network from the same params (the training; the features of the base checkpoint) gets it here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn

from .. import modality
from ..checkpoint.backbone import Loaded, load_backbone
from ..checkpoint.card import BaseCard
from ..errors import CheckpointError
from ..files import sha256_of_file, sha256_of_json
from ..modality import own
from ..modality.contract import LayerGroup, Opaque
from ..model.card import Environment
from ..params import Params
from ..paths import BASE_CARD, BASE_WEIGHTS
from ..records import as_plain
from .job import Feed


@dataclass(frozen=True)
class Start:
    """What a training begins with."""

    classes: tuple[str, ...]
    preprocessing: Opaque
    network: nn.Module  # on the device; its new output layer is random
    groups: Sequence[LayerGroup]
    feed: Feed
    loaded: Loaded | None  # None: from scratch


def start_from(params: Params, accepted: pd.DataFrame, base: BaseCard, device: torch.device) -> Start:
    """The network that `params` name for the classes of `accepted`, with the weights of the base checkpoint.

    Raises:
        CheckpointError: as `load_backbone`, or the weights' file is not the card's.
    """
    name = params.data.modality
    classes = tuple(sorted(set(params.validate.labels or ()) | set(accepted["label"])))
    preprocessing = modality.weights(name).preprocessing_for(base.preprocessing, params.of_modality.finetune)
    torch.manual_seed(params.seed)  # the new head starts from random weights
    networks, dropout = modality.networks(name), params.finetune.head_dropout
    network = networks.build_network(params.finetune.model, len(classes), dropout, preprocessing)
    head = networks.head_parameters(network, len(classes))
    loaded = _load_base(network, _new_parameters(head, base, classes), base, params)
    return Start(
        classes=classes,
        preprocessing=preprocessing,
        network=network.to(device),
        groups=networks.layer_groups(network, head),
        feed=_feed(name, preprocessing, params.of_modality.finetune),
        loaded=loaded,
    )


def features_key(params: Params, made_in: Environment) -> str:
    """The digest of what decides the features of frozen layers, beside their weights and the examples."""
    model = params.finetune.model
    return sha256_of_json([model, own.digest(model), as_plain(made_in), _code_digest(params.data.modality)])


def _code_digest(modality_name: str) -> str:
    """Of the code that trains: another one has neither use for the state of a killed training nor for features."""
    root = Path(__file__).parents[1]
    folders = [root / room for room in ("training", "model", "scoring", "checkpoint", f"modality/{modality_name}")]
    return sha256_of_json([sha256_of_file(file) for folder in folders for file in sorted(folder.glob("*.py"))])


def _new_parameters(head: list[str], base: BaseCard, classes: tuple[str, ...]) -> list[str]:
    """What starts from random weights: the head, unless a registered version goes on with its own classes."""
    return [] if base.format == "refit" and base.classes == classes else head


def _load_base(network: nn.Module, new: list[str], base: BaseCard, params: Params) -> Loaded | None:
    if sha256_of_file(BASE_WEIGHTS) != base.sha256:
        raise CheckpointError(f"{BASE_WEIGHTS} is not the file that {BASE_CARD} describes; run `dvc repro -f fetch`")
    if not base.num_tensors:
        return None
    origin = f"{base.uri} of {base.architecture}" if base.architecture else base.uri
    checkpoint, weights = params.checkpoint, load_file(BASE_WEIGHTS)
    kind = params.data.modality
    return load_backbone(network, weights, new, kind, origin, checkpoint.prefix, checkpoint.min_loaded)


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
