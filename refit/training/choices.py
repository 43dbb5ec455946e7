"""What is chosen on the machine where params.yaml says auto, and what a recorded training had chosen.

`refit reproduce` pins the choices of a version in the clone where it is made again. No torch.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ParamsError, WorkspaceError
from ..records import publish_record, read_record

Precision = Literal["fp32", "bf16"]

_PINNED = Path(".refit/pinned.json")


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """What must be used here. None: decide."""

    precision: Precision | None = None
    num_threads: int | None = None
    stopped_after: int | None = None  # epochs, of a training whose minutes were over


def pinned() -> Pinned:
    """What must be used here; all None where no version is made again."""
    return read_record(_PINNED, Pinned, WorkspaceError, "; remove it") if _PINNED.exists() else Pinned()


def pin(folder: Path, choices: Pinned) -> None:
    """Make trainings in a project's folder use these."""
    publish_record(folder / _PINNED, choices)


def available_cores() -> int:
    """The cores that this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or no quota ("max")
        return cores


def number_in_environment(name: str) -> float | None:
    """What an environment variable says; None where it is not set.

    Raises:
        ParamsError: it is no number, or not a finite one, or negative.
    """
    text = os.environ.get(name)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ParamsError(f"the environment variable {name} is {text!r}; it should be a number, 0 or more")
    return number
