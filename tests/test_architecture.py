"""The rooms, the arrows between them, and that dvc.yaml says what the code does."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tasks.params import read_yaml
from tasks.paths import STAGE_OUTPUTS

from .conftest import ROOT

STAGES = tuple(STAGE_OUTPUTS)
EFFECTS = ("compare", "register", "promote", "predict")
GROUND = {"errors", "params", "paths", "progress", "publish"}
"""What every file may use. Not among a stage's `deps`.

`publish` among it: it decides how a result is spelt (the layout of JSON, CSV and Parquet), not what it is. As a dep of
every stage it would have all made anew for a change that no reader can tell; who changes a layout runs `dvc repro -f`.
"""

OWNERS = {
    "prefect": {
        "flows.retrain",
        "flows.finetune",
        "flows.liveness",
        "flows.local_server",
        "flows.notifications",
        "flows.policy",
        "flows.prepare",
        "flows.promote",
    },
    "dvc": {"flows.pipeline", "flows.dvc_child"},
    "mlflow": {
        "tasks.tracking",
        "tasks.dataset",
        "tasks.experiments",
        "tasks.serving",
        "tasks.probe_child",
        "tasks.releases",
        "tasks.access",
    },
    "pandera": {"tasks.validate"},
    "torchvision": {"tasks.modality.image", "tasks.reproducibility"},
    "ruamel": {"tasks.params"},
    "httpx": {"tasks.download", "flows.liveness"},
    "jinja2": {"tasks.reports"},
    "click": {"flows.cli", "flows.decide", "flows.printing"},
    "sklearn": {"tasks.sample"},
}


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for file in [*ROOT.glob("flows/**/*.py"), *ROOT.glob("tasks/**/*.py")]:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(file.read_text())
    return found


def imports(name: str, everywhere: bool = True) -> set[str]:
    """Modules that `name` imports: anywhere in the file, or only when it is itself imported."""
    tree = modules()[name]
    found: set[str] = set()
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def our_imports(name: str) -> set[str]:
    return {module for module in imports(name) if module in modules()} - {"tasks", "flows"}


def test_tasks_know_nothing_of_flows() -> None:
    for name in modules():
        if name.startswith("tasks"):
            assert not {module for module in imports(name) if module.split(".")[0] == "flows"}, name


def test_a_stage_never_imports_another_stage() -> None:
    stages = {f"tasks.{stage}" for stage in (*STAGES, *EFFECTS)}
    for name in modules():
        if name.startswith("tasks"):
            assert not our_imports(name) & stages, name


def test_the_ground_stands_on_nothing() -> None:
    for name in GROUND:
        allowed = {f"tasks.{ground}" for ground in GROUND} | {"tasks.modality.architectures", "tasks.modality"}
        assert our_imports(f"tasks.{name}") <= allowed, name


@pytest.mark.parametrize("library", OWNERS)
def test_each_tool_has_one_owner(library: str) -> None:
    users = {name for name in modules() if library in {module.split(".")[0] for module in imports(name)}}
    assert users == OWNERS[library]


def test_flows_never_import_torch_when_they_are_imported() -> None:
    for name in modules():
        if name.startswith("flows"):
            assert "torch" not in {module.split(".")[0] for module in imports(name)}, name


@pytest.mark.parametrize(
    "module", ["tasks.sample", "tasks.ingest", "tasks.validate", "tasks.fetch", "tasks.compare", "tasks.register"]
)
def test_it_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules, 'mlflow' in sys.modules, 'prefect' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False", "False"]


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys\nfrom flows.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'mlflow', 'prefect', 'dvc', 'pandas', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


def dvc_stages() -> dict[str, dict[str, list[object]]]:
    return read_yaml(ROOT / "dvc.yaml")["stages"]


def plain(entries: list[object]) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else str(entry) for entry in entries]


def test_dvc_runs_the_stages_of_the_code() -> None:
    assert tuple(dvc_stages()) == STAGES
    for name, stage in dvc_stages().items():
        assert stage["cmd"] == f"python -m tasks.{name}"


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_what_a_stage_writes(stage: str) -> None:
    entry = dvc_stages()[stage]
    outputs = {*plain(entry["outs"]), *plain(entry.get("metrics", []))}
    assert outputs == {path.as_posix() for path in STAGE_OUTPUTS[stage]}


def sources_of(stage: str) -> set[str]:
    """Every file of ours whose code can change what the stage makes."""
    found: set[str] = set()
    waiting = [f"tasks.{stage}"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += sorted(our_imports(name) | looked_up(name))
    ground = {f"tasks.{name}" for name in GROUND} | {"tasks.modality.architectures", "tasks.modality"}
    return found - ground


def looked_up(name: str) -> set[str]:
    """Our modules that a file reaches without importing them: a modality by its name, a child process by -m."""
    text = ast.unparse(modules()[name]).replace("'", '"')
    halves = {"files": "tasks.modality.image_file", "networks": "tasks.modality.image"}
    return {halves[half] for half in re.findall(r"\bmodality\.(files|networks)\(", text)} | set(
        re.findall(r'"-m", "(tasks\.\w+)"', text)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_which_code_a_stage_runs(stage: str) -> None:
    needed = {
        "tasks/reports" if name == "tasks.reports" else f"{name.replace('.', '/')}.py" for name in sources_of(stage)
    }
    listed = {dep for dep in plain(dvc_stages()[stage]["deps"]) if dep.startswith("tasks/")}
    assert listed == needed


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_which_params_a_stage_reads(stage: str) -> None:
    read: set[str] = set()
    for name in (f"tasks.{stage}",):
        text = (ROOT / f"{name.replace('.', '/')}.py").read_text()
        read |= set(re.findall(r"params\.(seed|(?:data|validate|finetune|evaluate)\.\w+)", text))
        read |= set(re.findall(r"params\.(data|validate|finetune|evaluate)[,)]", text))
        read |= set(re.findall(r"load_params\(\)\.(\w+)", text))
    listed = plain(dvc_stages()[stage].get("params", []))
    for key in read - {"data.source"}:  # that one is a dependency, by its content
        assert any(key == entry or key.startswith(f"{entry}.") for entry in listed), f"{stage} reads {key}"


def test_dvc_knows_which_files_a_stage_reads() -> None:
    written_by = {path.as_posix(): stage for stage, paths in STAGE_OUTPUTS.items() for path in paths}
    import tasks.paths

    names = {name: str(value.as_posix()) for name, value in vars(tasks.paths).items() if isinstance(value, Path)}
    for stage in STAGES:
        text = (ROOT / "tasks" / f"{stage}.py").read_text()
        used = {names[name] for name in re.findall(r"\b(?:paths\.)?([A-Z][A-Z_]+)\b", text) if name in names}
        inputs = {path for path in used if written_by.get(path, stage) != stage}
        assert inputs <= set(plain(dvc_stages()[stage]["deps"])), stage


def test_no_file_has_outgrown_four_hundred_lines() -> None:
    for folder in ("flows", "tasks"):
        for file in (ROOT / folder).glob("**/*.py"):
            assert len(file.read_text().splitlines()) <= 400, file


def test_nothing_names_this_machine_or_a_package_index() -> None:
    shown = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in shown.stdout.split("\0"):
        file = ROOT / name
        if file.suffix in (".py", ".md", ".yaml", ".lock", ".toml", ".yml", "") and file.is_file():
            text = file.read_text(errors="replace")
            assert (
                not re.search(r"--(extra-)?index-url|--find-links|(?<![\w.])/root/|/tmp/w/", text)
                or "test_arch" in name
            ), name
