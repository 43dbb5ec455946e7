"""Labels for files, and for examples as a request would have them: what `refit predict` does."""

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from refit import modality, paths
from refit.data.children import inspect_in_children
from refit.modality.contract import Inspection, Opaque
from refit.params import load_params
from refit.registry import versions
from refit.registry.probe import Bare

if TYPE_CHECKING:
    import numpy as np

    from refit.model.classifier import Classifier

_AT_ONCE = 256

Name = TypeVar("Name")


@dataclass(frozen=True)
class Prediction:
    """What the model says of one example; probabilities are calibrated."""

    label: str
    probability: float  # of the label
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """A file that cannot be read as an example."""

    reason: str


def predict_files(files: Iterable[Path], uri: str | None) -> Iterator[tuple[Path, Prediction | Failure]]:
    """What a model says of each file, in their order; a bad one costs the others nothing.

    Args:
        files: examples, each a file.
        uri: a version in MLflow, as people call it; None for the model in models/.

    Raises:
        CheckpointError, TrackingError: the model cannot be loaded; it is not before a file could be read.
    """
    modality_name, waiting = load_params().data.modality, iter(files)

    def read() -> Iterator[tuple[Path, Opaque | Failure]]:
        while batch := list(itertools.islice(waiting, _AT_ONCE)):
            found = inspect_in_children(batch, modality_name)
            yield from ((file, _read(file, inspection)) for file, inspection in zip(batch, found, strict=True))

    return _predicted(read(), uri)


def predict_values(values: Iterable[str], uri: str | None) -> Iterator[tuple[str, Prediction | Failure]]:
    """What a model says of examples as a request would have them: texts, say, or pictures in base64.

    Raises:
        CheckpointError, TrackingError: the model cannot be loaded.
    """
    parse = modality.examples(load_params().data.modality).parse

    def read(number: int, value: str) -> Opaque | Failure:
        try:
            return parse(value)
        except ValueError as error:
            return Failure(f"value {number}: {error}")

    return _predicted(((value, read(number, value)) for number, value in enumerate(values, start=1)), uri)


def _predicted(
    examples: Iterator[tuple[Name, Opaque | Failure]], uri: str | None
) -> Iterator[tuple[Name, Prediction | Failure]]:
    """In their order, some at once; the model is loaded when there is one that can be read."""
    with tempfile.TemporaryDirectory(prefix="refit-model-") as folder:
        classifier: Classifier | None = None
        while batch := list(itertools.islice(examples, _AT_ONCE)):
            readable = [content for _, content in batch if not isinstance(content, Failure)]
            if readable and classifier is None:
                classifier = _load(uri, Path(folder))
            rows = iter(classifier.predict(readable) if classifier and readable else ())
            for name, content in batch:
                if isinstance(content, Failure):
                    yield name, content
                else:
                    assert classifier is not None
                    yield name, _prediction(classifier.classes, next(rows))


def examples_in(path: Path) -> list[Path]:
    """A file, or all files below a folder, sorted; hidden ones are left out."""
    if not path.is_dir():
        return [path]
    found = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))


def _prediction(classes: Sequence[str], row: "np.ndarray") -> Prediction:
    probabilities = dict(zip(classes, map(float, row), strict=True))
    return Prediction(classes[int(row.argmax())], float(row.max()), probabilities)


def _load(uri: str | None, folder: Path) -> "Classifier":
    model = Bare(paths.MODEL_WEIGHTS, paths.MODEL_CARD) if uri is None else _fetch(uri, folder)
    from refit.model.classifier import Classifier

    return Classifier.load(model.weights, model.card)


def _fetch(uri: str, folder: Path) -> Bare:
    """Of a model in the registry only its weights and its card, which its evidence names: no code that it brings."""
    settings = load_params().register
    version = versions.find(uri, settings)
    return versions.fetch_bare(version, versions.bundle_of(version, settings), settings, folder)


def _read(file: Path, found: Inspection) -> bytes | Failure:
    """The bytes of a file of which a disposable process says that it can be read."""
    try:
        if found.error is not None:
            reason = found.error.partition(";")[0] if found.is_accident else found.error
            return Failure(f"{file}: {reason}")
        return file.read_bytes()
    except OSError as problem:
        return Failure(f"{file} cannot be read: {problem.strerror}")
    except MemoryError:
        return Failure(f"{file}: not enough memory to read it")
