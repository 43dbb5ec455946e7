"""What a registered model carries: its own code under its own name, and nothing that it does not need."""

import ast
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refit.errors import EvidenceError
from refit.gate import evidence
from refit.model.card import read_card
from refit.registry import packaging

from .conftest import ROOT

PACKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mlflow
from refit.registry.packaging import packed
with packed(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]).read_bytes()) as arguments:
    mlflow.pyfunc.save_model(sys.argv[5], **arguments)
"""

USER = """
import sys
import mlflow
sys.path.insert(0, sys.argv[1])
import tasks, refit  # the user's own modules of these names
first, second = (mlflow.pyfunc.load_model(folder) for folder in sys.argv[2:4])
picture = open(sys.argv[4], "rb").read()
said = [model.predict({"image": [picture]}) for model in (first, second)]
packages = {type(model.unwrap_python_model()).__module__.split(".")[0] for model in (first, second)}
print(len(packages), tasks.OWNER, refit.OWNER, *(table["probability"][0] for table in said))
"""


@pytest.fixture(scope="module")
def two_models(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The same weights packed by this code, and by code in which a picture's left and right are exchanged."""
    home = tmp_path_factory.mktemp("packed")
    other = home / "other"
    other.mkdir(exist_ok=True)
    subprocess.run(["cp", "-r", str(ROOT / "refit"), str(other)], check=True)
    examples = other / "refit/modality/image/examples.py"
    before = "return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))"
    assert before in examples.read_text()
    examples.write_text(examples.read_text().replace(before, before.replace("square)", "square)[:, ::-1]")))
    picture = next((finished / "data/images/cat").glob("*.png"))
    for code, name in ((ROOT, "first"), (other, "second")):
        files = [finished / "models/model.safetensors", finished / "models/model.json", picture, home / name]
        command = [sys.executable, "-c", PACKER, str(code), *map(str, files)]
        subprocess.run(command, check=True, cwd=home, capture_output=True)
    return home / "first", home / "second", picture


def test_two_versions_and_a_users_own_modules_live_in_one_process(
    two_models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    first, second, picture = two_models
    for name in ("tasks", "refit"):
        (tmp_path / f"{name}.py").write_text("OWNER = 'user'\n")
    command = [sys.executable, "-B", "-c", USER, *map(str, (tmp_path, first, second, picture))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    num_packages, tasks, refit, probability, mirrored = done.stdout.split()
    assert (num_packages, tasks, refit) == ("2", "user", "user")
    assert probability != mirrored, "each is read by its own code"


def test_the_code_that_is_carried_is_whole_and_no_more(two_models: tuple[Path, Path, Path]) -> None:
    """Every module that it imports is there; what params, access and training need is not."""
    first, _, _ = two_models
    [package] = (first / "code").iterdir()
    carried = {path.relative_to(package).with_suffix("") for path in package.rglob("*.py")}
    assert not {"params", "registry", "training", "gate", "reports", "data", "checkpoint"} & {
        p.parts[0] for p in carried
    }
    for path in package.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:  # what is imported when it is imported
            if isinstance(node, ast.ImportFrom) and node.level:
                base = path.relative_to(package).parts[: -node.level]
                target = Path(*base, *(node.module or "").split("."))
                assert target in carried or target / "__init__" in carried, f"{path.name} imports {target}"
    requirements = (first / "requirements.txt").read_text()
    assert "pydantic" not in requirements
    assert not list(first.rglob("__pycache__"))


def test_the_packages_name_stands_for_its_code(two_models: tuple[Path, Path, Path], finished: Path) -> None:
    first, second, _ = two_models
    packaging.require_whole_code(first, "x")
    assert {p.name for p in (first / "code").iterdir()} != {p.name for p in (second / "code").iterdir()}
    code = packaging.carried_code(read_card(finished / "models/model.json").modality)
    assert (first / "code" / packaging.package_name(code)).is_dir()
    assert packaging.package_name(code | {"errors.py": b""}) != packaging.package_name(code)


def test_byte_code_beside_the_code_is_code(two_models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Python runs it in place of the code."""
    copied = shutil.copytree(two_models[0], tmp_path / "copy")
    py_compile.compile(str(next((copied / "code").rglob("serving.py"))))
    with pytest.raises(EvidenceError, match="carries code that was changed after it was packed"):
        packaging.require_whole_code(copied, "x")
    evidence.strip(copied)
    packaging.require_whole_code(copied, "x")
