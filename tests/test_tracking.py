"""MLflow: one version per content, whatever happens in between; and a model that anybody can load."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from sqlalchemy.exc import OperationalError

from refit import paths
from refit.errors import TrackingError, TrackingUnavailableError, WorkspaceError
from refit.modality.image.examples import parse
from refit.params import load_params
from refit.registry import tracking
from tasks import compare
from tasks.register import register_candidate

from .conftest import change_params


def client() -> Any:
    import mlflow

    mlflow.set_tracking_uri(tracking.tracking_uri(load_params().register))
    return mlflow.MlflowClient()


def test_a_candidate_carries_its_whole_story(trained: Path) -> None:
    registration = register_candidate({"prefect.flow_run_id": "some-flow-run"})
    version = registration.version
    assert registration.is_new
    assert (version.model_name, version.version, version.aliases) == ("pets-candidates", "1", ("candidate",))
    card = json.loads(paths.MODEL_CARD.read_text())
    summary = json.loads(paths.VALIDATION_SUMMARY.read_text())
    assert version.tags["refit.weights_sha256"] == card["weights_sha256"]
    assert version.tags["refit.data_digest"] == summary["data_digest"]
    assert version.tags["refit.split_digest"] == summary["split_digest"]
    assert (version.tags["refit.git_commit"], version.tags["refit.git_dirty"]) == ("none", "unknown")
    run = client().get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["prefect.flow_run_id"] == "some-flow-run"
    assert run.data.params["finetune.learning_rate"] == str(load_params().finetune.learning_rate)
    assert run.data.metrics["test_accuracy"] == json.loads(paths.EVALUATION.read_text())["overall"]["accuracy"]["value"]
    assert [point.step for point in client().get_metric_history(version.run_id, "val_loss")] == [1]
    assert run.inputs.dataset_inputs[0].dataset.digest == summary["data_digest"][:36]
    artifacts = {
        entry.path
        for folder in ("reports", "lineage", "plots")
        for entry in client().list_artifacts(version.run_id, folder)
    }
    assert {"reports/evaluation.html", "lineage/dvc.lock", "lineage/packages.txt", "plots/history.csv"} <= artifacts


@pytest.mark.usefixtures("no_probe")
def test_the_same_content_is_the_same_version(trained: Path) -> None:
    first, second = register_candidate(), register_candidate()
    assert first.version == second.version
    assert (first.is_new, second.is_new) == (True, False)
    assert len(client().search_runs([e.experiment_id for e in client().search_experiments()])) == 1


@pytest.mark.usefixtures("no_probe")
def test_other_content_is_another_version_and_takes_the_alias(trained: Path) -> None:
    register_candidate()
    evaluation = json.loads(paths.EVALUATION.read_text())
    evaluation["overall"]["accuracy"]["value"] = 0.123
    paths.EVALUATION.write_text(json.dumps(evaluation))
    compare.compare()
    second = register_candidate().version
    assert (second.version, second.aliases) == ("2", ("candidate",))
    assert client().get_model_version("pets-candidates", "1").aliases == []
    assert register_candidate().version.version == "2"


CALLS = [
    "log_metrics", "_log_model", "download", "_log_evidence", "_create_version", "set_registered_model_alias",
    "create_model_version", "_present",
]  # fmt: skip


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("took_effect", [False, True])
def test_an_interrupted_registration_is_completed_not_doubled(
    trained: Path, call: str, took_effect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call fails, or takes effect while its reply is lost; then the registration is repeated."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    owner: Any = MlflowClient if hasattr(MlflowClient, call) else tracking
    original = getattr(owner, call)

    def lost(*arguments: Any, **options: Any) -> Any:
        if took_effect:
            original(*arguments, **options)
        raise MlflowException("the connection was lost")

    monkeypatch.setattr(owner, call, lost)
    with pytest.raises(TrackingUnavailableError, match="`refit register` completes the registration"):
        register_candidate()
    monkeypatch.setattr(owner, call, original)
    registration, again = register_candidate(), register_candidate()
    assert (registration.is_new, again.is_new) == (True, False), "somebody has to be told of it, once"
    version = registration.version
    page = client().get_model_version(version.model_name, version.version).description
    assert "refit promote 1 " in page
    assert page == client().get_run(version.run_id).data.tags["mlflow.note.content"]
    assert version.aliases == ("candidate",)
    assert version.version == "1"
    assert len(client().search_model_versions("name='pets-candidates'")) == 1
    runs = client().search_runs([e.experiment_id for e in client().search_experiments()])
    assert [run.info.status for run in runs] == ["FINISHED"]


@pytest.mark.usefixtures("no_probe")
def test_a_server_that_cannot_be_reached_loses_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in (paths.MODEL_WEIGHTS, paths.MODEL_CARD, paths.EVALUATION)}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught:
        register_candidate()
    assert "http://127.0.0.1:9 failed" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.retryable
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert register_candidate().version.version == "1"


@pytest.mark.usefixtures("no_probe")
def test_no_answer_is_not_the_answer_that_there_is_none(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_params().register
    assert tracking.version_with_alias(settings, "champion") is None, "no such model"
    register_candidate()
    assert tracking.version_with_alias(settings, "champion") is None, "no such alias"
    assert tracking.version_with_alias(settings, "candidate") is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError):
        tracking.version_with_alias(settings, "champion")


def test_with_nothing_trained_there_is_nothing_to_register(trained: Path) -> None:
    paths.MODEL_WEIGHTS.unlink()
    with pytest.raises(WorkspaceError, match=r"models/model\.safetensors missing; run `dvc repro`"):
        register_candidate()


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda: change_params(paths.PARAMS, {"finetune.learning_rate": 0.1}), "another seed or `finetune` section"),
        (lambda: change_json(paths.VALIDATION_SUMMARY, data_digest="0" * 64), "was trained on other data"),
        (lambda: change_json(paths.EVALUATION, weights_sha256="0" * 64), "measures another model"),
    ],
)
def test_outputs_of_different_runs_are_not_registered_together(
    trained: Path, break_it: Callable[[], None], expected: str
) -> None:
    break_it()
    with pytest.raises(WorkspaceError, match=rf"nothing was registered: .*{expected}.*run `dvc repro`"):
        register_candidate()
    assert not (trained / "mlflow.db").exists()


@pytest.mark.usefixtures("no_probe")
def test_an_interrupted_registration_is_completed_under_another_name(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def lost(*_arguments: Any) -> Any:
        raise MlflowException("the connection was lost")

    with monkeypatch.context() as patched, pytest.raises(TrackingUnavailableError):
        patched.setattr(tracking, "_create_version", lost)
        register_candidate()
    change_params(paths.PARAMS, {"register.model_name": "animals", "flow.training_attempts": 7})
    assert register_candidate().version.model_name == "animals-candidates"


@pytest.mark.parametrize(
    "failure",
    [
        requests.ConnectionError("no route to user:s%40cret@host, s@cret"),
        OperationalError("select 1", {}, Exception("login failed: s@cret")),
        PermissionError(13, "Permission denied", "mlruns"),
    ],
)
def test_whatever_mlflow_lets_through_is_one_line_without_the_password(
    trained: Path, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise failure

    monkeypatch.setattr(MlflowClient, "search_model_versions", fail)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:s%40cret@127.0.0.1:9")
    with pytest.raises(TrackingUnavailableError, match=r"MLflow at http://127\.0\.0\.1:9 failed: ") as caught:
        register_candidate()
    assert "cret" not in str(caught.value)


def test_links_hold_no_password(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    run = SimpleNamespace(info=SimpleNamespace(experiment_id="1"))
    monkeypatch.setattr(MlflowClient, "get_run", lambda *_arguments: run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@mlflow.example.org/")
    links = tracking.links(load_params().register, tracking.Version("pets", "1", "abc", {}))
    assert links["run"] == "http://mlflow.example.org/#/experiments/1/runs/abc"


@pytest.mark.usefixtures("no_probe")
def test_uncommitted_changes_are_kept_with_the_run(trained: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    git("init")
    git("add", "params.yaml")
    git("commit", "-m", "x")
    with (trained / "params.yaml").open("a") as file:
        file.write("# a change\n")
    version = register_candidate().version
    assert len(version.tags["refit.git_commit"]) == 40
    assert version.tags["refit.git_dirty"] == "true"
    import mlflow

    assert "+# a change" in mlflow.artifacts.load_text(f"runs:/{version.run_id}/lineage/git.diff")


USER_OF_THE_MODEL = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]  # not this project
import mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/pets-candidates@candidate")
png = open(sys.argv[2], "rb").read()
from PIL import Image
pixels = np.asarray(Image.open(sys.argv[2]))
table = model.predict(pd.DataFrame({"image": [png, pixels]}))
assert table["probability"].between(0.5, 1).all()
assert table["label"][0] == table["label"][1]
assert set(table["probabilities"][0]) == {"cat", "dog"}
assert abs(sum(table["probabilities"][0].values()) - 1) < 1e-6
code = sys.modules[type(model.unwrap_python_model()).__module__].__file__
print(code, model.predict({"image": [png]})["label"][0], float(table["probability"][0]))
"""


def test_anybody_can_load_the_model_without_this_project(trained: Path, tmp_path: Path) -> None:
    from tasks.predict import Prediction, predict_files

    register_candidate()
    picture = next((trained / "data/images/cat").glob("*.png"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = elsewhere / "use.py"
    code.write_text(USER_OF_THE_MODEL)
    user = subprocess.run(
        [sys.executable, str(code), f"sqlite:///{trained}/mlflow.db", str(picture)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    assert user.returncode == 0, user.stderr
    code_file, label, probability = user.stdout.split()
    assert re.search(r"/artifacts/code/refit_[0-9a-f]{12}/model/serving\.py$", code_file)
    (here,) = (found for _, found in predict_files([picture], None) if isinstance(found, Prediction))
    assert (here.label, here.probability) == (label, pytest.approx(float(probability)))
    ((_, from_registry),) = predict_files([picture], "models:/pets-candidates@candidate")
    assert isinstance(from_registry, Prediction)
    assert from_registry.probabilities == pytest.approx(here.probabilities)


@pytest.mark.usefixtures("no_probe")
def test_files_lie_beside_the_database_not_below_the_current_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduled run works in a checkout that is gone afterwards."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/kept/mlflow.db")
    (tmp_path / "kept").mkdir()
    register_candidate()
    assert list((tmp_path / "kept" / "mlruns").rglob("model.safetensors"))
    assert not (trained / "mlruns").exists()


@pytest.mark.usefixtures("no_probe")
def test_no_pickle_is_stored(trained: Path) -> None:
    register_candidate()
    stored = [file for file in (trained / "mlruns").rglob("*") if file.is_file()]
    assert stored
    assert not [file for file in stored if file.suffix in (".pkl", ".pickle", ".pth", ".pt", ".bin")]


def test_what_the_served_model_accepts() -> None:
    assert parse(b"x") == b"x"
    assert parse("eA==") == b"x"
    assert parse("eA\n==") == b"x"
    assert isinstance(pixels := parse([[0, 255]]), np.ndarray)
    assert pixels.dtype == np.uint8
    with pytest.raises(ValueError, match="base64"):
        parse("/home/me/cat.png")


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ([[0.5, 1.0]], "whole numbers from 0 to 255, found float64"),
        ([[True]], "whole numbers from 0 to 255, found bool"),
        ([], "whole numbers from 0 to 255, found float64"),
        ([[0, 256]], "whole numbers from 0 to 255, found 0 to 256"),
        ([[-1, 3]], "whole numbers from 0 to 255, found -1 to 3"),
        ([[1, 2], [3]], "rows of equal length"),
        ({"a": 1}, "found object"),
    ],
)
def test_pixels_that_would_be_misread_are_refused(pixels: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse(pixels)


def test_a_model_that_does_not_exist_is_named(trained: Path) -> None:
    from tasks.predict import predict_files

    picture = next((trained / "data/images/cat").glob("*.png"))
    with pytest.raises(TrackingError, match="nobody"):
        list(predict_files([picture], "models:/nobody@champion"))
