"""A model loaded and asked in a process of its own. Started by refit/registry/probe.py.

    python -I probe_child.py < request

The request, JSON, names files of this machine only: `examples`, `answer` (to write), and the model, either
`weights` and `card`, which the code in `code` reads (and a network of the user's in `project`), or `folder`, an MLflow
model with its own code; `num_threads` are torch's. The answer has `classes`, `probabilities` ([example][class]),
`milliseconds_per_image` (one at a time, decoding included), `seconds_to_load`, `peak_megabytes` and `versions`; or
`error`.
"""

import gc
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

_BATCH_SIZE = 256
_TIMED_EXAMPLES = 24
_ROUNDS = 3


def main() -> None:
    gc.set_threshold(100_000, 50, 50)  # see refit/collector.py
    request = json.load(sys.stdin)
    # An editable installation of the project would shadow the code that lies beside the model.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
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
    predict, classifier, versions = _packed(request["folder"]) if "folder" in request else _bare(request)
    seconds_to_load = time.perf_counter() - begun
    contents = [Path(name).read_bytes() for name in request["examples"]]
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


def _packed(folder: str) -> tuple[Any, Any, dict[str, str]]:
    import mlflow

    model = mlflow.pyfunc.load_model(folder)
    column = model.metadata.signature.inputs.input_names()[0]
    # Timed without MLflow around it: a model that is not registered yet has none, and both must be measured alike.
    classifier = model.unwrap_python_model().classifier

    def predict(contents: list[bytes]) -> list[list[float]]:
        rows = model.predict({column: contents})["probabilities"]
        return [[float(row[label]) for label in classifier.classes] for row in rows]

    code = sys.modules[type(classifier).__module__].__file__ or ""
    return predict, classifier, {"mlflow": mlflow.__version__, "code": code}


def _bare(request: dict[str, Any]) -> tuple[Any, Any, dict[str, str]]:
    sys.path.insert(0, request["code"])
    os.chdir(request["project"])
    from refit.model.classifier import Classifier

    classifier = Classifier.load(Path(request["weights"]), Path(request["card"]))
    return lambda contents: classifier.predict(contents).tolist(), classifier, {}


def _milliseconds(predict: Any, contents: list[bytes]) -> float:
    """The lower quartile: what else the machine does can only make it slower."""
    times = []
    for content in contents[:_TIMED_EXAMPLES] * _ROUNDS:
        begun = time.perf_counter()
        predict([content])
        times.append(time.perf_counter() - begun)
    return 1000 * (statistics.quantiles(times, n=4)[0] if len(times) > 1 else times[0])


if __name__ == "__main__":
    main()
