"""Labels for files: what `refit predict` does."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refit import modality, paths
from refit.errors import DataError
from refit.params import load_params
from refit.registry import versions
from refit.registry.probe import Bare


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
        uri: a version in MLflow, as people call it; None for the model in models/.

    Raises:
        DataError: a file is missing or cannot be read as an example.
        CheckpointError, TrackingError: the model cannot be loaded.
    """
    modality_name = load_params().data.modality
    contents = [_read(file, modality_name) for file in files]  # mistakes are named before a model is loaded
    with tempfile.TemporaryDirectory(prefix="refit-model-") as folder:
        model = Bare(paths.MODEL_WEIGHTS, paths.MODEL_CARD) if uri is None else _fetch(uri, Path(folder))
        from refit.model.classifier import Classifier

        classifier = Classifier.load(model.weights, model.card)
    return [
        Prediction(
            classifier.classes[int(row.argmax())],
            float(row.max()),
            dict(zip(classifier.classes, map(float, row), strict=True)),
        )
        for row in classifier.predict(contents)
    ]


def _fetch(uri: str, folder: Path) -> Bare:
    """Of a model in the registry only its weights and its card, which its evidence names: no code that it brings."""
    settings = load_params().register
    version = versions.find(uri, settings)
    return versions.fetch_bare(version, versions.bundle_of(version, settings), settings, folder)


def _read(file: Path, modality_name: str) -> bytes:
    """The bytes of a file that the modality can read."""
    try:
        error = modality.files(modality_name).inspect(file).error
        if error is not None:
            raise DataError(f"{file}: {error}")
        return file.read_bytes()
    except OSError as problem:
        raise DataError(f"{file} cannot be read: {problem.strerror}") from None
    except MemoryError:
        raise DataError(f"{file}: not enough memory to read it") from None
