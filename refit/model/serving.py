"""The model as MLflow loads it: `mlflow.pyfunc.load_model("models:/digits@candidate").predict(...)`.

`predict` takes a table with one column, the modality's `INPUT` ("image"), or {"image": [...]}; each value is what the
modality's `parse` takes: an encoded file as bytes or in base64, or pixels. It gives a table: `label`, `probability` (of
the label), `probabilities` ({label: probability}), all calibrated.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from .. import modality
from ..modality.contract import Opaque
from .classifier import Classifier


class ServedClassifier(PythonModel):  # type: ignore[misc]
    """Examples in, labels and calibrated probabilities out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load and verify the weights that were logged with the model."""
        self.classifier = Classifier.load(Path(context.artifacts["weights"]), Path(context.artifacts["card"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row of the result per example.

        Raises:
            ValueError: an example cannot be read; the message says which and why.
        """
        examples = modality.examples(self.classifier.card.modality)
        parsed = [_parsed(index, value, examples.parse) for index, value in enumerate(model_input[examples.INPUT])]
        probabilities = self.classifier.predict(parsed)  # (n, num_classes)
        classes = self.classifier.classes
        return pd.DataFrame(
            {
                "label": [classes[index] for index in probabilities.argmax(axis=1)] if len(probabilities) else [],
                "probability": probabilities.max(axis=1) if len(probabilities) else [],
                "probabilities": [dict(zip(classes, map(float, row), strict=True)) for row in probabilities],
            }
        )


def _parsed(index: int, value: object, parse: Any) -> Opaque:
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"example {index}: {error}") from None
