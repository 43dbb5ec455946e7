"""The training data as MLflow shows it: a name, a digest and where DVC tracks it."""

import functools
from collections.abc import Mapping
from typing import Any


def as_dataset(dataset: Mapping[str, str]) -> Any:
    """The training data as an input of a run."""
    from mlflow.data.meta_dataset import MetaDataset

    # MLflow keeps at most 36 characters of a digest; the whole of it is in the tag refit.data_digest.
    return MetaDataset(_dataset_source_type()(dataset["source"]), dataset["name"], dataset["digest"][:36])


@functools.cache
def _dataset_source_type() -> Any:
    """A class made here, since its base class cannot be named before mlflow is imported."""
    from mlflow.data.dataset_source import DatasetSource

    class DvcSource(DatasetSource):  # type: ignore[misc]
        """Data tracked by DVC: `data.source` of params.yaml."""

        def __init__(self, path: str) -> None:
            self.path = path

        @staticmethod
        def _get_source_type() -> str:
            return "dvc"

        def load(self) -> str:
            return self.path

        @staticmethod
        def _can_resolve(_raw_source: Any) -> bool:
            return False

        @classmethod
        def _resolve(cls, raw_source: Any) -> "DvcSource":
            return cls(raw_source)

        def to_dict(self) -> dict[str, Any]:
            return {"path": self.path}

        @classmethod
        def from_dict(cls, source_dict: dict[str, Any]) -> "DvcSource":
            return cls(source_dict["path"])

    return DvcSource
