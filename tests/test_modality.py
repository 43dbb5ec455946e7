"""A second kind of example, tests/modalities/numbers, goes through everything without a line outside its own files."""

import json
import shutil
from pathlib import Path

import pytest

from .conftest import ROOT, change_params
from .services import clone, dvc, environment, origin, refit

__all__ = ["origin"]  # a fixture

SECTION = "numbers:\n  validate: {largest: 100.0, rules: {largest: reject}}\n  finetune: {noise: 0.01}\n"


@pytest.fixture(scope="module")
def project(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A clone with the new folder in refit/modality and a section in params.yaml, in which all stages have run."""
    home = tmp_path_factory.mktemp("numbers")
    folder, env = clone(origin, home / "project"), environment(home)
    shutil.copytree(ROOT / "tests/modalities/numbers", folder / "refit/modality/numbers")
    with (folder / "params.yaml").open("a") as file:
        file.write(SECTION)
    change_params(folder / "params.yaml", {"validate.min_examples_per_class.val": 1})
    said = refit("use", "numbers", cwd=folder, env=env)
    assert "params.yaml: data.modality, checkpoint.uri, checkpoint.sha256, finetune.model," in said
    dvc("repro", cwd=folder, env=env)
    return folder, env


def test_it_is_ingested_validated_and_trained(project: tuple[Path, dict[str, str]]) -> None:
    folder, _ = project
    summary = json.loads((folder / "reports/validation.json").read_text())
    assert summary["num_rejected"] == 2
    assert {name: rule["count"] for name, rule in summary["rules"].items()} == {"unreadable": 1, "largest": 1}
    card = json.loads((folder / "models/model.json").read_text())
    assert (card["modality"], card["architecture"], card["preprocessing"]) == ("numbers", "line", {"scale": 0.5})
    assert json.loads((folder / "metrics/evaluation.json").read_text())["accuracy"]["value"] > 0.9
    assert "features of random weights say little" in (folder / "reports/label_suspects.html").read_text()


def test_it_is_registered_and_predicts(project: tuple[Path, dict[str, str]]) -> None:
    folder, env = project
    assert "candidate: models:/signs-candidates/1" in refit("register", cwd=folder, env=env)
    (folder / "new.txt").write_text("-0.5 -0.4 -0.9 -0.2")
    assert "minus" in refit("predict", "new.txt", cwd=folder, env=env)
    assert "minus" in refit("predict", "new.txt", "--model", "candidate", cwd=folder, env=env)
    (folder / "new.txt").write_text("1 2")
    assert "2 numbers instead of 4" in refit("predict", "new.txt", cwd=folder, env=env, expected=3)


def test_a_modality_that_is_not_there_is_named(project: tuple[Path, dict[str, str]]) -> None:
    folder, env = project
    kept = (folder / "params.yaml").read_text()
    change_params(folder / "params.yaml", {"data.modality": "nubmers"})
    shown = refit("status", cwd=folder, env=env, expected=2)
    (folder / "params.yaml").write_text(kept)
    assert "`data.modality` is 'nubmers', which is not known; did you mean `numbers`?" in shown
