"""A version that was registered before refit/ was a package: what it is worth today.

`fixtures/registry-af2159f.tar.xz` is the local registry that `refit retrain` left in a clean checkout of commit
af2159f, in another folder: its card is of format 1, and its stored code is that commit's whole package `tasks`.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from .conftest import ROOT
from .services import clone, environment, origin, refit

__all__ = ["origin"]  # a fixture

COMMIT = "af2159f14f93dc599506f099d1080ab5669e0ef7"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its address; the folder is not the one that it was made in."""
    folder = tmp_path_factory.mktemp("registry")
    with tarfile.open(ROOT / "tests/fixtures/registry-af2159f.tar.xz") as packed:
        # Python 3.11.0 to 3.11.3 have no filters.
        packed.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # type: ignore[arg-type]
    return f"sqlite:///{folder}/mlflow.db"


def test_it_is_made_again_bit_for_bit_or_it_is_said_what_prevents_it(registry: str, tmp_path: Path) -> None:
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{COMMIT}^{{commit}}"], cwd=ROOT, capture_output=True, check=False
    )
    if known.returncode != 0:
        pytest.skip(f"this clone has no history back to {COMMIT[:7]}")
    env = environment(tmp_path, MLFLOW_TRACKING_URI=registry)
    project = clone(ROOT, tmp_path / "project")
    done = subprocess.run(
        [sys.executable, "-m", "flows", "reproduce", "1", "--json"],
        cwd=project, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["commit"] == COMMIT
    if found["environment"]:  # of another class than the one that the fixture was made in
        assert all(f"environment: {name} was" in done.stderr for name in found["environment"])
        assert found["outcome"] in ("identical", "equivalent")
    else:
        assert found["outcome"] == "identical", done.stdout
        assert done.returncode == 0


def test_it_can_be_promoted_as_data_and_serves_with_the_code_of_today(
    registry: str, origin: Path, tmp_path: Path
) -> None:
    project = clone(origin, tmp_path / "project")
    env = environment(tmp_path, MLFLOW_TRACKING_URI=registry)
    digest = json.loads(refit("review", "1", "--json", cwd=project, env=env))["digest"]
    said = refit("promote", "1", "--reason", "it is good", "--evidence", digest, cwd=project, env=env)
    assert "models:/digits/1 is the champion" in said
    assert "0 added, 0 removed" in refit("diff", "1", "1", cwd=project, env=env)
    (project / "digit.png").write_bytes((ROOT / "tests/fixtures/digit.png").read_bytes())
    assert refit("predict", "digit.png", "--model", "models:/digits@champion", cwd=project, env=env).split()[1] == "7"
    released = Path(registry.removeprefix("sqlite:///")).parent / "mlruns/digits-releases"
    [code] = [path for path in released.rglob("code/*") if path.is_dir()]
    assert code.name.startswith("refit_"), "the package `tasks` of the pipeline's account was left behind"
