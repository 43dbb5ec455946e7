"""`refit verify`: whether each release is exactly what was promoted."""

import importlib.util
import json
import os
import py_compile
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import main
from refit.errors import EvidenceError, ParamsError
from refit.params import load_params
from refit.registry import signing
from refit.registry.verification import Found, verify
from tasks import promote

from .pages import commands, filled
from .services import run
from .test_promote import candidate, passing
from .test_tracking import client

__all__ = ["passing"]

pytestmark = pytest.mark.usefixtures("no_processes")


def found() -> list[Found]:
    return verify(load_params().register)


def release_of(project: Path) -> Path:
    """The folder of the one release."""
    return next((project / "mlruns" / "pets-releases").rglob("MLmodel")).parent


TAMPERINGS: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("nothing", lambda release: None, ()),
    ("a file is added", lambda release: (release / "code/evil.py").write_text("x"), ("code/evil.py was added",)),
    ("a file is changed", lambda release: (release / "MLmodel").write_text("x"), ("MLmodel was changed",)),
    (
        "byte code is added, which Python would run",
        lambda release: py_compile.compile(
            str(release / "serving.py"), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        ),
        (
            "byte code was added, which Python runs in place of the code (1 files: "
            f"{Path(importlib.util.cache_from_source('serving.py')).as_posix()}…); if loading the model from here left "
            "it, delete each __pycache__ and load with PYTHONDONTWRITEBYTECODE=1",
        ),
    ),
    ("a file is gone", lambda release: (release / "conda.yaml").unlink(), ("conda.yaml is gone",)),
    (
        "the list is rewritten with the files",
        lambda release: (release / "refit/files.json").write_text("{}"),
        ("refit/files.json is not what was promoted",),
    ),
]


def test_every_file_of_a_release_is_compared_with_what_was_promoted(passing: Path, tmp_path: Path) -> None:
    assert found() == []
    promote.promote(candidate(0.7), "first")
    folder, backup = release_of(passing), tmp_path / "backup"
    shutil.copytree(folder, backup)
    for what, tamper, faults in TAMPERINGS:
        tamper(folder)
        [release] = found()
        assert (release.uri, release.faults, release.is_covered) == ("models:/pets/1", faults, True), what
        result = CliRunner().invoke(main, ["verify"])
        if faults:
            assert (result.exit_code, faults[0] in result.stdout) == (13, True), what
            assert "error: not what was promoted: models:/pets/1" in result.stderr, what
        else:
            num_files = len([file for file in folder.rglob("*") if file.is_file()])
            assert (result.exit_code, result.stdout) == (0, f"models:/pets/1  as promoted  ({num_files} files)\n")
        shutil.rmtree(folder)
        shutil.copytree(backup, folder)

    # A release of before there was a list of files: by its evidence.
    client().delete_model_version_tag("pets", "1", "refit.files_sha256")
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


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Private and public key, as the page makes them."""
    for line in commands("docs/serving.md"):
        if line.startswith("openssl"):
            run("bash", "-c", line.replace("release-key", f"{folder}/{name}"), cwd=folder, env=dict(os.environ))
    return folder / f"{name}.pem", folder / f"{name}.pub"


def test_a_signed_release_is_known_by_its_key_here_and_outside(
    passing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = key_pair(tmp_path, "ours")
    monkeypatch.setenv("REFIT_SIGNING_KEY", str(private))
    promote.promote(candidate(0.7), "first")
    monkeypatch.delenv("REFIT_SIGNING_KEY")
    [release] = verify(load_params().register, public)
    assert release.faults == ()
    result = CliRunner().invoke(main, ["verify", "--key", str(public)])
    assert (result.exit_code, "as promoted, signed" in result.stdout) == (0, True), result.output

    downloaded = tmp_path / "outside" / "model"
    shutil.copytree(release_of(passing), downloaded)
    signed = signing.check(downloaded, public)
    assert signed["lineage"]["weights_sha256"] == promote.released("1").bundle.lineage.weights_sha256
    outside = [line for line in commands("docs/serving.md") if line.startswith("model_signing")]
    (line,) = [filled(line, {"release-key.pub": str(public)}) for line in outside]
    assert "Verification succeeded" in run("bash", "-c", line, cwd=downloaded.parent, env=dict(os.environ))

    _, others = key_pair(tmp_path, "theirs")
    assert "its signature does not hold" in verify(load_params().register, others)[0].faults[0]
    (downloaded / "code" / "evil.py").write_text("print('mine')\n")
    result = CliRunner().invoke(main, ["verify", str(downloaded), "--key", str(public)])
    assert result.exit_code == 13
    assert "code/evil.py" in result.stdout
    (downloaded / "refit" / "model.sig").write_text("{}")
    with pytest.raises(EvidenceError, match="its signature does not hold"):
        signing.check(downloaded, public)


def test_what_is_not_signed_is_said_and_so_is_a_key_that_is_none(
    passing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, public = key_pair(tmp_path, "ours")
    number = candidate(0.7)
    (tmp_path / "no.pem").write_text("no key")
    monkeypatch.setenv("REFIT_SIGNING_KEY", str(tmp_path / "no.pem"))
    with pytest.raises(ParamsError, match="is no private key of an elliptic curve"):
        promote.promote(number, "first")
    monkeypatch.setenv("REFIT_SIGNING_KEY", str(tmp_path / "gone.pem"))
    with pytest.raises(ParamsError, match=r"REFIT_SIGNING_KEY names .* which is no file"):
        promote.promote(number, "first")
    monkeypatch.delenv("REFIT_SIGNING_KEY")
    promote.promote(number, "first")
    assert verify(load_params().register, public)[0].faults == ("it is not signed",)


def test_a_release_describes_itself_in_the_two_ways_that_others_read(passing: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from huggingface_hub import ModelCard

    promote.promote(candidate(0.7), "first")
    bundle, folder = promote.released("1").bundle, release_of(passing)
    bill = (folder / "bom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    component = json.loads(bill)["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": bundle.lineage.weights_sha256}]
    measures = {entry["type"]: entry for entry in component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert measures["accuracy"]["value"] == repr(bundle.metrics["accuracy"].value)
    names = {entry["name"] for entry in json.loads(bill)["components"]}
    assert {"torch", "mlflow", "training data"} <= names

    card = ModelCard.load(folder / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-classification", "mlflow")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["accuracy"] == bundle.metrics["accuracy"].value
    assert bundle.lineage.weights_sha256 in card.content
