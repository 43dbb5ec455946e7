"""Ask a model in a clean process: does it load from its address alone, what does it say, and what does it cost?

    answer = ask("models:/digits/3", images, tracking.environment(settings), num_threads=1)

Used for the champion (its own stored code predicts), for the serving check, and before a rollback. It also keeps
the golden images: a few test images with the probabilities that the trained model gave them.
"""

import atexit
import base64
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

from .. import paths
from ..errors import EvidenceError

_CHILD = Path(__file__).with_name("probe_child.py")
_SECONDS_AT_MOST = 1800
NUM_GOLDEN = 24
_waiting: "tuple[dict[str, str], subprocess.Popen[str]] | None" = None


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    classes: tuple[str, ...]
    probabilities: np.ndarray  # (n, num_classes) float64
    milliseconds_per_image: float
    seconds_to_load: float
    peak_megabytes: float
    versions: Mapping[str, str]


def ask(uri: str | None, images: Sequence[Path], environment: Mapping[str, str], num_threads: int) -> Answer:
    """Load a model and predict.

    Args:
        uri: an address in MLflow; None for the model in models/.
        images: encoded files.
        environment: what the process needs to reach MLflow, on top of the present environment.
        num_threads: of torch.

    Raises:
        EvidenceError: the model does not load, or does not predict.
    """
    name = uri or paths.MODEL_WEIGHTS.as_posix()
    request = {
        "uri": uri,
        "project": str(Path(__file__).resolve().parents[2]),
        "weights": str(paths.MODEL_WEIGHTS.absolute()),
        "card": str(paths.MODEL_CARD.absolute()),
        "images": [str(image.absolute()) for image in images],
        "num_threads": num_threads,
    }
    answer = _run(name, request, environment)
    if "error" in answer:
        raise EvidenceError(f"{name} cannot be used: {answer['error']}")
    probabilities = np.array(answer["probabilities"], dtype=np.float64).reshape(len(images), len(answer["classes"]))
    if not np.isfinite(probabilities).all():
        raise EvidenceError(f"{name} gives probabilities that are not numbers")
    return Answer(**(answer | {"classes": tuple(answer["classes"]), "probabilities": probabilities}))


def get_ready(environment: Mapping[str, str]) -> None:
    """Start the process of the next `ask` with this environment: its imports take seconds, in which others work."""
    global _waiting
    dismiss()
    _waiting = (dict(environment), _start(environment))


@atexit.register
def dismiss() -> None:
    """Nothing will be asked: end the process that waits, if one does."""
    global _waiting
    if _waiting is not None:
        _, child = _waiting
        _waiting = None
        child.kill()
        child.communicate()


def _start(environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-I", "-B", "-W", "ignore", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tempfile.gettempdir(),
        env={**os.environ, **environment},
        text=True,
        errors="replace",
    )


def _take(environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    global _waiting
    if _waiting is None or _waiting[0] != environment or _waiting[1].poll() is not None:
        dismiss()
        return _start(environment)
    _, child = _waiting
    _waiting = None
    return child


def _run(name: str, request: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="refit-probe-") as folder, _take(environment) as child:
        answer_file = Path(folder, "answer.json")
        try:
            _, said = child.communicate(json.dumps({**request, "answer": str(answer_file)}), _SECONDS_AT_MOST)
        except BaseException as error:
            child.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise EvidenceError(f"{name} did not answer within {_SECONDS_AT_MOST} seconds") from None
            raise
        if not answer_file.exists():
            last = (said.strip() or "no output").splitlines()[-1]
            raise EvidenceError(f"{name} cannot be used: the process ended with {child.returncode}: {last}")
        return json.loads(answer_file.read_text())


# Golden images


def golden(images: Sequence[Path], labels: Sequence[str], classes: Sequence[str], probabilities: np.ndarray) -> Any:
    """A few images with what the trained model says about them, as plain values."""
    return {
        "classes": list(classes),
        "images": [
            {
                "content": base64.b64encode(image.read_bytes()).decode(),
                "label": label,
                "probabilities": [float(value) for value in row],
            }
            for image, label, row in zip(images, labels, probabilities, strict=True)
        ],
    }


def serving_check(
    uri: str, golden: Mapping[str, Any], environment: Mapping[str, str], num_threads: int, max_error: float
) -> dict[str, Any]:
    """Load the model through its address and compare what it says about the golden images.

    Raises:
        EvidenceError: it does not load, or says something else.
    """
    with tempfile.TemporaryDirectory(prefix="refit-golden-") as folder:
        files = []
        for index, image in enumerate(golden["images"]):
            files.append(Path(folder, f"{index:03d}"))
            files[-1].write_bytes(base64.b64decode(image["content"]))
        answer = ask(uri, files, environment, num_threads)
    if list(answer.classes) != list(golden["classes"]):
        raise EvidenceError(f"{uri} has other classes than the model that was trained")
    expected = np.array([image["probabilities"] for image in golden["images"]])  # (n, num_classes)
    error = float(np.abs(answer.probabilities - expected).max())
    changed = int((answer.probabilities.argmax(axis=1) != expected.argmax(axis=1)).sum())
    if changed or error > max_error:
        raise EvidenceError(
            f"{uri} does not say what the trained model said: {changed} of {len(expected)} golden images get another "
            f"label, probabilities differ by up to {error:.2g} (`gate.max_probability_error` is {max_error:g})"
        )
    return {
        "num_images": len(expected),
        "labels_equal": True,
        "largest_probability_error": error,
        "milliseconds_per_image": answer.milliseconds_per_image,
        "seconds_to_load": answer.seconds_to_load,
        "peak_megabytes": answer.peak_megabytes,
        "versions": dict(answer.versions),
    }
