"""What tests share: a project in a temporary folder, and tiny real images. Nothing here imports torch
before a test wants a trained model."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from refit import paths
from refit.gate import evidence
from refit.params import Params, load_params
from refit.registry import probe

ROOT = Path(__file__).resolve().parents[1]
os.environ["PATH"] = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"

_LONGEST = ("test_worker", "test_resume", "test_walkthrough", "test_release", "test_pipeline", "test_promote")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first: at the end of a run no process waits for the other."""
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine that runs the tests may reach them."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "PREFECT_", "REFIT_", "DVC_")) and name != "PREFECT_HOME":
            monkeypatch.delenv(name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder with the shipped params.yaml, and the current folder while the test runs."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def edit_params(project: Path) -> Callable[..., Params]:
    """Change values of the project's params.yaml by dotted key, and load it."""

    def edit(**changes: Any) -> Params:
        change_params(project / "params.yaml", changes)
        return load_params()

    return edit


def change_params(file: Path, changes: dict[str, Any]) -> None:
    """Set dotted (or, as keyword arguments, double-underscored) keys in a params.yaml."""
    yaml = YAML()
    content = yaml.load(file.read_text())
    for key, value in changes.items():
        *sections, name = key.replace("__", ".").split(".")
        section = content
        for part in sections:
            section = section[part]
        section[name] = value
    with file.open("w") as stream:
        yaml.dump(content, stream)


def draw(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    """A small picture of random soft shapes; another seed gives quite another picture."""
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def write_image_folder(folder: Path, labels: tuple[str, ...] = ("cat", "dog"), per_class: int = 12) -> Path:
    """`folder/<label>/<number>.png`; pictures of a class share a tint, so that a network can tell them apart."""
    for index, label in enumerate(labels):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = np.asarray(draw(1000 * index + number)).copy()
            pixels[..., index % 3] = np.maximum(pixels[..., index % 3], 200)
            Image.fromarray(pixels).save(folder / label / f"{number:03d}.png")
    return folder


@pytest.fixture
def images(project: Path) -> Path:
    """Two classes of twelve tiny images in data/images."""
    return write_image_folder(project / "data" / "images")


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder that this process may read but not write; root, who may write anywhere, becomes nobody meanwhile."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if was_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which all stages have run, with two classes of tiny pictures."""
    from tasks import compare, evaluate, fetch, finetune, ingest, suspects, validate

    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(ROOT / "params.yaml", folder)
    write_image_folder(folder / "data" / "images", per_class=40)
    for name in ("exceptions.csv", "label_answers.csv"):
        shutil.copy(ROOT / "data" / name, folder / "data")
    changes = {
        "data.source": "data/images", "checkpoint.uri": "scratch", "checkpoint.sha256": None,
        "image.finetune.size": 32, "finetune.epochs": 1, "evaluate.bootstrap_samples": 100,
        "validate.min_examples_per_class.val": 1, "register.model_name": "pets",
    }  # fmt: skip
    change_params(folder / "params.yaml", changes)
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "dvc.lock").write_text("schema: '2.0'\n")
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    before = Path.cwd()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # mlflow puts its own last address there
    for stage in (ingest, validate, fetch, finetune, evaluate, suspects, compare):
        stage.main()
    (folder / "mlflow.db").unlink()
    os.chdir(before)
    return folder


@pytest.fixture
def trained(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `finished`, with a registry of its own, and the current folder while the test runs."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return folder


@pytest.fixture
def committed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`trained` as a clean commit of a repository of its own."""
    commit_all(trained, monkeypatch, "params.yaml", "dvc.yaml", "dvc.lock")
    return trained


def commit_all(folder: Path, monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
    """Make a repository of a folder, with the shipped .gitignore and these files in its first commit."""
    for role, key in product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
        monkeypatch.setenv(f"GIT_{role}_{key}", "t@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    shutil.copy(ROOT / ".gitignore", folder)
    for arguments in (["init", "--quiet"], ["add", ".gitignore", *files], ["commit", "--quiet", "--message", "start"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)


ANSWERED = evidence.ServingCheck(
    num_images=24, labels_equal=True, largest_probability_error=0.0, milliseconds_per_image=5.0, seconds_to_load=1.0,
    peak_megabytes=100.0, versions={},
)  # fmt: skip


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the clean process of the serving check, for tests of something else: it takes seconds."""
    from tasks import promote, register

    for module in (promote, register):
        monkeypatch.setattr(module, "serving_check", lambda *_arguments: ANSWERED)


@pytest.fixture
def no_processes(no_probe: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model answers like the one in models/, in this process."""
    from tasks import compare

    def ask(question: probe.Question) -> probe.Answer:
        from refit.model.classifier import Classifier

        classifier = Classifier.load(paths.MODEL_WEIGHTS, paths.MODEL_CARD)
        probabilities = classifier.predict([file.read_bytes() for file in question.examples])
        return probe.Answer(classifier.classes, probabilities, np.full(24, 5.0), 1.0, 100.0, {})

    monkeypatch.setattr(compare, "ask", ask)
    monkeypatch.setattr(compare, "ask_both", lambda first, second: (ask(first), ask(second)))
