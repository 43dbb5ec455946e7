"""What does a request cost? One picture, asked of `mlflow models serve`, and of the same network in bare torch.

    python benchmarks/serving.py MODEL PICTURE [--requests 200]        MODEL: a folder, or models:/digits@champion

Takes turns, picture by picture: HTTP in each of the four forms; `Classifier.predict` (decoding
included) in this process; the network alone on a tensor that is ready. Milliseconds, as a table on standard output.
"""

import argparse
import base64
import http.client
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import torch

from refit import modality
from refit.model.classifier import Classifier

SECONDS_TO_START = 240
WARM_UP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(options.model))
    port = _free_port()
    serve = ["mlflow", "models", "serve", "--model-uri", str(folder), "--env-manager", "local", "--workers", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", *serve, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait(port)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            _print_table(_measure(_ways(folder, options.picture, connection), options.requests))
        finally:
            server.terminate()


def _ways(folder: Path, picture: Path, connection: http.client.HTTPConnection) -> dict[str, Callable[[], object]]:
    content = picture.read_bytes()
    text = base64.b64encode(content).decode()
    classifier = Classifier.load(folder / "artifacts/model.safetensors", folder / "artifacts/model.json")
    kind = classifier.card.modality
    ready = torch.from_numpy(modality.examples(kind).prepare(content, classifier.preprocessing))[None]
    inputs = modality.networks(kind).network_input(ready, preprocessing=classifier.preprocessing)
    forms: dict[str, object] = {
        "inputs": {"image": [text]},
        "instances": [{"image": text}],
        "dataframe_records": [{"image": text}],
        "dataframe_split": {"columns": ["image"], "data": [[text]]},
    }

    def asked(form: str) -> Callable[[], object]:
        body = json.dumps({form: forms[form]})

        def ask() -> object:
            connection.close()  # an idle one is closed by the server after some seconds
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            return json.loads(answer.read())

        return ask

    def bare() -> object:
        with torch.inference_mode():
            return classifier.network(inputs)

    return {
        **{f"HTTP, `{form}`": asked(form) for form in forms},
        "`Classifier.predict`, decoding included": lambda: classifier.predict([content]),
        "the network in bare torch": bare,
    }


def _measure(ways: dict[str, Callable[[], object]], requests: int) -> dict[str, list[float]]:
    """Milliseconds of each way; all in turn, so that a busy moment is shared."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(WARM_UP + requests):
        for name, act in ways.items():
            begun = time.perf_counter()
            act()
            taken[name].append(1000 * (time.perf_counter() - begun))
    return {name: times[WARM_UP:] for name, times in taken.items()}


def _print_table(taken: dict[str, list[float]]) -> None:
    bare = statistics.median(taken["the network in bare torch"])
    print("| way | median ms | 95% below | above bare torch |\n|---|---:|---:|---:|")
    for name, times in taken.items():
        middle, high = statistics.median(times), sorted(times)[int(0.95 * len(times))]
        print(f"| {name} | {middle:.1f} | {high:.1f} | {middle - bare:+.1f} |")


def _wait(port: int) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urlopen(f"http://127.0.0.1:{port}/ping", timeout=60).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
