"""A trained model as it is used: a pair of files (weights, card) in, labels and probabilities out.

    classifier = Classifier.load(Path("models/model.safetensors"), Path("models/model.json"))
    probabilities = classifier.predict([Path("digit.png").read_bytes()])

Evaluation, `refit predict` and the MLflow model all go through here, so they cannot differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import modality
from ..errors import CheckpointError
from ..files import sha256_of_file
from ..modality import own
from ..modality.contract import Opaque
from ..scoring import metrics
from .card import Card, read_card

_BATCH_SIZE = 16
"""Measured on CPUs: larger ones leave the caches and take up to 1.5 times as long."""


@dataclass(frozen=True)
class Classifier:
    """A network with the card that says how to feed it and what its outputs mean."""

    network: nn.Module
    card: Card
    preprocessing: Opaque  # of the modality

    @classmethod
    def load(cls, weights: Path, card_file: Path, device: str | torch.device = "cpu") -> "Classifier":
        """Load and verify a model.

        Raises:
            CheckpointError: a file is missing, the weights are not those of the card, or the format is newer.
        """
        if not weights.is_file():
            raise CheckpointError(f"{weights} is missing; `dvc pull` brings it back, `dvc repro` makes it again")
        card = read_card(card_file)
        if sha256_of_file(weights) != card.weights_sha256:
            raise CheckpointError(f"{weights} are not the weights that {card_file} describes; one of them was changed")
        own.require_digest(card.architecture, card.network_sha256, str(card_file))
        networks = modality.networks(card.modality)
        preprocessing = modality.preprocessing(card.modality).read_preprocessing(card.preprocessing, str(card_file))
        network = networks.build_network(card.architecture, len(card.classes), card.head_dropout, preprocessing)
        state = network.state_dict()  # with the versions of its modules, which MNASNet asks for and no file keeps
        state.clear()
        state.update(load_file(weights))
        network.load_state_dict(state, strict=True)
        return cls(network.to(device).eval(), card, preprocessing)

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the probabilities."""
        return self.card.classes

    def probabilities(self, inputs: Tensor) -> np.ndarray:
        """Prepared examples (n, …) -> calibrated probabilities (n, num_classes) float64."""
        networks = modality.networks(self.card.modality)
        network_input = partial(networks.network_input, preprocessing=self.preprocessing)
        device = next(self.network.parameters()).device
        if networks.extents is not None:  # like ones together
            order = torch.from_numpy(networks.extents(inputs.numpy()).argsort(kind="stable"))
            logits = predict_logits(self.network, inputs[order].to(device), network_input, _BATCH_SIZE)
            logits = logits[order.argsort().numpy()]
        else:
            logits = predict_logits(self.network, inputs.to(device), network_input, _BATCH_SIZE)
        return metrics.softmax(logits, self.card.temperature)

    def predict(self, examples: Sequence[Opaque]) -> np.ndarray:
        """Raw examples, as the modality's `parse` gives them -> calibrated probabilities (n, num_classes) float64.

        Raises:
            ValueError: an example cannot be read; the message says which and why.
        """
        if not examples:
            return np.empty((0, len(self.classes)))
        prepare = modality.examples(self.card.modality).prepare
        prepared = []
        for index, example in enumerate(examples):
            try:
                prepared.append(prepare(example, self.preprocessing))
            except ValueError as error:
                raise ValueError(f"example {index}: {error}") from None
        return self.probabilities(torch.from_numpy(np.stack(prepared)))


@torch.inference_mode()
def predict_logits(
    network: nn.Module, inputs: Tensor, network_input: Callable[[Tensor], Tensor], batch_size: int
) -> np.ndarray:
    """(n, …) prepared examples -> logits (n, num_classes) float32, in evaluation mode."""
    network.eval()
    batches = [network(network_input(batch)).float().cpu() for batch in torch.split(inputs, batch_size)]
    return np.asarray(torch.cat(batches).numpy())
