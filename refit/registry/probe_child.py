"""A model loaded and asked in a process of its own. Started by refit/registry/probe.py.

    python -I probe_child.py

The first line of its input, JSON, names files of this machine only: `examples`, `answer` (to write), and the model,
either `weights` and `card`, which the code in `code` reads (and a network of the user's in `project`), or `folder`, an
MLflow model with its own code; `num_threads` are torch's. The answer has `classes`, `probabilities`
([example][class]), `seconds_to_load`, `peak_megabytes` and `versions`; or `error`. `replies` is a file descriptor, on
which a line says `batch` for each batch of examples that is done, and then `answered`.

Each further line is the number of a round of timing, and `cpu`, on which it runs: so two models can take turns. The
reply is how long an example took, in milliseconds of this process's own time on the CPU, one at a time, decoding
included.
"""

import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import IO, Any

_BATCH_SIZE = 256
_TIMED_EXAMPLES = 24
_EXAMPLES_IN_A_ROUND = 3


def main() -> None:
    gc.set_threshold(100_000, 50, 50)  # see refit/collector.py
    request = json.loads(sys.stdin.readline())
    # An editable installation of the project would shadow the code that lies beside the model.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
    predict: Any = None
    with os.fdopen(request["replies"], "w", buffering=1) as replies:
        try:
            answer, predict = _answer(request, replies)
        except Exception as error:  # whatever it is, it is the answer: this model cannot be used
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        Path(request["answer"]).write_text(json.dumps(answer))
        gc.freeze()
        replies.write("answered\n")
        contents = [Path(name).read_bytes() for name in request["examples"][:_TIMED_EXAMPLES]] if predict else []
        for line in sys.stdin if contents else ():
            number, cpu = map(int, line.split())
            replies.write(f"{_milliseconds(predict, contents, number, cpu)}\n")


def _answer(request: dict[str, Any], replies: IO[str]) -> tuple[dict[str, Any], Any]:
    import torch

    torch.set_num_threads(request["num_threads"])
    begun = time.perf_counter()
    predict, classifier, versions = _packed(request["folder"]) if "folder" in request else _bare(request)
    seconds_to_load = time.perf_counter() - begun
    probabilities: list[list[float]] = []
    names = request["examples"]
    for start in range(0, len(names), _BATCH_SIZE):
        probabilities += predict([Path(name).read_bytes() for name in names[start : start + _BATCH_SIZE]])
        replies.write("batch\n")
    answer = {
        "classes": list(classifier.classes),
        "probabilities": probabilities,
        "seconds_to_load": seconds_to_load,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {"torch": torch.__version__, **versions},
    }
    return answer, classifier.predict


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


def _milliseconds(predict: Any, contents: list[bytes], number: int, cpu: int) -> float:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cpu})
    first = number * _EXAMPLES_IN_A_ROUND
    chosen = [contents[(first + index) % len(contents)] for index in range(_EXAMPLES_IN_A_ROUND)]
    begun = time.process_time()
    for content in chosen:
        predict([content])
    return 1000 * (time.process_time() - begun) / len(chosen)


if __name__ == "__main__":
    main()
