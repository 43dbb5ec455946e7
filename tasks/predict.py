"""Labels for files: what `refit predict` does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refit import modality, paths
from refit.errors import DataError
from refit.model.card import read_card
from refit.params import load_params
from refit.registry import tracking


@dataclass(frozen=True)
class Prediction:
    """What the model says of one file; probabilities are calibrated."""

    label: str
    probability: float  # of the label
    probabilities: dict[str, float]


def predict_files(files: Sequence[Path], uri: str | None) -> list[Prediction]:
    """What a model says of each file.

    Args:
        files: examples, each a file.
        uri: a model in MLflow; None for the one in models/.

    Raises:
        DataError: a file is missing or cannot be read as an example.
        CheckpointError, TrackingError: the model cannot be loaded.
    """
    params = load_params()
    if uri is not None:
        contents = [_read(file, params.data.modality) for file in files]
        column = modality.examples(params.data.modality).INPUT
        table = tracking.load_model(uri, params.register)({column: contents})
        return [Prediction(row.label, float(row.probability), dict(row.probabilities)) for row in table.itertuples()]
    from refit.model.classifier import Classifier

    contents = [_read(file, read_card(paths.MODEL_CARD).modality) for file in files]
    classifier = Classifier.load(paths.MODEL_WEIGHTS, paths.MODEL_CARD)
    return [
        Prediction(
            classifier.classes[int(row.argmax())],
            float(row.max()),
            dict(zip(classifier.classes, map(float, row), strict=True)),
        )
        for row in classifier.predict(contents)
    ]


def _read(file: Path, modality_name: str) -> bytes:
    """The bytes of a file that the modality can read: a mistake is named before a model is loaded."""
    error = modality.files(modality_name).inspect(file).error
    if error is not None:
        raise DataError(f"{file}: {error}")
    return file.read_bytes()
