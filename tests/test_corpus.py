"""Each bad picture gets the verdict that is expected of it, by what ingests, validates, trains and predicts."""

import os
import resource
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from flows.cli import main
from refit.data.children import inspect_in_children
from refit.data.rules import broken, row_schema
from refit.data.sources import list_examples
from refit.modality.image import examples, files, rules
from refit.modality.image.preprocessing import Preprocessing
from refit.params import load_params
from tasks.ingest import build_manifest
from tasks.predict import Failure, predict_files
from tasks.validate import judge

from .conftest import draw, write_image_folder
from .corpus import display_p3, encoded, odd_files, seeds

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


def test_devices_links_and_names_have_their_verdicts(project: Path) -> None:
    folder, outside = project / "data/images/cat", project / "outside"
    folder.mkdir(parents=True)
    outside.mkdir()
    expected = odd_files(folder, outside)
    data = load_params().data
    manifest = build_manifest(list_examples(folder.parent, project / "unpacked"), data).assign(split="train")
    verdict = judge(manifest, load_params())
    of_rows = verdict.findings[verdict.findings["row"] >= 0]
    found = dict.fromkeys(manifest["path"].str.removeprefix("data/images/cat/"), ("", ""))
    for row, rule, reason in of_rows[["row", "rule", "reason"]].itertuples(index=False):
        found[manifest["path"][row].removeprefix("data/images/cat/")] = rule, reason
    assert set(found) == set(expected)
    wrong = {
        name: (expected[name], rule, reason)
        for name, (rule, reason) in found.items()
        if rule != expected[name].partition(": ")[0] or expected[name].partition(": ")[2] not in reason
    }
    assert wrong == {}


def test_predict_says_of_each_seed_what_ingest_says(trained: Path) -> None:
    folder = trained / "corpus"
    folder.mkdir()
    for name, (content, _) in seeds().items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to("nowhere")
    said = dict(predict_files([folder / name for name in [*seeds(), "pipe.png", "gone.png"]], None))
    for name, (_, expected) in seeds().items():
        rules, _, words = expected.partition(": ")
        if isinstance(said[folder / name], Failure):
            assert rules in UNUSABLE, name
            assert words in said[folder / name].reason, name
        else:
            assert rules not in UNUSABLE, name
            assert sum(said[folder / name].probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert "not a regular file" in said[folder / "pipe.png"].reason
    assert "No such file" in said[folder / "gone.png"].reason


@pytest.mark.slow
def test_ten_thousand_malformed_decodes_leave_memory_flat(project: Path) -> None:
    """In one child, which is not replaced."""
    draws = np.random.default_rng(1)
    written = []
    for number, (name, (content, _)) in enumerate(list(seeds().items()) * 8):
        changed = bytearray(content)
        for place in draws.integers(0, max(1, len(changed)), 4):
            changed[place : place + 1] = draws.bytes(1)
        file = project / f"{number}-{name}"
        file.write_bytes(changed[: max(1, int(len(changed) * draws.choice([1.0, 1.0, 0.7])))])
        written.append(file)
    sizes, children = [], set()
    for number, _ in enumerate(inspect_in_children((written * 10)[:10_000], "image", num_children=1)):
        if number % 1000 == 999:
            (child,) = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
            pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
            sizes.append(pages * resource.getpagesize() / 2**20)
            children.add(child)
    print(f"MiB after each 1,000: {[round(size) for size in sizes]}, {len(children)} child")  # noqa: T201
    assert len(children) == 1
    assert sizes[-1] - sizes[1] < 16


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
    assert "120 of 121 examples accepted, 1 rejected." in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new-validation"]
    rejected = pd.read_csv("new-validation/rejected.csv")
    assert list(rejected["path"]) == ["cat/page.jpg"]
    assert CliRunner().invoke(main, ["validate"]).exit_code != 0, "without a path it is about the project"
