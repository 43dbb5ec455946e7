"""A class that the champion knows cannot vanish from the data, on a real local registry."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import main
from refit import paths
from refit.data.summary import ValidationSummary
from refit.errors import DataError, EvidenceError, TrackingUnavailableError, WorkspaceError
from refit.params import load_params
from refit.records import publish_record, read_record
from refit.registry import champion, tracking
from tasks import promote

from .conftest import ROOT, change_params, write_image_folder
from .services import environment, prefect_api, refit
from .test_promote import candidate, passing

__all__ = ["passing", "prefect_api"]

pytestmark = pytest.mark.usefixtures("no_processes")


@pytest.fixture
def promoted(passing: Path) -> Path:
    """A champion that knows cat and dog, and data that has both."""
    promote.promote(candidate(0.7), "first")
    return passing


def accept(*labels: str) -> None:
    """From here on the validation accepted images of these classes."""
    summary = read_record(paths.VALIDATION_SUMMARY, ValidationSummary, WorkspaceError)
    publish_record(paths.VALIDATION_SUMMARY, dataclasses.replace(summary, classes={label: {} for label in labels}))


def test_what_the_champion_knows_must_be_there_or_retired(promoted: Path) -> None:
    champion.require_its_classes(load_params())
    accept("dog", "eel")
    with pytest.raises(DataError, match="the champion models:/pets/1 knows cat, of which the data has no accepted e"):
        champion.require_its_classes(load_params())
    change_params(Path("params.yaml"), {"validate.retired_labels": ["cat"]})
    champion.require_its_classes(load_params())


def test_without_a_champion_nothing_is_missing(passing: Path) -> None:
    champion.require_its_classes(load_params())
    assert not Path("mlflow.db").exists(), "no registry is made for the question"
    candidate(0.7)
    accept("eel")
    champion.require_its_classes(load_params())


def test_a_card_that_was_changed_is_not_believed(promoted: Path) -> None:
    release = tracking.version_with_alias(load_params().register, "champion")
    assert release is not None
    card = next(
        (promoted / "mlruns").rglob(f"{release.source.removeprefix('models:/')}/artifacts/artifacts/model.json")
    )
    card.write_text(card.read_text().replace('"cat"', '"cow"'))
    with pytest.raises(EvidenceError, match=r"models:/pets/1 does not hold the bytes .*: artifacts/model\.json"):
        champion.require_its_classes(load_params())


def test_no_answer_is_not_no_champion(promoted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingUnavailableError):
        champion.require_its_classes(load_params())


@pytest.fixture
def without_cats(promoted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, in a project that DVC drives, with good images of dogs and eels and none of cats."""

    shutil.rmtree("data/images/cat")
    write_image_folder(Path("data/images"), ("eel",), per_class=60)
    everything = (ROOT / "dvc.yaml").read_text()
    first = everything[everything.index("  environment:") : everything.index("  sample:")]
    stages = everything[everything.index("  ingest:") : everything.index("plots:")]
    Path("dvc.yaml").write_text(f"stages:\n{first}  sample:\n    cmd: 'true'\n{stages}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for folder in ("tasks", "flows", "refit"):
        Path(folder).symlink_to(ROOT / folder)
    return promoted


def test_validate_says_it_and_says_when_it_cannot_know(without_cats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(main, ["validate"])
    assert result.exit_code == 3, result.output
    assert "error: the champion models:/pets/1 knows cat" in result.stderr
    assert "| eel |" in result.stdout
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = CliRunner().invoke(main, ["validate"])
    assert result.exit_code == 0, result.output
    assert "not known whether the champion has classes that are missing here: " in result.stderr


def test_the_flow_stops_before_it_trains(without_cats: Path, prefect_api: str) -> None:
    env = environment(without_cats.parent, PREFECT_API_URL=prefect_api)
    said = refit("retrain", cwd=without_cats, env=env, expected=3)
    assert "the champion models:/pets/1 knows cat" in said
    assert "Running stage 'validate'" in said
    assert "Running stage 'f" not in said, "neither fetch nor finetune"
