"""How a model is packed for MLflow: weights, card, and the code that reads them, under a name of its own.

    with packed(weights, card_file, example) as arguments:
        mlflow.pyfunc.log_model(name="model", **arguments)

The code is the rooms of refit/ that a trained model needs, and nothing of training, params or registry; and the source
of a network of the user's, as it lies here and as the card knows it (`refit/modality/own.py`). Its package is called
`refit_<digest of the code>`: two versions load in one process, each with its own code, beside whatever modules their
user has. All imports inside refit/ are relative, so a copy under another name works as it is.
"""

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from .. import modality
from ..errors import EvidenceError
from ..modality import own
from ..model.card import read_card

_ROOT = Path(__file__).parents[1]
_CARRIED = (
    "__init__.py",
    "errors.py",
    "files.py",
    "paths.py",
    "records.py",
    "stopping.py",
    "model/__init__.py",
    "model/card.py",
    "model/classifier.py",
    "model/serving.py",
    "modality/__init__.py",
    "modality/contract.py",
    "modality/own.py",
    "scoring/__init__.py",
    "scoring/metrics.py",
)
_NOT_CARRIED = ("augment.py", "rules.py", "settings.py", "weights.py")
"""Of a modality's folder: what training, validation and params need."""
_PACKAGES = ("mlflow", "msgspec", "numpy", "pandas", "safetensors", "torch")
"""Beside those that the modality reads examples with."""
_ENTRY = """import mlflow
from {package}.model.serving import ServedClassifier

mlflow.models.set_model(ServedClassifier())
"""


def carried_code(modality_name: str) -> dict[str, bytes]:
    """What goes with a model: contents by path below the package."""
    own = Path(str(modality.examples(modality_name).__file__)).parent  # type: ignore[attr-defined]
    code = {name: (_ROOT / name).read_bytes() for name in _CARRIED}
    return code | {
        f"modality/{modality_name}/{file.name}": file.read_bytes()
        for file in sorted(own.glob("*.py"))
        if file.name not in _NOT_CARRIED
    }


def package_name(code: dict[str, bytes]) -> str:
    """The name under which this code, and no other, is imported."""
    digest = hashlib.sha256()
    for path, content in sorted(code.items()):
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return f"refit_{digest.hexdigest()[:12]}"


def require_whole_code(model: Path, where: str) -> None:
    """Refuse a packed model whose code is not the one that its package's name stands for.

    Raises:
        EvidenceError: a file of it was changed, or there is no such package.
    """
    packages = sorted((model / "code").glob("refit_*"))
    if len(packages) != 1:
        raise EvidenceError(f"{where} carries {len(packages)} packages of Refit's code instead of one")
    code = {
        file.relative_to(packages[0]).as_posix(): file.read_bytes() for file in packages[0].rglob("*") if file.is_file()
    }
    if package_name(code) != packages[0].name:
        raise EvidenceError(f"{where} carries code that was changed after it was packed as {packages[0].name}")


@contextmanager
def packed(weights: Path, card_file: Path, example: bytes) -> Iterator[dict[str, Any]]:
    """The arguments of `mlflow.pyfunc.log_model` and `save_model`, valid inside the block.

    Args:
        weights, card_file: the model.
        example: an encoded example, kept as the model's example of a request.

    Raises:
        CheckpointError: the card cannot be read, or was made with another source of the user's own network.
    """
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map, Schema

    card = read_card(card_file)
    own.require_digest(card.architecture, card.network_sha256, str(card_file))
    column = modality.examples(card.modality).INPUT
    outputs = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    with tempfile.TemporaryDirectory(prefix="refit-pack-") as folder, _importable(Path(folder)):
        package = _write_package(Path(folder), carried_code(card.modality) | _own_code(card.architecture))
        entry = Path(folder, "serving.py")
        entry.write_text(_ENTRY.format(package=package.name))
        yield {
            "python_model": str(entry),
            "code_paths": [str(package)],
            "artifacts": {"weights": str(weights), "card": str(card_file)},
            "signature": ModelSignature(Schema([ColSpec(AnyType(), column)]), Schema(outputs)),
            "input_example": pd.DataFrame({column: [modality.examples(card.modality).request(example)]}),
            "pip_requirements": _requirements(card.architecture, card.modality),
        }


def _own_code(architecture: str) -> dict[str, bytes]:
    if not own.is_own(architecture):
        return {}
    return {f"own/{path}": content for path, content in own.sources(architecture).items()}


def _requirements(architecture: str, modality_name: str) -> list[str]:
    """Exact versions of what Refit needs, and of the libraries that the user's own network imports."""
    more = own.imported(architecture) if own.is_own(architecture) else set()
    providers = packages_distributions() if more else {}
    kind = modality.examples(modality_name).REQUIRES
    names = {*_PACKAGES, *kind, *(provider.lower() for library in more for provider in providers.get(library, ()))}
    return [f"{name}=={installed_version(name).split('+')[0]}" for name in sorted(names)]


def _write_package(folder: Path, code: dict[str, bytes]) -> Path:
    package = folder / package_name(code)
    for path, content in code.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_bytes(content)
    return package


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """MLflow runs the entry file while it packs the model."""
    before = sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # byte code would be packed too
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = before
