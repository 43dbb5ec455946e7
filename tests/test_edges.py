"""A stage runs again when something that can change its result has changed, and only then: edits x stages."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pandas as pd
import pytest
from PIL import Image

from flows.tools import commits, pipeline
from refit.errors import WorkspaceError
from refit.params import read_yaml

from .conftest import change_params, write_image_folder
from .services import clone, dvc, environment, origin, refit

__all__ = ["origin"]  # a fixture


@pytest.fixture(scope="module")
def project(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone in which all stages have run on tiny pictures."""
    home = tmp_path_factory.mktemp("edges")
    folder = clone(origin, home / "project")
    write_image_folder(folder / "data" / "images", per_class=60)
    changes = {
        "data.source": "data/images", "checkpoint.uri": "scratch", "checkpoint.sha256": None,
        "image.finetune.size": 32, "validate.min_examples_per_class.val": 1, "validate.max_rejected_fraction": 0.2,
    }  # fmt: skip
    change_params(folder / "params.yaml", changes)
    dvc("repro", cwd=folder, env=environment(home))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        yield folder


def changed_stages() -> set[str]:
    """The stages whose code, params or inputs are not those of dvc.lock. (`environment` runs each time.)"""
    from dvc.repo import Repo

    with Repo() as repo:
        return {name for name, found in repo.status().items() if found != ["always changed"]}


def appended(file: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        with (folder / file).open("a") as stream:
            stream.write("\n# an edit\n")

    return edit


def param(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_params(folder / "params.yaml", dict(changes))


def upgraded(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "reports/environment.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: "99.0"}))

    return edit


EDITS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "refit/scoring/measures.py": (appended("refit/scoring/measures.py"), {"evaluate"}),
    "refit/scoring/intervals.py": (appended("refit/scoring/intervals.py"), {"evaluate"}),
    "refit/scoring/metrics.py": (appended("refit/scoring/metrics.py"), {"finetune", "evaluate"}),
    "refit/modality/image/augment.py": (appended("refit/modality/image/augment.py"), {"finetune", "suspects"}),
    "refit/modality/image/rules.py": (appended("refit/modality/image/rules.py"), {"validate"}),
    "refit/modality/image/weights.py": (appended("refit/modality/image/weights.py"), {"fetch", "finetune", "suspects"}),
    "refit/modality/image/networks.py": (
        appended("refit/modality/image/networks.py"),
        {"finetune", "evaluate", "suspects"},
    ),
    "refit/modality/image/files.py": (
        appended("refit/modality/image/files.py"),
        {"ingest", "validate", "finetune", "evaluate", "suspects"},
    ),
    "refit/modality/image/duplicates.py": (appended("refit/modality/image/duplicates.py"), {"validate"}),
    "refit/training/loop.py": (appended("refit/training/loop.py"), {"finetune"}),
    "refit/checkpoint/download.py": (appended("refit/checkpoint/download.py"), {"fetch"}),
    "refit/checkpoint/buckets.py": (appended("refit/checkpoint/buckets.py"), {"fetch"}),
    "refit/checkpoint/hub.py": (appended("refit/checkpoint/hub.py"), {"fetch"}),
    "refit/checkpoint/backbone.py": (appended("refit/checkpoint/backbone.py"), {"finetune", "suspects"}),
    "refit/registry/versions.py": (appended("refit/registry/versions.py"), set()),
    "refit/data/archives.py": (appended("refit/data/archives.py"), {"ingest", "fetch"}),
    "refit/data/children.py": (appended("refit/data/children.py"), {"ingest", "validate"}),
    "refit/data/set_rules.py": (appended("refit/data/set_rules.py"), {"validate"}),
    "data/exceptions.csv": (appended("data/exceptions.csv"), {"validate"}),
    "data/label_answers.csv": (appended("data/label_answers.csv"), {"suspects"}),
    "refit/data/label_errors.py": (appended("refit/data/label_errors.py"), {"suspects"}),
    "refit/scoring/linear.py": (appended("refit/scoring/linear.py"), {"suspects"}),
    "refit/training/start.py": (appended("refit/training/start.py"), {"finetune", "suspects"}),
    "refit/reports/validation.html.j2": (appended("refit/reports/validation.html.j2"), {"validate"}),
    "refit/reports/evaluation.py": (appended("refit/reports/evaluation.py"), {"evaluate"}),
    "refit/reports/comparison.html.j2": (appended("refit/reports/comparison.html.j2"), set()),
    "refit/gate/decide.py": (appended("refit/gate/decide.py"), set()),
    "refit/registry/tracking.py": (appended("refit/registry/tracking.py"), set()),
    "refit/errors.py": (appended("refit/errors.py"), set()),
    "tasks/compare.py": (appended("tasks/compare.py"), set()),
    "flows/retrain.py": (appended("flows/retrain.py"), set()),
    "finetune.learning_rate": (param(**{"finetune.learning_rate": 0.01}), {"finetune"}),
    "checkpoint.uri": (param(**{"checkpoint.uri": "models:/digits/1"}), {"fetch"}),
    "checkpoint.prefix": (param(**{"checkpoint.prefix": "model."}), {"finetune", "suspects"}),
    "checkpoint.min_loaded": (param(**{"checkpoint.min_loaded": 0.5}), {"finetune", "suspects"}),
    "finetune.num_threads": (param(**{"finetune.num_threads": 2}), {"finetune"}),
    "image.finetune.augment": (param(**{"image.finetune.augment.rotation": 1.0}), {"finetune", "suspects"}),
    "image.validate.min_side": (param(**{"image.validate.min_side": 9}), {"validate"}),
    "validate.retired_labels": (param(**{"validate.retired_labels": ["x"]}), {"validate"}),
    "evaluate.calibration_bins": (param(**{"evaluate.calibration_bins": 11}), {"evaluate"}),
    "data.val_fraction": (param(**{"data.val_fraction": 0.2}), {"ingest"}),
    "suspects.shown": (param(**{"suspects.shown": 7}), {"suspects"}),
    "gate.margin": (param(**{"gate.margin": 0.02}), set()),
    "register.model_name": (param(**{"register.model_name": "x"}), set()),
    "torch": (upgraded("torch"), {"fetch", "finetune", "evaluate", "suspects"}),
    "torchvision": (upgraded("torchvision"), {"fetch", "finetune", "evaluate", "suspects"}),
    "numpy": (upgraded("numpy"), {"ingest", "finetune", "evaluate", "suspects"}),
    "cleanlab": (upgraded("cleanlab"), {"suspects"}),
    "sample": (upgraded("sample"), {"sample"}),
    "decoders": (upgraded("decoders"), {"ingest", "validate", "finetune", "evaluate", "suspects"}),
    "network": (upgraded("network"), {"finetune", "evaluate", "suspects"}),
    "mlflow": (upgraded("mlflow"), set()),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_runs_what_it_can_change_and_nothing_else(project: Path, edit: str) -> None:
    change, expected = EDITS[edit]
    file = project / (edit if "/" in edit else "params.yaml")
    if EDITS[edit][0].__qualname__.startswith("upgraded"):
        file = project / "reports/environment.json"
    before = file.read_bytes()
    try:
        assert changed_stages() == set()
        change(project)
        found = changed_stages() - {"environment"}
    finally:
        file.write_bytes(before)
    assert found == expected


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (appended("refit/training/loop.py"), "refit/training/loop.py (finetune)"),
        (param(**{"validate.rules.leak": "warn"}), "validate of params.yaml (validate)"),
        (appended("reports/label_suspects.csv"), "reports/label_suspects.csv (suspects)"),
        (param(**{"gate.margin": 0.02, "register.model_name": "x"}), None),
        (appended("refit/gate/decide.py"), None),
    ],
)
def test_only_what_the_present_code_and_params_made_is_registered(
    project: Path, edit: Callable[[Path], None], expected: str | None
) -> None:
    names = ("params.yaml", "refit/training/loop.py", "refit/gate/decide.py", "reports/label_suspects.csv")
    before = {project / name: (project / name).read_bytes() for name in names}
    try:
        edit(project)
        if expected is None:
            pipeline.require_unchanged("data/images")
        else:
            with pytest.raises(WorkspaceError, match=rf"written: {re.escape(expected)}; .*`refit retrain`"):
                pipeline.require_unchanged("data/images")
            assert expected in refit("register", cwd=project, env=environment(project.parent), expected=8)
    finally:
        for file, content in before.items():
            file.write_bytes(content)


def test_a_retraining_whose_code_was_edited_meanwhile_is_neither_committed_nor_registered(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.retrain as flow

    effects = {name: Mock() for name in ("keep", "compare", "register")}
    others = ("run_stage", "clean_up", "run_before", "show_validation", "keep_classes", "show_evaluation", "reporting")
    for name, mock in (effects | {name: MagicMock() for name in others}).items():
        monkeypatch.setattr(flow, name, mock)
    monkeypatch.setattr(commits, "require_clean_code", Mock())
    monkeypatch.setattr(pipeline, "require_tracked_source", Mock())
    flow.retrain.fn(deliver="commit")
    assert all(mock.called for mock in effects.values())
    code = project / "refit/training/loop.py"
    before = code.read_bytes()
    appended("refit/training/loop.py")(project)
    for deliver in ("commit", "workspace"):
        for mock in effects.values():
            mock.reset_mock()
        with pytest.raises(WorkspaceError, match=r"refit/training/loop\.py \(finetune\)"):
            flow.retrain.fn(deliver=deliver)
        assert not any(mock.called for mock in effects.values())
    code.write_bytes(before)


def test_a_source_may_grow_while_a_model_is_trained_but_not_be_another_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = project / "data/images/cat/new.png"
    shutil.copy(project / "data/images/cat/000.png", new)
    try:
        pipeline.require_unchanged("data/images")
        with monkeypatch.context() as patch:
            patch.setattr(commits, "holds", lambda _path: True)
            with pytest.raises(WorkspaceError, match=r"written: data/images \(ingest\)"):
                pipeline.require_unchanged("data/images")
        dvc("add", "--quiet", "data/images", cwd=project, env=environment(project.parent))
        with pytest.raises(WorkspaceError, match=r"written: data/images\.dvc \(ingest\)"):
            pipeline.require_unchanged("data/images")
        new.unlink()
        dvc("add", "--quiet", "data/images", cwd=project, env=environment(project.parent))
        shutil.copy(project / "data/images/cat/000.png", new)
        pipeline.require_unchanged("data/images")
    finally:
        new.unlink(missing_ok=True)
        (project / "data/images.dvc").unlink(missing_ok=True)


def test_files_that_are_not_accepted_train_nothing_again(project: Path, tmp_path: Path) -> None:
    """An unreadable file and a copy of an accepted one came in: the accepted rows are the same."""
    env = environment(tmp_path)
    (project / "data/images/cat/broken.png").write_text("no image")
    shutil.copy(project / "data/images/cat/000.png", project / "data/images/cat/zzz.png")
    before = lock_of(project, "finetune")
    said = dvc("repro", cwd=project, env=env)
    assert "Running stage 'ingest'" in said
    assert "Running stage 'validate'" in said
    assert "Running stage 'finetune'" not in said
    assert "Running stage 'evaluate'" not in said
    assert lock_of(project, "finetune") == before


def test_a_file_that_changed_behind_the_tables_back_is_refused(project: Path, tmp_path: Path) -> None:
    """The training does not depend on the files' folder, since the table names each content: so it must look at what it
    has not kept."""
    accepted = pd.read_parquet(project / "data/accepted.parquet")
    name = accepted.loc[accepted["split"] == "train", "path"].iloc[0]
    picture = project / name
    before = picture.read_bytes()
    Image.new("RGB", (24, 20)).save(picture)
    try:
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--force", "finetune"]
        env = environment(tmp_path) | {"REFIT_CACHE": str(tmp_path / "nothing kept")}
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    finally:
        picture.write_bytes(before)
    assert done.returncode != 0
    assert f"{name} was changed after it was validated" in done.stdout + done.stderr


def lock_of(project: Path, stage: str) -> object:
    return read_yaml(project / "dvc.lock")["stages"][stage]
