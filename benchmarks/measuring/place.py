"""A folder in which Refit and its rivals train on the same photos, each time in a new process and a new folder.

place = prepare(folder, laid_out, setting, Peers(Path("peers-venv/bin/python"), workers=1))
trained = place.train(Row("HF Trainer, best flags", "hf_trainer", True), seed=0)
trained.usage.cpu_seconds, trained.accuracy
"""

import dataclasses
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from refit import paths

from . import refit_project
from .processes import Usage, measure
from .refit_project import FINETUNE, ROOT, Setting

_LIBRARIES = ("torch", "torchvision", "numpy", "pillow")
_RIVALS = ("transformers", "accelerate", "fastai", "lightning", "timm")
_ASK_VERSIONS = """\
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


@dataclass(frozen=True)
class Row:
    """A way to train: Refit, or a rival in one of its two forms."""

    name: str
    module: str  # of benchmarks/peers; "refit" is Refit
    best_flags: bool = False


@dataclass(frozen=True)
class Peers:
    """What is said of the rivals on the command line."""

    python: Path  # of the environment that has them
    workers: int  # of the data loaders in rows with best flags


@dataclass(frozen=True)
class Trained:
    """What a training used, and how good its model is on the test photos."""

    usage: Usage
    accuracy: float  # on the test photos, in [0, 1]
    val_accuracy: float
    hits: tuple[int, ...]  # 1 for each test photo whose class was found, in the order of class and name


@dataclass(frozen=True)
class Place:
    """Prepared once, for all rows."""

    folder: Path
    project: Path  # of Refit, ready for finetune
    photos: Path  # the same photos for rivals
    counts: Mapping[str, int]  # of photos by split
    setting: Setting
    peers: Peers | None

    @property
    def peers_python(self) -> str:
        """Not resolved: the interpreter of a virtual environment is a link."""
        assert self.peers is not None, "the command line has asked for it"
        return str(self.peers.python.absolute())

    def train(self, row: Row, seed: int, settings: Mapping[str, object] | None = None) -> Trained:
        """Train in a new process and a new folder, and score the result.

        Args:
            settings: dotted keys of params.yaml that Refit trains with, beside those of the place.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            if row.module == "refit":
                cwd = refit_project.copy_of(self.project, folder / "project")
                refit_project.configure(cwd, {"seed": seed} | dict(settings or {}))
                weights, command = cwd / paths.MODEL_WEIGHTS, FINETUNE
            else:
                weights, cwd = folder / "weights.safetensors", folder
                command = [self.peers_python, "-m", f"peers.{row.module}", str(folder / "job.json")]
            job = self.write_job(folder / "job.json", row, seed, weights)
            usage = measure(command, cwd, environment(folder, self.setting.threads), folder / "log")
            scorer = {"image": "peers.score", "text": "peers.score_texts"}[self.setting.modality]
            scored = json.loads(self.run([sys.executable, "-m", scorer, str(job)]).splitlines()[-1])
        test, val = scored["test"], scored["val"]
        return Trained(usage, sum(test) / len(test), sum(val) / len(val), tuple(test))

    def from_scratch(self) -> "Place":
        """The same photos, with random weights to start from; for Refit only."""
        project = refit_project.copy_of(self.project, self.folder / "project-from-scratch")
        refit_project.configure(project, {"checkpoint.uri": "scratch", "checkpoint.sha256": None})
        self.run([sys.executable, "-m", "tasks.fetch"], project)
        return dataclasses.replace(self, project=project, setting=dataclasses.replace(self.setting, base=None))

    def write_job(self, target: Path, row: Row, seed: int, weights: Path) -> Path:
        """What a rival reads (`peers/given.py`)."""
        job = dataclasses.asdict(self.setting) | {
            "base": None if self.setting.base is None else str(self.setting.base),
            "seed": seed,
            "photos": str(self.photos),
            "workers": 0 if self.peers is None else self.peers.workers,
            "best_flags": row.best_flags,
            "head_only": self.setting.strategy == "head",
            "weights_out": str(weights),
        }
        del job["threads"], job["strategy"], job["modality"]  # threads come by the environment
        target.write_text(json.dumps(job))
        return target

    def run(self, command: list[str], cwd: Path | None = None) -> str:
        """Run what is not measured as a whole; give what it said."""
        return refit_project.run(command, cwd or self.folder, environment(self.folder, self.setting.threads))


def prepare(folder: Path, laid_out: Path, setting: Setting, peers: Peers | None) -> Place:
    """Refit's project with the photos of `laid_out`, which are moved into it, and the same photos for rivals."""
    env = environment(folder, setting.threads)
    project = refit_project.prepare(folder / "project", laid_out, setting, env)
    photos = folder / "for-rivals"
    counts = refit_project.photos_for_rivals(project, photos)
    return Place(folder, project, photos, counts, setting, peers)


def environment(home: Path, threads: int) -> dict[str, str]:
    """No setting of the machine but its PATH; caches below a home of the run's own."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "HOME": str(home),
        "PYTHONPATH": str(ROOT / "benchmarks"),
        "OMP_NUM_THREADS": str(threads),
        "LC_ALL": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
    }


def random_weights(model: str, target: Path) -> Path:
    """torchvision's own initialisation, saved once: the same start for all."""
    code = (
        "import sys, torch, torchvision; from safetensors.torch import save_file; torch.manual_seed(0); "
        "save_file(torchvision.models.get_model(sys.argv[1], weights=None).state_dict(), sys.argv[2])"
    )
    refit_project.run([sys.executable, "-c", code, model, str(target)], target.parent, os.environ)
    return target


def conditions(peers: Path | None, arguments: Mapping[str, object]) -> dict[str, Any]:
    """Everything that one needs to know to compare with another time and place."""
    cpus = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    versions = {name: version(name) for name in _LIBRARIES}
    if peers is not None:
        asked = [str(peers.absolute()), "-c", _ASK_VERSIONS, *_LIBRARIES, *_RIVALS]
        of_peers = json.loads(refit_project.run(asked, ROOT, os.environ))
    commit = refit_project.run(["git", "rev-parse", "HEAD"], ROOT, os.environ).strip()
    changes = refit_project.run(["git", "status", "--porcelain", "benchmarks"], ROOT, os.environ).splitlines()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,  # of Refit as it was measured
        "changed_benchmarks": changes,  # since then
        "processor": cpus[0].partition(": ")[2] if cpus else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "versions_of_peers": None if peers is None else of_peers,
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
    }
