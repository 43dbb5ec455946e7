"""Ask a model in a clean process: does it load, what does it say, and what does it cost?

    answer = ask(Bare(weights, card), examples, name)       data, read by the code that is installed here
    answer = ask(Packed(folder), examples, name)            an MLflow model, with the code that it brings

The process is given files of this machine and nothing else: no address of a server, no password, no home. What another
account stored is asked as `Bare`: weights and a card are data.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EvidenceError
from ..gate.evidence import ServingCheck
from ..gate.golden import Golden

_CHILD = Path(__file__).with_name("probe_child.py")
_SECONDS_AT_MOST = 1800
_PASSED_ON = ("PATH", "LANG", "LD_LIBRARY_PATH", "TZ", "NO_PROXY")
_PASSED_ON_WITHOUT_PASSWORD = ("HTTPS_PROXY", "HTTP_PROXY")
_PASSED_ON_OF = ("LC_", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "OPENBLAS_", "KMP_")
"""Of the environment: how programs and libraries are found and set. Everything else may be a secret."""


_NUM_THREADS = 1
"""Of torch: what two models cost is compared, on machines that have other work too."""


@dataclass(frozen=True)
class Bare:
    """A model as data."""

    weights: Path
    card: Path


@dataclass(frozen=True)
class Packed:
    """A model as MLflow keeps it, with its code, in a folder of this machine."""

    folder: Path


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    classes: tuple[str, ...]
    probabilities: np.ndarray  # (n, num_classes) float64
    milliseconds_per_image: float
    seconds_to_load: float
    peak_megabytes: float
    versions: Mapping[str, str]


def ask(model: Bare | Packed, examples: Sequence[Path], name: str) -> Answer:
    """Load a model and predict.

    Args:
        examples: encoded files.
        name: of the model, for messages.

    Raises:
        EvidenceError: the model does not load, or does not predict.
    """
    request = {"examples": [str(file.absolute()) for file in examples], "num_threads": _NUM_THREADS, **_named(model)}
    answer = _run(name, request)
    if "error" in answer:
        raise EvidenceError(f"{name} cannot be used: {answer['error']}")
    probabilities = np.array(answer["probabilities"], dtype=np.float64).reshape(len(examples), len(answer["classes"]))
    if not np.isfinite(probabilities).all():
        raise EvidenceError(f"{name} gives probabilities that are not numbers")
    return Answer(**(answer | {"classes": tuple(answer["classes"]), "probabilities": probabilities}))


def serving_check(model: Bare | Packed, golden: Golden, max_error: float, name: str) -> ServingCheck:
    """Ask for the golden examples, and compare.

    Raises:
        EvidenceError: the model does not load, or says something else.
    """
    with tempfile.TemporaryDirectory(prefix="refit-golden-") as folder:
        files = [Path(folder, f"{index:03d}") for index in range(len(golden.images))]
        for file, example in zip(files, golden.images, strict=True):
            file.write_bytes(example.content)
        answer = ask(model, files, name)
    if answer.classes != golden.classes:
        raise EvidenceError(f"{name} has other classes than the model that was trained")
    expected = golden.probabilities  # (n, num_classes)
    error = float(np.abs(answer.probabilities - expected).max())
    changed = int((answer.probabilities.argmax(axis=1) != expected.argmax(axis=1)).sum())
    if changed or error > max_error:
        raise EvidenceError(
            f"{name} does not say what the trained model said: {changed} of {len(expected)} golden images get another "
            f"label, probabilities differ by up to {error:.2g} (`gate.max_probability_error` is {max_error:g})"
        )
    return ServingCheck(
        num_images=len(expected),
        labels_equal=True,
        largest_probability_error=error,
        milliseconds_per_image=answer.milliseconds_per_image,
        seconds_to_load=answer.seconds_to_load,
        peak_megabytes=answer.peak_megabytes,
        versions=answer.versions,
    )


def without_secrets(home: str) -> dict[str, str]:
    """The environment of a process that must not know what this one may know; `home` is a folder for it."""
    passed_on = {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_OF)
    }
    proxies = {name: os.environ[name] for name in _PASSED_ON_WITHOUT_PASSWORD if "@" not in os.environ.get(name, "@")}
    return {**passed_on, **proxies, "HOME": home, "TMPDIR": home}


def _named(model: Bare | Packed) -> dict[str, str]:
    if isinstance(model, Packed):
        return {"folder": str(model.folder.absolute())}
    code = Path(__file__).resolve().parents[2]
    return {
        "weights": str(model.weights.absolute()),
        "card": str(model.card.absolute()),
        "code": str(code),
        "project": str(Path.cwd()),
    }


def _run(name: str, request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="refit-probe-") as home:
        answer = Path(home, "answer.json")
        try:
            child = subprocess.run(
                [sys.executable, "-I", "-B", "-W", "ignore", str(_CHILD)],
                input=json.dumps({**request, "answer": str(answer)}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=home,
                env=without_secrets(home),
                text=True,
                errors="replace",
                timeout=_SECONDS_AT_MOST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EvidenceError(f"{name} did not answer within {_SECONDS_AT_MOST} seconds") from None
        if not answer.exists():
            last = (child.stderr.strip() or "no output").splitlines()[-1]
            raise EvidenceError(f"{name} cannot be used: the process ended with {child.returncode}: {last}")
        return json.loads(answer.read_text())  # type: ignore[no-any-return]
