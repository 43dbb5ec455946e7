"""`refit verify`: whether each release is exactly what was promoted."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import main
from refit.params import load_params
from refit.registry.verification import Found, verify
from tasks import promote

from .test_promote import candidate, passing
from .test_tracking import client

__all__ = ["passing"]

pytestmark = pytest.mark.usefixtures("no_processes")


def found() -> list[Found]:
    return verify(load_params().register)


def release_of(project: Path) -> Path:
    """The folder of the one release."""
    return next((project / "mlruns" / "pets-releases").rglob("MLmodel")).parent


def test_every_file_of_a_release_is_compared_with_what_was_promoted(passing: Path) -> None:
    assert found() == []
    promote.promote(candidate(0.7), "first")
    [whole] = found()
    folder = release_of(passing)
    assert (whole.uri, whole.faults, whole.is_covered) == ("models:/pets/1", (), True)
    assert whole.num_files == len([file for file in folder.rglob("*") if file.is_file()])
    result = CliRunner().invoke(main, ["verify"])
    assert (result.exit_code, result.stdout) == (0, f"models:/pets/1  as promoted  ({whole.num_files} files)\n")

    (folder / "code" / "evil.py").write_text("print('mine')\n")
    (folder / "MLmodel").write_text("other: bytes\n")
    (folder / "conda.yaml").unlink()
    [broken] = found()
    assert broken.faults == ("MLmodel was changed", "code/evil.py was added", "conda.yaml is gone")
    result = CliRunner().invoke(main, ["verify"])
    assert result.exit_code == 13
    assert "code/evil.py was added" in result.stdout
    assert "error: not what was promoted: models:/pets/1" in result.stderr


def test_the_list_of_files_cannot_be_rewritten_with_the_files(passing: Path) -> None:
    promote.promote(candidate(0.7), "first")
    names = release_of(passing) / "refit" / "files.json"
    names.write_text(names.read_text().replace("MLmodel", "MLmodel2"))
    assert found()[0].faults == ("refit/files.json is not what was promoted",)


def test_a_release_of_before_is_compared_with_its_evidence(passing: Path) -> None:
    promote.promote(candidate(0.7), "first")
    client().delete_model_version_tag("pets", "1", "refit.files_sha256")
    folder = release_of(passing)
    (folder / "refit" / "files.json").unlink()
    [release] = found()
    assert (release.faults, release.is_covered) == ((), False)
    assert "code not recorded" in CliRunner().invoke(main, ["verify"]).stdout
    (folder / "artifacts" / "model.safetensors").write_bytes(b"other")
    (folder / "refit" / "golden.json").write_text("{}")
    assert found()[0].faults == ("artifacts/model.safetensors was changed", "refit/golden.json was changed")


def test_a_version_that_points_elsewhere_is_named(passing: Path) -> None:
    """A copy made in MLflow's pages points to files that the pipeline's account may overwrite."""
    number = candidate(0.7)
    promote.promote(number, "first")
    client().copy_model_version(f"models:/pets-candidates/{number}", "pets")
    client().create_model_version("pets", str(release_of(passing)))
    whole, copied, foreign = found()
    assert whole.faults == ()
    assert copied.faults == ("its files lie outside of pets-releases, where others may write",)
    assert foreign.faults == ("it was not promoted by Refit",)
