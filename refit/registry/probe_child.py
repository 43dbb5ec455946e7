"""A model loaded and asked in a process of its own, by nothing but its address. Started by refit/registry/probe.py.

    python -I probe_child.py < request

It stands alone: with an address in MLflow, the code that runs is the code that was stored with the model, never
that of this project. The request, JSON, names the model (`uri`, or `project`, `weights` and `card`), `images` (files),
`num_threads` and `answer`, the file to write. The libraries are imported before it is read: a process may be started
before there is anything to ask. The answer has `classes`, `probabilities` ([image][class]), `milliseconds_per_image`
(one image at a time, decoding included), `seconds_to_load`, `peak_megabytes` and `versions`; or `error`.
"""

import gc
import importlib
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

_BATCH_SIZE = 256
_TIMED_IMAGES = 24
_ROUNDS = 3


def main() -> None:
    gc.set_threshold(100_000, 50, 50)  # a third of the time to import torch and mlflow, otherwise
    # An editable install of the project would shadow the code that lies beside the model.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
    for library in ("torch", "torchvision", *(["mlflow"] if "MLFLOW_TRACKING_URI" in os.environ else [])):
        importlib.import_module(library)
    request = json.load(sys.stdin)
    try:
        answer = _answer(request)
    except Exception as error:  # whatever it is, it is the answer: this model cannot be used
        answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    Path(request["answer"]).write_text(json.dumps(answer))
    gc.freeze()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(request["num_threads"])
    begun = time.perf_counter()
    predict, classifier, versions = _from_mlflow(request["uri"]) if request["uri"] else _from_project(request)
    seconds_to_load = time.perf_counter() - begun
    contents = [Path(name).read_bytes() for name in request["images"]]
    probabilities = [
        row for start in range(0, len(contents), _BATCH_SIZE) for row in predict(contents[start : start + _BATCH_SIZE])
    ]
    return {
        "classes": list(classifier.classes),
        "probabilities": probabilities,
        "milliseconds_per_image": _milliseconds(classifier.predict, contents),
        "seconds_to_load": seconds_to_load,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {"torch": torch.__version__, **versions},
    }


def _from_mlflow(uri: str) -> tuple[Any, Any, dict[str, str]]:
    import mlflow

    model = mlflow.pyfunc.load_model(uri)
    # Timed without MLflow around it: a model that is not registered yet has none, and both must be measured alike.
    classifier = model.unwrap_python_model().classifier

    def predict(contents: list[bytes]) -> list[list[float]]:
        rows = model.predict({"image": contents})["probabilities"]
        return [[float(row[label]) for label in classifier.classes] for row in rows]

    return predict, classifier, {"mlflow": mlflow.__version__, "code": sys.modules["refit"].__file__ or ""}


def _from_project(request: dict[str, Any]) -> tuple[Any, Any, dict[str, str]]:
    sys.path.insert(0, request["project"])
    from refit.model.classifier import Classifier

    classifier = Classifier.load(Path(request["weights"]), Path(request["card"]))
    return lambda contents: classifier.predict(contents).tolist(), classifier, {}


def _milliseconds(predict: Any, contents: list[bytes]) -> float:
    """The lower quartile: what else the machine does can only make it slower."""
    times = []
    for content in contents[:_TIMED_IMAGES] * _ROUNDS:
        begun = time.perf_counter()
        predict([content])
        times.append(time.perf_counter() - begun)
    return 1000 * (statistics.quantiles(times, n=4)[0] if len(times) > 1 else times[0])


if __name__ == "__main__":
    main()
