"""What goes wrong with a machine is not held against an image: it costs it this time, and nothing else."""

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from flows.cli import main
from refit.data import child, children, inspection
from refit.data.inspection import inspect_all, recall, remember
from refit.data.sources import Example, list_examples
from refit.modality.image import files as image_file
from refit.modality.image.files import Inspection
from refit.params import Params, read_yaml
from refit.paths import ACCIDENTS

from .conftest import ROOT, draw, write_image_folder
from .test_validate import run_stages

FORMATS: dict[str, dict[str, Any]] = {
    "a.jpg": {}, "progressive.jpg": {"progressive": True}, "a.png": {}, "a.webp": {}, "a.gif": {}, "a.bmp": {},
    "lzw.tif": {"compression": "tiff_lzw"},
}  # fmt: skip


def here(path: Path) -> Inspection:
    """What is said of a file, found out in this process."""
    return child.inspect(image_file.inspect, image_file.INSPECTED, path)


def test_want_of_memory_is_never_remembered(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, options in FORMATS.items():
        draw(1, 1400, 1000).save(project / name, **options)
    files = [project / name for name in FORMATS]
    truth = {path: here(path) for path in files}
    found: list[tuple[Path, Inspection]] = []
    for mebibytes in (0, 6, 12, 18, 24):
        monkeypatch.setattr(children, "MEBIBYTES", mebibytes)
        found += zip(files, children.inspect_in_children(files, "image", num_children=1), strict=True)
    assert sum(one.error is not None for _, one in found) > len(FORMATS), "the memory was not narrow"
    assert any(str(one.error).startswith("not enough memory to decode it; the next") for _, one in found)
    assert all(one == truth[path] for path, one in found if one.error is None)
    remember([one for _, one in found], "image")
    assert recall("image").items() <= {true.sha256: true for true in truth.values()}.items()


@pytest.mark.parametrize(
    ("trouble", "reason", "is_accident"),
    [
        (MemoryError(), "not enough memory to decode it; ", True),
        (OSError("out of memory error when reading image file"), "not enough memory to decode it; ", True),
        (OSError("broken data stream when reading image file"), "damaged image: broken data stream", False),
    ],
)
def test_what_a_decoder_says_is_not_remembered(
    images: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception, reason: str, is_accident: bool
) -> None:
    def load(_image: object) -> None:
        raise trouble

    monkeypatch.setattr(image_file.ImageOps, "exif_transpose", load)
    found = here(images / "cat" / "000.png")
    assert str(found.error).startswith(reason)
    assert found.is_accident == is_accident
    remember([found], "image")
    assert recall("image") == {}


def test_no_memory_for_another_process_costs_this_time_only(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = list_examples(images, images)

    def refused(_modality_name: str) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(children._Child, "start", refused)
        assert all(found.is_accident for found in inspect_all(examples, "image"))
    assert len(read_yaml(ACCIDENTS)) == len(examples)
    assert [found.error for found in inspect_all(examples, "image")] == [None] * len(examples)
    assert not ACCIDENTS.exists()


def test_a_file_that_cannot_be_read_is_an_accident_and_a_bad_one_is_not(project: Path) -> None:
    (project / "empty.png").touch()
    assert here(project / "gone.png").is_accident
    assert not here(project / "empty.png").is_accident
    unusable = Example(project / "x", "cat", error="no label")
    assert [found.is_accident for found in inspection.inspect_some([unusable], "image")] == [False]


def test_the_next_run_looks_again_at_what_had_an_accident(
    images: Path, edit_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC alone would not: neither code nor data changed."""
    from dvc.repo import Repo

    write_image_folder(images, per_class=60)
    edit_params(data__source="data/images", validate__min_examples_per_class__val=1)
    Repo.init(no_scm=True)
    lines = (ROOT / "dvc.yaml").read_text()
    bounds = [("  environment:", "  sample:"), ("  ingest:", "  fetch:")]
    stages = [lines[lines.index(first) : lines.index(last)] for first, last in bounds]
    Path("data/exceptions.csv").write_text("sha256,rule,reason,who\n")
    Path("dvc.yaml").write_text("stages:\n" + "".join(stages))
    for folder in ("tasks", "flows", "refit"):
        Path(folder).symlink_to(ROOT / folder)

    def run() -> str:
        result = CliRunner().invoke(main, ["validate"])
        assert result.exit_code == 0, result.output
        return result.output

    assert "Running stage 'ingest'" in run()
    assert "Running stage 'ingest'" not in run()
    monkeypatch.setattr(inspection, "say", lambda _line: None)
    first = list_examples(images, images)[:1]
    inspection._note_accidents(first, [Inspection(is_accident=True)])
    assert "Running stage 'ingest'" in run()
    assert "Running stage 'ingest'" not in run()


def test_an_accident_is_a_rejected_image_and_not_in_the_manifests_columns(
    images: Path, edit_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image_folder(images, per_class=60)
    original = inspection.inspect_some

    def one_is_lost(examples: list[Example], name: str) -> list[Inspection]:
        found = list(original(examples, name))
        return [child.accident(image_file.INSPECTED, "not enough memory"), *found[1:]]

    monkeypatch.setattr(inspection, "inspect_some", one_is_lost)
    run_stages(edit_params, validate__min_examples_per_class__val=1)
    assert list(pd.read_parquet("data/rejected.parquet")["reason"]) == [
        "not enough memory; the next `refit retrain` or `validate` tries again, or `dvc repro -f ingest`"
    ]
    assert dataclasses.asdict(next(iter(recall("image").values())))["is_accident"] is False
