"""The model as MLflow loads it: `mlflow.pyfunc.load_model("models:/digits@candidate").predict(...)`.

`predict` takes a table with one column, the modality's `INPUT` ("image"), or {"image": [...]}; each value is what the
modality's `parse` takes: an encoded file as bytes or in base64, or pixels. It gives a table: `label`, `probability` (of
the label), `probabilities` ({label: probability}), all calibrated. docs/serving.md has the forms of an HTTP request.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from .. import modality
from ..modality.contract import Opaque
from .classifier import Classifier


class RequestError(MlflowException, ValueError):  # type: ignore[misc]
    """An example of a request cannot be read. MLflow's server answers 400 and the message, without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)  # type: ignore[call-arg]

    @property
    def message(self) -> str:
        """What is wrong. The first words stay: MLflow's server would put the whole request, megabytes, before them."""
        return self._message

    @message.setter
    def message(self, text: str) -> None:
        self._message: str = getattr(self, "_message", text)


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
            RequestError: (a ValueError) an example cannot be read; the message says which and why.
            MlflowException: the model failed on an example; its traceback goes to the log, not to who asked.
        """
        try:
            return self._table(model_input)
        except ValueError as error:
            raise RequestError(str(error)) from None
        except Exception:
            logging.getLogger(__name__).exception("a prediction failed")
            raise MlflowException("the model failed on this input; the server's log says how", INTERNAL_ERROR) from None

    def _table(self, model_input: pd.DataFrame) -> pd.DataFrame:
        examples = modality.examples(self.classifier.card.modality)
        values = _one_by_one(model_input[examples.INPUT])
        probabilities = self.classifier.predict(  # (n, num_classes)
            [_parsed(index, value, examples.parse) for index, value in enumerate(values)]
        )
        classes = self.classifier.classes
        return pd.DataFrame(
            {
                "label": [classes[index] for index in probabilities.argmax(axis=1)] if len(probabilities) else [],
                "probability": probabilities.max(axis=1) if len(probabilities) else [],
                "probabilities": [dict(zip(classes, map(float, row), strict=True)) for row in probabilities],
            }
        )


def _one_by_one(column: Iterable[object]) -> list[object]:
    """The examples of a column. Of {"inputs": {"image": ["…", "…"]}} MLflow makes one row that holds the whole list."""
    values: list[object] = []
    for value in column:
        is_list_of_examples = isinstance(value, list) and all(isinstance(item, str | bytes) for item in value)
        values.extend(value if is_list_of_examples else [value])  # type: ignore[arg-type]
    return values


def _parsed(index: int, value: object, parse: Callable[[object], Opaque]) -> Opaque:
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"example {index}: {error}") from None
