"""Labels for files: what `refit predict` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refit import paths
from refit.errors import DataError
from refit.modality.image.files import decode, read_bytes
from refit.params import load_params
from refit.registry import tracking


def predict_files(files: Sequence[Path], uri: str | None) -> list[dict[str, Any]]:
    """`label`, `probability` and `probabilities` ({label: probability}) for each file.

    Args:
        files: encoded images.
        uri: a model in MLflow; None for the one in models/.

    Raises:
        DataError: a file is missing or is no image.
        CheckpointError, TrackingError: the model cannot be loaded.
    """
    contents = [_read(file) for file in files]
    if uri is not None:
        table = tracking.load_model(uri, load_params().register)({"image": contents})
        return [dict(row) for row in table.to_dict("records")]
    from refit.model.classifier import Classifier

    classifier = Classifier.load(paths.MODEL_WEIGHTS, paths.MODEL_CARD)
    return [
        {
            "label": classifier.classes[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(classifier.classes, map(float, row), strict=True)),
        }
        for row in classifier.predict(contents)
    ]


def _read(file: Path) -> bytes:
    try:
        content = read_bytes(file)
        decode(content)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
    return content
