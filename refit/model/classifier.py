"""A trained model as it is used: a pair of files (weights, card) in, labels and probabilities out.

    classifier = Classifier.load(Path("models/model.safetensors"), Path("models/model.json"))
    probabilities = classifier.predict([Path("digit.png").read_bytes()])

Evaluation, `refit predict` and the MLflow model all go through here, so they cannot differ.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import modality
from ..errors import CheckpointError
from ..files import sha256_of_file
from ..scoring import metrics
from ..training.loop import predict_logits

_BATCH_SIZE = 256
_FORMAT = 1


@dataclass(frozen=True)
class Classifier:
    """A network with the card that says how to feed it and what its outputs mean."""

    network: nn.Module
    card: dict[str, Any]
    networks: ModuleType  # the torch half of the modality

    @classmethod
    def load(cls, weights: Path, card_file: Path, device: str | torch.device = "cpu") -> "Classifier":
        """Load and verify a model.

        Raises:
            CheckpointError: a file is missing, the weights are not those of the card, or the format is newer.
        """
        for file in (weights, card_file):
            if not file.is_file():
                raise CheckpointError(f"{file} is missing; `dvc pull` brings it back, `dvc repro` makes it again")
        card = json.loads(card_file.read_text())
        if card["format"] != _FORMAT:
            raise CheckpointError(f"{card_file} has format {card['format']}, this version of Refit reads {_FORMAT}")
        if sha256_of_file(weights) != card["weights_sha256"]:
            raise CheckpointError(f"{weights} are not the weights that {card_file} describes; one of them was changed")
        networks = modality.networks(card["modality"])
        network = networks.build_network(card["architecture"], len(card["classes"]), card["head_dropout"])
        network.load_state_dict(load_file(weights), strict=True)
        return cls(network.to(device).eval(), card, networks)

    @property
    def classes(self) -> list[str]:
        """Labels in the order of the probabilities."""
        return list(self.card["classes"])

    def probabilities(self, inputs: Tensor) -> np.ndarray:
        """Prepared examples (n, …) uint8 -> calibrated probabilities (n, num_classes) float64."""
        device = next(self.network.parameters()).device
        logits = predict_logits(self.network, inputs.to(device), self.networks, self.card["preprocessing"], _BATCH_SIZE)
        return metrics.softmax(logits, self.card["temperature"])

    def predict(self, examples: Sequence[Any]) -> np.ndarray:
        """Raw examples (encoded files as bytes, or arrays) -> calibrated probabilities (n, num_classes) float64.

        Raises:
            ValueError: an example cannot be read; the message says which and why.
        """
        if not examples:
            return np.empty((0, len(self.classes)))
        prepared = []
        for index, example in enumerate(examples):
            try:
                prepared.append(self.networks.prepare(example, self.card["preprocessing"]))
            except ValueError as error:
                raise ValueError(f"example {index}: {error}") from None
        return self.probabilities(torch.from_numpy(np.stack(prepared)))
