"""What one account stored is data to another: no code of the pipeline's runs with a reviewer's rights or secrets."""

import os
import py_compile
from pathlib import Path

import pytest

from refit.params import load_params
from refit.registry import packaging, releases, tracking
from tasks import promote
from tasks.compare import compare
from tasks.predict import Prediction, predict_files
from tasks.register import register_candidate

from .conftest import change_params
from .test_promote import decided

SPY = "import os, pathlib\npathlib.Path({file!r}).write_text(repr(dict(os.environ)))\n"


def spied(folder: Path, file: Path) -> int:
    """Put a spy into each entry file below a folder, as whoever may write there could; how many."""
    entries = [path for path in folder.rglob("serving.py") if "code" not in path.parts]
    for entry in entries:
        entry.write_text(SPY.format(file=str(file)) + entry.read_text())
    return len(entries)


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """In the environment of whoever decides here."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "the reviewer's")
    return "the reviewer's"


def test_a_candidates_code_is_not_run_by_who_promotes_or_predicts(
    committed: Path, tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(monkeypatch, "pass")
    compare()
    number = register_candidate().version.version
    seen = tmp_path / "seen"
    assert spied(committed / "mlruns", seen) == 1
    promote.promote(number, "it looks good")
    picture = next((committed / "data/images/cat").glob("*.png"))
    ((_, found),) = predict_files([picture], "candidate")
    assert isinstance(found, Prediction)
    assert found.label in ("cat", "dog")
    promote.review(number)
    assert not seen.exists(), "neither to promote, to predict nor to review"

    champion = releases.champion(load_params().register)
    assert champion is not None
    with tracking.connected(load_params().register):
        stored = tracking.download(champion.source, tmp_path / "release")
    packaging.require_whole_code(stored, "the release")
    assert "pathlib" not in (stored / "serving.py").read_text(), "the release carries the reviewer's own code"


def test_a_champions_code_is_run_without_secrets(
    committed: Path, tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(monkeypatch, "pass")
    compare()
    promote.promote(register_candidate().version.version, "first")
    seen = tmp_path / "seen"
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-the-pipeline"))
    assert spied(committed / "mlruns/pets-releases", seen) == 1
    compare()
    assert secret not in seen.read_text()
    assert "home-of-the-pipeline" not in seen.read_text()
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == secret


@pytest.mark.usefixtures("no_processes")
def test_the_same_content_is_registered_with_a_new_champion_whatever_was_edited(
    committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code that was stored with the first registration stays; it is not compared with today's."""
    decided(monkeypatch, "pass")
    compare()
    first = register_candidate().version
    promote.promote(first.version, "first")
    original = packaging.carried_code
    monkeypatch.setattr(packaging, "carried_code", lambda name: original(name) | {"errors.py": b"# an edit\n"})
    change_params(committed / "params.yaml", {"gate.margin": 0.02})
    for code in (committed / "mlruns").rglob("code/*/errors.py"):
        py_compile.compile(str(code))  # as loading the model from here leaves it
    compare()
    again = register_candidate()
    assert (again.version.version, again.is_new) == (first.version, False)
    assert again.version.tags[tracking.EVIDENCE_TAG] != first.tags[tracking.EVIDENCE_TAG]
