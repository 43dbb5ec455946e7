"""Each bad picture gets the verdict that is expected of it, by what ingests, validates, trains and predicts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from flows.cli import main
from refit.data.children import inspect_in_children
from refit.data.rules import broken, row_schema
from refit.modality.image import examples, files, rules
from refit.modality.image.preprocessing import Preprocessing
from refit.params import load_params

from .conftest import draw, write_image_folder
from .corpus import display_p3, encoded, seeds

AS_TRAINED = Preprocessing(
    resize_size=32, crop_size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


def test_every_seed_has_its_verdict(project: Path) -> None:
    corpus, params = seeds(), load_params()
    assert len(corpus) >= 100
    for name, (content, _) in corpus.items():
        (project / name).write_bytes(content)
    found = list(inspect_in_children([project / name for name in corpus], "image"))
    table = pd.DataFrame(
        [{"path": name, "label": "x", **one.columns()} for name, one in zip(corpus, found, strict=True)]
    )
    table["error"] = table["error"].astype("string")
    findings = broken(
        rules.derived(table[table["error"].isna()]),
        row_schema(params.validate, rules.row_columns(params.of_modality.validate)),
    )
    wrong = {}
    for row, (name, (content, expected)) in enumerate(corpus.items()):
        of_row = findings[findings["row"] == row]
        readable = table["error"].isna()[row]
        said = {table["rule"][row], *of_row["rule"]} - {""}
        reason = "; ".join(of_row["reason"]) if readable else table["error"][row]
        names, _, words = expected.partition(": ")
        if said != set(names.split()) or words not in reason:
            wrong[name] = expected, said, reason
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


def test_photos_as_phones_write_them_are_read_with_the_extra(project: Path) -> None:
    """The container says how a HEIC photo is turned, which its decoder does: what EXIF repeats is not done again."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(draw(5, 90, 70), "HEIF", exif=exif, icc_profile=display_p3(), quality=95)
    (project / "a.heic").write_bytes(content)
    (project / "cut.heic").write_bytes(content[: len(content) // 2])
    good, cut = inspect_in_children([project / "a.heic", project / "cut.heic"], "image")
    assert isinstance(good, files.ImageInspection)
    assert (good.error, good.format, good.width, good.height, good.frames) == (None, "HEIF", 90, 70, 1)
    assert good.profile == "Display P3"
    seen = np.asarray(files.to_rgb(files.decode(content)), dtype=int)
    assert np.abs(seen - np.asarray(draw(5, 90, 70), dtype=int)).mean() < 4
    assert cut.rule in ("damaged", "not_image")


def test_photos_as_phones_write_them_are_named_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "pillow_heif", None)
    monkeypatch.setattr(files, "FORMATS", tuple(name for name in files.FORMATS if name != "HEIF"))
    with pytest.raises(ValueError, match="a HEIC photo, which needs pillow-heif; install the extra `heif`"):
        files.decode(b"\0\0\0\x18ftypheic" + bytes(100))


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
