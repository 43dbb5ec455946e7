"""A network of the user's: it trains, DVC sees its edits, and it travels with the registered model."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refit.errors import CheckpointError, ParamsError
from refit.modality import own

from .conftest import change_params, write_image_folder
from .services import clone, dvc, environment, origin, refit, run

__all__ = ["origin"]  # a fixture

BLOCKS = """from torch import nn


def block(width):
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())
"""
SMALL = """from torch import nn

from .blocks import block


class Small(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.body = block(8)
        self.head = nn.Linear(8, num_outputs)

    def forward(self, pictures):
        return self.head(self.body(pictures).mean((2, 3)))


def build(num_outputs):
    return Small(num_outputs)
"""


def write_network(folder: Path) -> None:
    (folder / "nets").mkdir()
    (folder / "nets/blocks.py").write_text(BLOCKS)
    (folder / "nets/small.py").write_text(SMALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_network(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_built_with_its_package_around_it(here: Path) -> None:
    assert list(own.sources("nets.small:build")) == ["nets/blocks.py", "nets/small.py"]
    assert own.imported("nets.small:build") == {"torch"}
    assert own.build("nets.small:build", 3).head.out_features == 3


def test_a_module_of_one_file_is_enough(here: Path) -> None:
    (here / "single.py").write_text(
        "from torch import nn\n\n\ndef make(num_outputs):\n    return nn.Linear(4, num_outputs)\n"
    )
    assert list(own.sources("single:make")) == ["single.py"]
    assert own.build("single:make", 5).out_features == 5


def test_an_edit_of_any_file_is_another_digest_and_another_module(here: Path) -> None:
    before, first = own.digest("nets.small:build"), own.build("nets.small:build", 2)
    (here / "nets/blocks.py").write_text(BLOCKS.replace("stride=2", "stride=1"))
    second = own.build("nets.small:build", 2)
    assert own.digest("nets.small:build") != before
    assert (first.body[0].stride, second.body[0].stride) == ((2, 2), (1, 1))
    with pytest.raises(CheckpointError, match=r"model\.json was made with another source of nets\.small:build"):
        own.require_digest("nets.small:build", before, "model.json")


def replaced(file: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text((folder / file).read_text().replace(old, new))


MISTAKES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no module": ("nets.smal:build", lambda _: None, r"neither nets/smal\.py nor nets/smal/__init__\.py"),
    "no function": ("nets.small:biuld", lambda _: None, r"nets/small\.py has no function biuld; it has block, build"),
    "not for a width": ("nets.blocks:block", lambda _: None, "block in nets/blocks.py has no parameter `num_outputs`"),
    "a wrong line": ("nets.small:build", replaced("nets/blocks.py", ":\n", "\n"), r"nets/blocks\.py, line 4: "),
    "it raises": ("nets.small:build", replaced("nets/small.py", "nn.Linear(8", "nn.Linear(oops"),
                  r"small\.py:10: NameError"),
    "no such library": ("nets.small:build", replaced("nets/blocks.py", "from torch", "import nowhere\nfrom torch"),
                        r"blocks\.py:1: ModuleNotFoundError: No module named 'nowhere'"),
    "the project's": ("nets.small:build", replaced("nets/small.py", "from .blocks", "from nets.blocks"),
                      "import it relatively"),
    "beyond its package": ("nets.small:build", replaced("nets/small.py", "from .blocks", "from ..blocks"),
                           "not in its package"),
    "Refit's": ("tasks.promote:promote", lambda _: None, "Refit's own"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, here: Path) -> None:
    name, edit, said = MISTAKES[mistake]
    edit(here)
    with pytest.raises(ParamsError, match=said) as found:
        own.build(name, 3)
    assert name in str(found.value) or "nets/" in str(found.value)
    assert "\n" not in str(found.value)


def test_an_import_that_could_not_travel_is_refused_before_anything_runs(here: Path) -> None:
    (here / "nets/small.py").write_text("open('ran', 'w')\nimport nets.blocks\n")
    with pytest.raises(ParamsError):
        own.build("nets.small:build", 3)
    assert not (here / "ran").exists()


@pytest.mark.parametrize("made", ["nn.Linear(4, 7)", "3"])
def test_what_is_no_network_of_that_width_is_refused(made: str, here: Path) -> None:
    from refit.modality.image import networks

    (here / "nets/small.py").write_text(f"from torch import nn\n\n\ndef build(num_outputs):\n    return {made}\n")
    with pytest.raises(ParamsError, match=r"no output layer|must give a torch\.nn\.Module"):
        networks.build_network("nets.small:build", 3)


@pytest.fixture(scope="module")
def project(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A clone whose network is its own, in which all stages have run, registered."""
    home = tmp_path_factory.mktemp("own")
    folder, env = clone(origin, home / "project"), environment(home)
    write_network(folder)
    write_image_folder(folder / "data/images", per_class=40)
    changes = {
        "data.source": "data/images", "checkpoint.uri": "scratch", "checkpoint.sha256": None,
        "image.finetune.size": 32, "validate.min_examples_per_class.val": 1, "finetune.model": "nets.small:build",
        "finetune.head_dropout": 0.1, "finetune.epochs": 3, "finetune.learning_rate": 0.02,
        "register.model_name": "pets", "register.experiment": "pets",
    }  # fmt: skip
    change_params(folder / "params.yaml", changes)
    run("git", "add", "--all", cwd=folder, env=env)
    run("git", "commit", "--quiet", "--message", "own network", cwd=folder, env=env)
    dvc("repro", cwd=folder, env=env)
    refit("register", cwd=folder, env=env)
    return folder, env


def test_the_card_names_its_source(project: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = project
    monkeypatch.chdir(folder)
    card = json.loads((folder / "models/model.json").read_text())
    assert (card["architecture"], card["network_sha256"]) == ("nets.small:build", own.digest("nets.small:build"))
    assert json.loads((folder / "metrics/evaluation.json").read_text())["accuracy"]["value"] > 0.5


CLEAN = """
import sys, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
classifier = model.unwrap_python_model().classifier
said = model.predict({"image": [open(sys.argv[2], "rb").read()]})
print(type(classifier.network).__module__, said["probability"][0])
"""


def test_it_travels_with_the_registered_model(project: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """A process that has nothing of the project but the model's folder says what the project says."""
    folder, env = project
    picture = next((folder / "data/images/cat").glob("*.png"))
    fetch = "import sys, mlflow; mlflow.artifacts.download_artifacts(sys.argv[1], dst_path=sys.argv[2])"
    address = ["models:/pets-candidates/1", str(tmp_path / "model")]
    run(sys.executable, "-c", fetch, *address, cwd=folder, env=env | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"})
    [carried] = (tmp_path / "model/code").glob("refit_*/own/nets")
    assert sorted(file.name for file in carried.iterdir()) == ["blocks.py", "small.py"]
    command = [sys.executable, "-c", CLEAN, str(tmp_path / "model"), str(picture)]
    clean = run(*command, cwd=tmp_path, env=env).split()
    assert clean[-2].startswith("refit_own_")
    shown = refit("predict", str(picture), cwd=folder, env=env).split("\t")
    assert f"{float(clean[-1]):.4f}" == shown[-1].strip()


def test_predict_takes_it_from_the_project_and_only_the_source_that_made_it(
    project: tuple[Path, dict[str, str]],
) -> None:
    folder, env = project
    picture = str(next((folder / "data/images/cat").glob("*.png")))
    here = refit("predict", picture, cwd=folder, env=env)
    assert refit("predict", picture, "--model", "candidate", cwd=folder, env=env) == here
    before = (folder / "nets/small.py").read_text()
    (folder / "nets/small.py").write_text(before + "\n# an edit\n")
    said = refit("predict", picture, "--model", "candidate", cwd=folder, env=env, expected=4)
    (folder / "nets/small.py").write_text(before)
    assert "another source of nets.small:build" in said


def test_a_reviewer_packs_the_source_of_his_own_checkout(project: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, env = project
    digest = json.loads(refit("review", "1", "--json", cwd=folder, env=env))["digest"]
    promote = ("promote", "1", "--reason", "good", "--evidence", digest, "--force")
    before = (folder / "nets/small.py").read_text()
    (folder / "nets/small.py").write_text(before + "\n# another\n")
    said = refit(*promote, cwd=folder, env=env, expected=4)
    (folder / "nets/small.py").write_text(before)
    assert "another source of nets.small:build" in said
    refit(*promote, cwd=folder, env=env)
    picture = str(next((folder / "data/images/dog").glob("*.png")))
    assert refit("predict", picture, "--model", "champion", cwd=folder, env=env) == refit(
        "predict", picture, cwd=folder, env=env
    )


def test_dvc_sees_an_edit_of_it(project: tuple[Path, dict[str, str]]) -> None:
    folder, env = project
    assert "Running stage 'finetune'" not in dvc("repro", cwd=folder, env=env)
    before = (folder / "nets/blocks.py").read_text()
    (folder / "nets/blocks.py").write_text(before + "\n# an edit\n")
    run(sys.executable, "-m", "tasks.environment", cwd=folder, env=env)
    shown = dvc("status", cwd=folder, env=env)
    (folder / "nets/blocks.py").write_text(before)
    assert "finetune:" in shown
    assert "evaluate:" in shown
    assert "validate:" not in shown


def test_a_wrong_name_stops_the_first_stage(project: tuple[Path, dict[str, str]]) -> None:
    folder, env = project
    kept = (folder / "params.yaml").read_text()
    change_params(folder / "params.yaml", {"finetune.model": "nets.smal:build"})
    said = run(sys.executable, "-m", "tasks.environment", cwd=folder, env=env, expected=2)
    (folder / "params.yaml").write_text(kept)
    assert f"`finetune.model` is nets.smal:build, but {folder} has neither nets/smal.py nor" in said
    assert "Traceback" not in said
