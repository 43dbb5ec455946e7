"""Each bad picture gets the verdict that is expected of it, by what ingests, validates, trains and predicts."""

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from flows.cli import main
from refit.data.children import inspect_in_children
from refit.data.rules import broken, row_schema
from refit.modality.image import examples, rules
from refit.modality.image.preprocessing import Preprocessing
from refit.params import load_params

from .conftest import write_image_folder
from .corpus import seeds

AS_TRAINED = Preprocessing(
    resize_size=32, crop_size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
UNUSABLE = {"damaged", "not_image", "bomb", "empty", "pointer"}


def test_every_seed_has_its_verdict(project: Path) -> None:
    corpus, params = seeds(), load_params()
    assert len(corpus) >= 100
    for name, (content, _) in corpus.items():
        (project / name).write_bytes(content)
    found = list(inspect_in_children([project / name for name in corpus], "image"))
    table = pd.DataFrame([{"label": "x", **one.columns()} for one in found])
    table["error"] = table["error"].astype("string")
    findings = broken(
        table[table["error"].isna()], row_schema(params.validate, rules.row_columns(params.of_modality.validate))
    )
    wrong = {}
    for row, (name, (content, expected)) in enumerate(corpus.items()):
        said = {table["rule"][row], *findings[findings["row"] == row]["rule"]} - {"", "blurred"}
        readable = table["error"].isna()[row]
        if (expected or "") not in (said or {""}) and not (expected in UNUSABLE and said & UNUSABLE):
            wrong[name] = expected, said
        if readable:  # as training and a served model read it
            assert examples.prepare(content, AS_TRAINED).shape == (3, 32, 32)
        else:
            with pytest.raises(ValueError):
                examples.prepare(content, AS_TRAINED)
    assert wrong == {}


def test_orientation_is_the_same_picture_turned(project: Path) -> None:
    sizes = {}
    for number in range(1, 9):
        content, _ = seeds()[f"exif-{number}.jpg"]
        (project / "a.jpg").write_bytes(content)
        (one,) = inspect_in_children([project / "a.jpg"], "image")
        sizes[number] = one.width, one.height  # type: ignore[attr-defined]
    assert [sizes[number] for number in range(1, 9)] == [(90, 70)] * 4 + [(70, 90)] * 4


def test_a_folder_is_judged_with_no_project_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path / "new", per_class=60)
    (tmp_path / "new/cat/page.jpg").write_bytes(seeds()["page.jpg"][0])
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["validate", "new"])
    assert "120 of 121 images accepted, 1 rejected." in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new-validation"]
    rejected = pd.read_csv("new-validation/rejected.csv")
    assert list(rejected["path"]) == ["cat/page.jpg"]
    assert CliRunner().invoke(main, ["validate"]).exit_code != 0, "without a path it is about the project"
