"""Disposable processes in which hostile files are decoded, each bounded in memory, each file in time.

    for inspection in inspect_in_children(paths, "image"): ...       in order
    for excerpt in excerpts_in_children(paths, "image"): ...         what a page shows of each

A few children are started and used again. One that dies, or that takes too long, costs its own file only: it is ended
and replaced. What a child answers is JSON, checked against the record: nothing that it could run here.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from .. import modality
from ..modality.contract import Inspection
from . import child

Answer = TypeVar("Answer")

MEBIBYTES = 3072
"""What decoding one picture may take: 100 million pixels with transparency need 2 GB on the way to RGB."""

SECONDS = 60.0
"""A PNG of 100 million pixels takes 5 s on a slow core."""

_DIED = "the process that decoded it died, crashed or killed for its memory"
_KEPT_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "SYSTEMROOT")


@dataclass(frozen=True)
class _Work(Generic[Answer]):
    """What children are asked for, and what is said in their place where they give no answer."""

    name: str  # inspect, excerpt
    modality_name: str
    kind: type[Answer]
    died: Answer
    slow: Answer
    no_memory: Answer


@dataclass
class _Child:
    process: "subprocess.Popen[bytes]"
    connection: Connection
    index: int = -1  # of the file that it has
    since: float = 0.0

    @classmethod
    def start(cls, work: _Work[Answer]) -> "_Child":
        ours, theirs = Pipe()
        arguments = [str(theirs.fileno()), work.modality_name, str(MEBIBYTES), work.name]
        package = child.__name__
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", package, *arguments],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what a decoder says there names no file
        )
        theirs.close()
        return cls(process, ours)

    def give(self, index: int, path: Path) -> None:
        self.index, self.since = index, time.monotonic()
        with suppress(OSError):  # it is gone, which is seen when its answer is read
            self.connection.send_bytes(os.fsencode(path))

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def inspect_in_children(
    paths: Sequence[Path], modality_name: str, num_children: int | None = None, seconds: float = SECONDS
) -> Iterator[Inspection]:
    """What the modality says of each file, in order; never raises for a file.

    Args:
        num_children: None: as many as there are cores.
        seconds: how long one file may take.
    """
    kind = modality.files(modality_name).INSPECTED
    slow = kind(error=f"takes longer than {seconds:g} s to decode", rule="bomb")
    died, no_memory = (child.accident(kind, reason) for reason in (_DIED, child.NO_MEMORY))
    return _answers(_Work("inspect", modality_name, kind, died, slow, no_memory), paths, num_children, seconds)


def excerpts_in_children(paths: Sequence[Path], modality_name: str, seconds: float = 10.0) -> Iterator[child.Excerpt]:
    """What a page shows of each file, in order; never raises for a file."""
    nothing = child.Excerpt()
    work = _Work("excerpt", modality_name, child.Excerpt, nothing, nothing, nothing)
    return _answers(work, paths, None, seconds)


def _answers(work: _Work[Answer], paths: Sequence[Path], num_children: int | None, seconds: float) -> Iterator[Answer]:
    count = min(len(paths), num_children or os.cpu_count() or 1)
    children: list[_Child] = []
    answers: dict[int, Answer] = {}
    waiting, wanted = iter(range(len(paths))), 0
    try:
        for _ in range(count):
            children.append(_Child.start(work))
            _next(children[-1], waiting, paths)
        for wanted in range(len(paths)):
            while wanted not in answers:
                _collect(work, children, answers, seconds)
                for one in children:
                    if one.index < 0:
                        _next(one, waiting, paths)
            yield answers.pop(wanted)
    except OSError:  # no memory for another process
        for index in range(wanted, len(paths)):
            yield answers.get(index, work.no_memory)
    finally:
        for one in children:
            one.end()


def _next(one: _Child, waiting: Iterator[int], paths: Sequence[Path]) -> None:
    index = next(waiting, -1)
    if index >= 0:
        one.give(index, paths[index])


def _collect(work: _Work[Answer], children: list[_Child], answers: dict[int, Answer], seconds: float) -> None:
    """Wait for an answer; replace the children that are dead or too slow."""
    busy = {one.connection: one for one in children if one.index >= 0}
    oldest = min(one.since for one in busy.values())
    for connection in wait(list(busy), timeout=max(0.0, oldest + seconds - time.monotonic())):
        one = busy[connection]  # type: ignore[index]
        try:
            answers[one.index] = msgspec.json.decode(one.connection.recv_bytes(2**20), type=work.kind)
            one.index = -1
        except (EOFError, OSError, msgspec.DecodeError):
            _replace(work, children, one, answers, work.died)
    for one in list(children):
        if one.index >= 0 and time.monotonic() - one.since > seconds:
            _replace(work, children, one, answers, work.slow)


def _replace(
    work: _Work[Answer], children: list[_Child], one: _Child, answers: dict[int, Answer], verdict: Answer
) -> None:
    answers[one.index] = verdict
    one.end()
    children[children.index(one)] = _Child.start(work)
