"""Ask a model in a clean process: does it load, what does it say, and what does it cost?

    answer = ask(Question(Bare(weights, card), examples, name))     data, read by the code that is installed here
    answer = ask(Question(Packed(folder), examples, name))          an MLflow model, with the code that it brings
    one, other = ask_both(question, another)                        what they cost is measured in turns

The process is given files of this machine and nothing else: no address of a server, no password, no home. What another
account stored is asked as `Bare`: weights and a card are data.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import EvidenceError
from ..gate.evidence import ServingCheck
from ..gate.golden import Golden

_CHILD = Path(__file__).with_name("probe_child.py")
_SECONDS_AT_MOST = 1800  # to load, for a batch, for a round of timing
_SECONDS_TO_END = 10
_ROUNDS = 24
_ANSWER, _SAID = "answer.json", "stderr"  # files of the process
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
    milliseconds: np.ndarray  # (rounds,) of the CPU's time for an image, one at a time, decoding included
    seconds_to_load: float
    peak_megabytes: float
    versions: Mapping[str, str]

    @property
    def milliseconds_per_image(self) -> float:
        """In the middle round."""
        return float(np.median(self.milliseconds))


@dataclass(frozen=True)
class Question:
    """What a model is asked."""

    model: Bare | Packed
    examples: Sequence[Path]  # encoded files; the first few are also those that are timed
    name: str  # of the model, for messages


def ask(question: Question) -> Answer:
    """Load a model and predict.

    Raises:
        EvidenceError: the model does not load, or does not predict.
    """
    with _asked(question) as process:
        return process.answer(_in_turns([process])[0])


def ask_both(first: Question, second: Question) -> tuple[Answer, Answer]:
    """Ask two models, and let them take turns while they are timed.

    What else the machine does meanwhile then slows both alike; of the time of a round only that counts which the CPU
    spent on the process, and both have the same CPU.

    Raises:
        EvidenceError: as `ask`.
    """
    with _asked(first) as one, _asked(second) as other:
        times = _in_turns([one, other])
        return one.answer(times[0]), other.answer(times[1])


def serving_check(model: Bare | Packed, golden: Golden, max_error: float, name: str) -> ServingCheck:
    """Ask for the golden examples, and compare.

    Raises:
        EvidenceError: the model does not load, or says something else.
    """
    with tempfile.TemporaryDirectory(prefix="refit-golden-") as folder:
        files = [Path(folder, f"{index:03d}") for index in range(len(golden.images))]
        for file, example in zip(files, golden.images, strict=True):
            file.write_bytes(example.content)
        answer = ask(Question(model, files, name))
    if answer.classes != golden.classes:
        raise EvidenceError(f"{name} has other classes than the model that was trained")
    expected = golden.probabilities  # (n, num_classes)
    error = float(np.abs(answer.probabilities - expected).max())
    changed = int((answer.probabilities.argmax(axis=1) != expected.argmax(axis=1)).sum())
    if changed or error > max_error:
        raise EvidenceError(
            f"{name} does not say what the trained model said: {changed} of {len(expected)} golden examples get "
            f"another label, probabilities differ by up to {error:.2g} (`gate.max_probability_error` is {max_error:g})"
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


class _Process:
    """A model in its process, which has answered and waits to be timed."""

    def __init__(self, question: Question, child: "subprocess.Popen[str]", replies: IO[bytes], home: Path) -> None:
        self._question, self._child, self._replies = question, child, replies
        self._answer, self._said = home / _ANSWER, home / _SAID
        while (reply := self._reply()) == "batch":
            pass
        if reply != "answered":
            raise self._ended()

    def answer(self, milliseconds: np.ndarray) -> Answer:
        name, num_examples = self._question.name, len(self._question.examples)
        answer = json.loads(self._answer.read_text())
        if "error" in answer:
            raise EvidenceError(f"{name} cannot be used: {answer['error']}")
        classes = tuple(answer["classes"])
        probabilities = np.array(answer["probabilities"], dtype=np.float64).reshape(num_examples, len(classes))
        if not np.isfinite(probabilities).all():
            raise EvidenceError(f"{name} gives probabilities that are not numbers")
        return Answer(**(answer | {"classes": classes, "probabilities": probabilities, "milliseconds": milliseconds}))

    def time_a_round(self, number: int, cpu: int) -> float:
        """Milliseconds of an image."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{number} {cpu}\n")
            self._child.stdin.flush()
        except OSError:
            raise self._ended() from None
        if not (reply := self._reply()):
            raise self._ended()
        return float(reply)

    def is_timed(self) -> bool:
        """Whether it has anything to be timed on."""
        return bool(self._question.examples) and "error" not in json.loads(self._answer.read_text())

    def _reply(self) -> str:
        if not select.select([self._replies], [], [], _SECONDS_AT_MOST)[0]:
            raise EvidenceError(f"{self._question.name} said nothing for {_SECONDS_AT_MOST} seconds")
        return self._replies.readline().decode().strip()

    def _ended(self) -> EvidenceError:
        status = self._child.wait(_SECONDS_TO_END)
        last = (self._said.read_text(errors="replace").strip() or "no output").splitlines()[-1]
        return EvidenceError(f"{self._question.name} cannot be used: the process ended with {status}: {last}")


def _in_turns(processes: Sequence[_Process]) -> np.ndarray:
    """(processes, rounds) milliseconds of an image."""
    if not all(process.is_timed() for process in processes):
        return np.full((len(processes), 1), np.nan)
    cpu = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    times = np.empty((len(processes), _ROUNDS))
    for number in range(-1, _ROUNDS):  # the first one warms up
        order = range(len(processes)) if number % 2 else reversed(range(len(processes)))
        for index in order:
            times[index, number] = processes[index].time_a_round(number + 1, cpu)
    return times


@contextmanager
def _asked(question: Question) -> Iterator[_Process]:
    with tempfile.TemporaryDirectory(prefix="refit-probe-") as home:
        receive, send = os.pipe()
        request = {
            "examples": [str(file.absolute()) for file in question.examples],
            "num_threads": _NUM_THREADS,
            "answer": str(Path(home, _ANSWER)),
            "replies": send,
            **_named(question.model),
        }
        with (
            os.fdopen(receive, "rb", buffering=0) as replies,  # a line that lay in a buffer would be waited for
            Path(home, _SAID).open("w") as said,
            subprocess.Popen(
                [sys.executable, "-I", "-B", "-W", "ignore", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                cwd=home,
                env=without_secrets(home),
                text=True,
                pass_fds=[send],
            ) as child,
        ):
            os.close(send)
            try:
                assert child.stdin is not None
                child.stdin.write(json.dumps(request) + "\n")
                child.stdin.flush()
                yield _Process(question, child, replies, Path(home))
            finally:
                child.kill()
