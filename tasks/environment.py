"""Stage `environment`: writes down which versions are installed of what can change a result.

    python -m tasks.environment      -> reports/environment.json

It runs each time, in half a second, and the other stages name the versions that can change theirs in dvc.yaml: an
upgrade of Pillow makes DVC decode again, one of MLflow nothing. `network` is the digest of the source of a network of
the user's. Labels after a `+` (2.14.1+cpu) are left out, so that a laptop does not train again what a GPU trained; the
whole truth is in the environment of the model's card.
"""

from collections.abc import Mapping
from importlib.metadata import version

from refit import modality
from refit.errors import run_stage
from refit.files import publish_json
from refit.modality import own
from refit.params import load_params
from refit.paths import ENVIRONMENT

_PACKAGES = ("cleanlab", "numpy", "scikit-learn", "scipy", "torch", "torchvision")


def main() -> None:
    params = load_params()
    network = own.digest(params.finetune.model)
    publish_json(ENVIRONMENT, versions(params.data.modality) | {"network": network})


def versions(modality_name: str) -> dict[str, str]:
    """Version by name; `decoders` are what examples are read with, `sample` what the built-in ones come from."""
    packages = {name: version(name).split("+")[0] for name in _PACKAGES}
    decoders, sample = modality.files(modality_name).decided_by(), modality.sample(modality_name).decided_by()
    return packages | {"decoders": _in_words(decoders), "sample": _in_words(sample)}


def _in_words(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


if __name__ == "__main__":
    run_stage(main)
