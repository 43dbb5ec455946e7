"""Stage `environment`: writes down which versions are installed of what can change a result.

    python -m tasks.environment      -> reports/environment.json

It runs each time, in a tenth of a second, and the other stages name the versions that can change theirs in dvc.yaml: an
upgrade of Pillow makes DVC decode again, one of MLflow nothing. Labels after a `+` (2.14.1+cpu) are left out, so that a
laptop does not train again what a GPU trained; the whole truth is in the environment of the model's card.
"""

from importlib.metadata import version

from PIL import features

from refit.errors import run_stage
from refit.files import publish_json
from refit.paths import ENVIRONMENT

_PACKAGES = ("numpy", "pillow", "scipy", "torch", "torchvision")
_CODECS = ("jpg", "webp", "zlib", "libtiff", "jpg_2000")


def main() -> None:
    publish_json(ENVIRONMENT, versions())


def versions() -> dict[str, str]:
    """Version by name; `codecs` are those that Pillow was built with."""
    codecs = [f"{name} {features.version(name)}" for name in _CODECS]
    return {name: version(name).split("+")[0] for name in _PACKAGES} | {"codecs": ", ".join(codecs)}


if __name__ == "__main__":
    run_stage(main)
