"""The model as MLflow loads it: `mlflow.pyfunc.load_model("models:/digits@candidate").predict(...)`.

MLflow keeps this file and the `refit` package beside the weights and runs it at loading ("models from code"), so
nothing is pickled. `predict` takes a table with a column `image`, or {"image": [...]}; each image is

    bytes                     an encoded file (JPEG, PNG, …)
    str                       the same in base64, as it comes over HTTP
    array (or nested lists)   pixels: (height, width) or (height, width, 3), whole numbers from 0 to 255

and gives a table: `label`, `probability` (of the label), `probabilities` ({label: probability}), all calibrated.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from refit.model.classifier import Classifier


class ImageClassifier(PythonModel):  # type: ignore[misc]
    """Images in, labels and calibrated probabilities out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load and verify the weights that were logged with the model."""
        self.classifier = Classifier.load(Path(context.artifacts["weights"]), Path(context.artifacts["card"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row of the result per image.

        Raises:
            ValueError: an image cannot be read; the message says which and why.
        """
        examples = [_named(index, image) for index, image in enumerate(model_input["image"])]
        probabilities = self.classifier.predict(examples)  # (n, num_classes)
        classes = self.classifier.classes
        return pd.DataFrame(
            {
                "label": [classes[index] for index in probabilities.argmax(axis=1)] if len(probabilities) else [],
                "probability": probabilities.max(axis=1) if len(probabilities) else [],
                "probabilities": [dict(zip(classes, map(float, row), strict=True)) for row in probabilities],
            }
        )


def _named(index: int, image: Any) -> bytes | np.ndarray:
    try:
        return _as_example(image)
    except ValueError as error:
        raise ValueError(f"example {index}: {error}") from None


def _as_example(image: Any) -> bytes | np.ndarray:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str):
        try:
            return base64.b64decode("".join(image.split()), validate=True)
        except binascii.Error:
            raise ValueError("a string must be an encoded image file in base64") from None
    return _as_pixels(image)


def _as_pixels(image: Any) -> np.ndarray:
    try:
        pixels = np.asarray(image)
    except ValueError:
        raise ValueError("pixels must be rows of equal length") from None
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(f"pixels must be whole numbers from 0 to 255, found {pixels.dtype}")
    if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
        raise ValueError(f"pixels must be whole numbers from 0 to 255, found {pixels.min()} to {pixels.max()}")
    return pixels.astype(np.uint8)


mlflow.models.set_model(ImageClassifier())
