"""From the built-in pictures to the built-in texts and back, with one command each."""

import json
from pathlib import Path

import pandas as pd
import pytest

from refit.checkpoint import folder as folders
from refit.errors import ParamsError
from refit.modality.text import sample, settings
from refit.params import load_params, read_yaml, use

from .conftest import ROOT, change_params
from .services import clone, dvc, environment, origin, refit, run

__all__ = ["origin"]  # a fixture

SAMPLES = {name: ROOT / "refit/modality" / name / "sample.yaml" for name in ("image", "text")}


def test_a_clone_learns_texts_and_goes_back_to_pictures(origin: Path, tmp_path: Path) -> None:
    folder, env = clone(origin, tmp_path / "project"), environment(tmp_path)
    assert "params.yaml: data.modality, checkpoint.uri" in refit("use", "text", cwd=folder, env=env)
    change_params(folder / "params.yaml", {"finetune.epochs": 3})
    said = dvc("repro", cwd=folder, env=env)
    assert " texts of 7 libraries in data/sample" in said
    accuracy = json.loads((folder / "metrics/evaluation.json").read_text())["accuracy"]
    assert accuracy["low"] > 0.35, "a seventh would be chance"
    table = pd.read_csv(folder / "data/sample/labels.csv").sample(60, random_state=0)
    (folder / "lines.txt").write_text("\n".join(table["text"]))
    values = [argument for text in table["text"] for argument in ("--value", text)]
    labels = [row["label"] for row in json.loads(refit("predict", "--json", *values, cwd=folder, env=env))]
    assert (pd.Series(labels) == table["label"].to_numpy()).mean() > 0.5
    run("git", "checkout", "--quiet", "params.yaml", cwd=folder, env=env)
    refit("use", "text", cwd=folder, env=env)
    refit("use", "image", cwd=folder, env=env)
    assert run("git", "status", "--porcelain", "params.yaml", cwd=folder, env=env) == ""
    dvc("repro", "sample", cwd=folder, env=env)
    assert len(list((folder / "data/sample").glob("*/*.png"))) == 1797


def test_both_sets_say_the_same_keys_and_params_has_the_pictures() -> None:
    said = {name: read_yaml(file) for name, file in SAMPLES.items()}
    keys = {name: {(section, key) for section in told for key in told[section]} for name, told in said.items()}
    assert keys["image"] == keys["text"]
    shipped = read_yaml(ROOT / "params.yaml")
    assert all(shipped[section].items() >= values.items() for section, values in said["image"].items())


def test_a_switch_keeps_every_other_sign(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    changed = use("text")
    assert load_params().data.modality == "text"
    after = (project / "params.yaml").read_text()
    differing = [line for line, old in zip(after.splitlines(), before.splitlines(), strict=True) if line != old]
    assert len(differing) == len(changed)
    assert use("text") == ()
    assert use("image") == changed
    assert (project / "params.yaml").read_text() == before


def test_a_switch_that_makes_no_sense_changes_nothing(project: Path) -> None:
    change_params(project / "params.yaml", {"finetune.mixup": 0.2})
    before = (project / "params.yaml").read_text()
    with pytest.raises(ParamsError, match=r"^params.yaml: `finetune.mixup` has no meaning for `data.modality: text`"):
        use("text")
    with pytest.raises(ParamsError, match="no built-in examples for 'video'; there are some for: image, text"):
        use("video")
    assert (project / "params.yaml").read_text() == before
    (project / "params.yaml").write_text(before.replace("  model: shufflenet_v2_x0_5", "  # no model"))
    with pytest.raises(ParamsError, match=r"has no line of its own for `finetune\.model`"):
        use("image")


def test_the_embedded_language_model_is_the_pinned_one_and_small() -> None:
    folder = ROOT / "base/docstrings"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 3_000_000
    with folders.taken(folders.files_in(folder, settings.CHECKPOINT_FILES)) as copy:
        digest = folders.digest_of(copy)
    pinned = read_yaml(SAMPLES["text"])["checkpoint"]["sha256"]
    assert digest == pinned == json.loads((ROOT / "base/docstrings.json").read_text())["sha256"]


def test_a_docstring_becomes_plain_prose(tmp_path: Path) -> None:
    lines = ["def rank(x):", '    """Return the *rank* of', "    :class:`~pkg.Matrix` by ``svd``.", "", "    More.", "",
             "    Parameters", "    ----------", "    x : array", '    """']  # fmt: skip
    (tmp_path / "code.py").write_text("\n".join(lines))
    (docstring,) = sample.docstrings_in(tmp_path / "code.py")
    assert sample.prose_of(docstring) == "Return the rank of pkg.Matrix by svd. More."
