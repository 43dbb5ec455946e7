"""Refit as its user runs it: a clone of this repository with its params.yaml set, and `python -m tasks.…` in it.

    project = prepare(folder / "project", photos, Setting(...))    # clone, params, ingest, validate, fetch
    copy = copy_of(project, folder / "run")                        # nothing trained, no cache
    command = FINETUNE                                             # to be run in it

This file is the one place that knows Refit's params (`settings_of`); its insides are known to `refit_job.py`,
`refit_passes.py` and `gpu.py` only.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from refit import paths
from refit.checkpoint import folder as folders
from refit.errors import WorkspaceError
from refit.files import sha256_of_file
from refit.modality.text import settings

ROOT = Path(__file__).resolve().parents[2]
FINETUNE = [sys.executable, "-m", "tasks.finetune"]
IMPORTS = [sys.executable, "-c", "import tasks.finetune"]
BEFORE = ("ingest", "validate", "fetch")  # rivals have no such thing; not measured

SECONDS_BETWEEN_STATES = "REFIT_STATE_SECONDS"
"""The environment variable that says how often `finetune` saves its state; without it, once a minute."""
NEVER = 1e9


@dataclass(frozen=True)
class Setting:
    """What is to be trained, in the words that all rivals share."""

    base: Path | None  # safetensors, or the folder of a language model; None: from scratch
    model: str
    strategy: str  # full or head; or another one of Refit's, which rivals don't have
    epochs: int
    batch_size: int
    learning_rate: float
    size: int  # pixels; of a text, tokens
    threads: int
    seed: int
    modality: str = "image"


def settings_of(setting: Setting) -> dict[str, object]:
    """Dotted keys of params.yaml. What is not here is as shipped, such as the precision, which a probe chooses."""
    base = setting.base
    return {
        "seed": setting.seed,
        "data.source": "data/photos",
        "validate.min_examples_per_class": {"train": 1, "val": 1, "test": 1},
        "validate.max_rejected_fraction": 0.5,
        "checkpoint.uri": "scratch" if base is None else f"file:{base}",
        "checkpoint.sha256": None if base is None else digest_of(base),
        "finetune.model": setting.model,
        "finetune.strategy": setting.strategy,
        "finetune.epochs": setting.epochs,
        "finetune.batch_size": setting.batch_size,
        "finetune.learning_rate": setting.learning_rate,
        "finetune.num_threads": setting.threads,
        "finetune.device": "cpu",
        **OF_MODALITY[setting.modality](setting),
    }


OF_MODALITY: Mapping[str, Callable[[Setting], dict[str, object]]] = {
    "image": lambda setting: {"image.finetune.size": setting.size, "image.finetune.augment.horizontal_flip": True},
    "text": lambda setting: {
        "data.modality": "text", "gate.slices": [], "text.finetune.max_tokens": setting.size,
    },
}  # fmt: skip


def digest_of(base: Path) -> str:
    """What `checkpoint.sha256` pins."""
    if base.is_file():
        return sha256_of_file(base)
    with folders.taken(folders.files_in(base, settings.CHECKPOINT_FILES)) as copy:
        return folders.digest_of(copy)


def prepare(folder: Path, photos: Path, setting: Setting, env: Mapping[str, str]) -> Path:
    """A clone of the last commit with `photos` (which are moved into it), ready for `finetune`."""
    run(["git", "clone", "--quiet", "--shared", str(ROOT), str(folder)], ROOT, env)
    photos.rename(folder / "data" / "photos")
    configure(folder, settings_of(setting))
    run([sys.executable, "-m", "compileall", "-q", "tasks", "refit"], folder, env)
    for stage in BEFORE:
        run([sys.executable, "-m", f"tasks.{stage}"], folder, env)
    return folder


def copy_of(project: Path, target: Path) -> Path:
    """The same project in another folder, before anything is trained: files are hard links, which Refit replaces."""
    shutil.copytree(project, target, copy_function=os.link, symlinks=True)
    return target


def configure(project: Path, settings: Mapping[str, object]) -> None:
    """Set dotted keys of the project's params.yaml.

    Raises:
        WorkspaceError: there is no such section.
    """
    file = project / paths.PARAMS
    yaml = YAML()
    params = yaml.load(file.read_text())
    for key, value in settings.items():
        *above, last = key.split(".")
        section = params
        for name in above:
            if name not in section:
                raise WorkspaceError(f"{file} has no section {name}, wanted for {key}: see settings_of in {__file__}")
            section = section[name]
        section[last] = value
    partial = file.with_suffix(".new")  # not into the file itself: a copy may share it
    with partial.open("w") as stream:
        yaml.dump(params, stream)
    partial.replace(file)


def photos_for_rivals(project: Path, target: Path) -> dict[str, int]:
    """The accepted photos by split and class, so that rivals read what Refit reads; gives the number of each split."""
    accepted = pd.read_parquet(project / paths.ACCEPTED)
    for row in accepted.itertuples():
        folder = target / str(row.split) / str(row.label)
        folder.mkdir(parents=True, exist_ok=True)
        source = project / str(row.path)
        os.link(source, folder / f"{str(row.sha256)[:12]}{source.suffix}")
    return {str(split): int(count) for split, count in accepted["split"].value_counts().items()}


def run(command: list[str], cwd: Path, env: Mapping[str, str]) -> str:
    """Run what is not measured; give what it said.

    Raises:
        WorkspaceError: it failed.
    """
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WorkspaceError(f"`{' '.join(command)}` in {cwd} failed: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
