"""What goes wrong with a machine is not held against an image: it costs it this time, and nothing else."""

import dataclasses
import errno
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from flows.cli import main
from refit.data import inspection
from refit.data.inspection import inspect_all, inspect_one, recall, remember
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


def in_narrow_memory(example: Example) -> Inspection:
    """Inspected when this process may have only so many MiB more as the label says."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + int(example.label) * 2**20, most))
    try:
        return inspect_one(example, "image")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def test_want_of_memory_is_never_remembered(project: Path) -> None:
    for name, options in FORMATS.items():
        draw(1, 1400, 1000).save(project / name, **options)
    examples = [Example(project / name, str(mebibytes)) for name in FORMATS for mebibytes in range(0, 30, 3)]
    found = list(inspection._in_processes(in_narrow_memory, examples, "image"))
    truth = {example.path: inspect_one(example, "image") for example in examples[::10]}
    assert sum(one.error is not None for one in found) > len(FORMATS), "the memory was not narrow"
    assert any(str(one.error).startswith("not enough memory to decode it; the next") for one in found)
    decoded = [(example.path, one) for example, one in zip(examples, found, strict=True) if one.error is None]
    assert all(one == truth[path] for path, one in decoded)
    remember(found, "image")
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
    found = inspect_one(Example(images / "cat" / "000.png", "cat"), "image")
    assert str(found.error).startswith(reason)
    assert found.is_accident == is_accident
    remember([found], "image")
    assert recall("image") == {}


def no_memory_for_the_third(example: Example) -> Inspection:
    if example.path.name == "002.png":
        raise MemoryError
    return inspect_one(example, "image")


def test_want_of_memory_in_a_process_takes_only_that_image(images: Path) -> None:
    found = list(inspection._in_processes(no_memory_for_the_third, list_examples(images, images), "image"))
    assert [one.is_accident for one in found] == ([False] * 2 + [True] + [False] * 9) * 2


def test_no_memory_for_another_process_costs_this_time_only(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = list_examples(images, images)

    def refused(max_workers: int | None = None) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "_pool", refused)
        assert all(found.is_accident for found in inspect_all(examples, "image"))
    assert len(read_yaml(ACCIDENTS)) == len(examples)
    assert [found.error for found in inspect_all(examples, "image")] == [None] * len(examples)
    assert not ACCIDENTS.exists()


def test_a_file_that_cannot_be_read_is_an_accident_and_a_bad_one_is_not(project: Path) -> None:
    (project / "empty.png").touch()
    assert inspect_one(Example(project / "gone.png", "cat"), "image").is_accident
    assert not inspect_one(Example(project / "empty.png", "cat"), "image").is_accident
    assert not inspect_one(Example(project / "x", "cat", error="no label"), "image").is_accident


def test_the_next_run_looks_again_at_what_had_an_accident(
    images: Path, edit_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC alone would not: neither code nor data changed."""
    from dvc.repo import Repo

    write_image_folder(images, per_class=60)
    edit_params(data__source="data/images", validate__min_images_per_class__val=1)
    Repo.init(no_scm=True)
    lines = (ROOT / "dvc.yaml").read_text()
    bounds = [("  environment:", "  sample:"), ("  ingest:", "  fetch:")]
    stages = [lines[lines.index(first) : lines.index(last)] for first, last in bounds]
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
    original = inspection._in_processes

    def one_is_lost(function: Any, examples: list[Example], name: str) -> list[Inspection]:
        found = list(original(function, examples, name))
        return [inspection._accident("not enough memory", name), *found[1:]]

    monkeypatch.setattr(inspection, "_in_processes", one_is_lost)
    run_stages(edit_params, validate__min_images_per_class__val=1)
    assert list(pd.read_parquet("data/rejected.parquet")["reason"]) == [
        "not enough memory; the next `refit retrain` or `validate` tries again, or `dvc repro -f ingest`"
    ]
    assert dataclasses.asdict(next(iter(recall("image").values())))["is_accident"] is False
