"""The rooms, the arrows between them, and that dvc.yaml says what the code does."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from refit import paths
from refit.params import read_yaml
from refit.paths import STAGE_OUTPUTS

from .conftest import ROOT

STAGES = tuple(STAGE_OUTPUTS)
EFFECTS = ("compare", "register", "promote", "withdraw", "predict")
ROOMS = ("scoring", "modality", "data", "checkpoint", "model", "training", "gate", "registry", "reports")
"""Of refit/, from the bottom: a room uses those before it, and the ground."""
GROUND = {"errors", "params", "paths", "progress", "files", "records", "locks", "collector", "stopping"}
"""What every file may use. Not among a stage's `deps`.

`files` among it: it decides how a result is spelt (the layout of JSON, CSV and Parquet), not what it is. As a dep of
every stage it would have all made anew for a change that no reader can tell; who changes a layout runs `dvc repro -f`.
"""

CONTRACTS = {"refit.modality.contract", "refit.modality.image.settings", "refit.modality.text.settings"}
"""Shapes and settings, no code that computes: what they hold reaches a stage's result by its params."""

CARRIERS = {"tasks.fetch": {"refit.registry.versions", "refit.model.card"}}
"""Of a stage: what brings bytes that a digest names. It cannot change them, and is no dep."""

OWNERS = {
    "prefect": {
        "flows.retrain",
        "flows.finetune",
        "flows.prepare",
        "flows.promote",
        "flows.watch",
        "flows.tools.forms",
        "flows.tools.liveness",
        "flows.tools.local_server",
        "flows.tools.notifications",
        "flows.tools.policy",
        "flows.tools.rollout",
    },
    "dvc": {
        "flows.tools.objects",
        "flows.tools.pipeline",
        "flows.tools.dvc_child",
        "flows.tools.dvc_files",
        "flows.tools.state_mirror",
    },
    "mlflow": {"refit.registry", "refit.model.serving"},
    "pandera": {"tasks.validate", "refit.data.rules", "refit.data.exceptions", "refit.modality"},
    "torchvision": {"refit.modality.image"},
    "py3langid": {"refit.modality.text"},
    "transformers": {"refit.modality.text"},
    "tokenizers": {"refit.modality.text"},
    "ruamel": {"refit.params"},
    "httpx": {"refit.checkpoint.download", "flows.tools.liveness"},
    "fsspec": {"refit.checkpoint.buckets"},
    "jinja2": {"refit.reports.page"},
    "click": {"flows.cli"},
    "sklearn": {"refit.modality.image", "refit.scoring.linear"},
    "cleanlab": {"refit.data.label_errors"},
}
"""Who may import a tool: modules, or rooms with all that is in them."""


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for file in [file for storey in ("flows", "tasks", "refit") for file in ROOT.glob(f"{storey}/**/*.py")]:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(file.read_text())
    return found


@cache
def packages() -> set[str]:
    files = [file for storey in ("flows", "tasks", "refit") for file in ROOT.glob(f"{storey}/**/__init__.py")]
    return {".".join(file.relative_to(ROOT).parent.parts) for file in files}


def imports(name: str, with_types: bool = True) -> set[str]:
    """Modules that `name` imports, anywhere in its file; or not those that only a type checker sees."""
    found: set[str] = set()
    for node in _nodes(modules()[name], with_types):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(name, node)
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def _nodes(tree: ast.AST, with_types: bool) -> Iterator[ast.AST]:
    if not with_types and isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _nodes(child, with_types)


def _absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = name.split(".") if name in packages() else name.split(".")[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def our_imports(name: str, with_types: bool = True) -> set[str]:
    return {module for module in imports(name, with_types) if module in modules()} - {"tasks", "flows", "refit"}


def floor_of(name: str) -> int:
    """How high a module stands: ground 0, then the rooms of refit in their order, tasks, flows."""
    storey, *rest = name.split(".")
    if storey != "refit":
        return len(ROOMS) + (1 if storey == "tasks" else 2)
    return 0 if not rest or rest[0] in GROUND else 1 + ROOMS.index(rest[0])


def test_arrows_go_down() -> None:
    for name in modules():
        for used in our_imports(name):
            assert floor_of(used) <= floor_of(name), f"{name} imports {used}"


def test_what_is_private_stays_in_its_room() -> None:
    """A room's surface is what its `__init__` lists."""
    surfaces = {}
    for room in ROOMS:
        listed = [node for node in modules()[f"refit.{room}"].body if isinstance(node, ast.Assign)]
        surfaces[room] = set(ast.literal_eval(listed[0].value))
    for name in modules():
        for used in our_imports(name):
            _, room, *rest = [*used.split("."), ""]
            inside = name == f"refit.{room}" or name.startswith(f"refit.{room}.")
            if used.startswith("refit.") and room in ROOMS and rest[0] and not inside:
                assert rest[0] in surfaces[room], f"{name} imports {used}"


def test_stages_and_effects_never_import_each_other() -> None:
    assert {name for name in modules() if name.startswith("tasks.")} == {f"tasks.{n}" for n in (*STAGES, *EFFECTS)}
    for name in modules():
        if name.startswith("tasks"):
            assert not {used for used in our_imports(name) if used.startswith("tasks")}, name


def test_inside_refit_imports_are_relative() -> None:
    """A registered model carries rooms of it under another name."""
    for name, tree in modules().items():
        if name.startswith("refit"):
            absolute = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
            if name != "refit.registry.probe_child":  # a script, started by its path
                assert not {node.module for node in absolute if (node.module or "").startswith("refit")}, name


@pytest.mark.parametrize("library", OWNERS)
def test_each_tool_has_one_owner(library: str) -> None:
    users = {name for name in modules() if library in {module.split(".")[0] for module in imports(name)}}
    owners = OWNERS[library]
    assert {owner for owner in owners if any(f"{user}.".startswith(f"{owner}.") for user in users)} == owners
    assert all(any(f"{user}.".startswith(f"{owner}.") for owner in owners) for user in users), users


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
        if name in found or name.split(".")[1] in GROUND or name in CONTRACTS:
            continue
        found.add(name)
        used = our_imports(name, with_types=False) | looked_up(name)
        waiting += sorted(used - CARRIERS.get(name, set()))
    code = {f"{name.replace('.', '/')}.py" for name in found if name not in packages()}
    return code | {file for name in found for file in templates(name)}


def looked_up(name: str) -> set[str]:
    """Our modules that a file reaches without importing them: a modality by its name, a child process by -m."""
    text = ast.unparse(modules()[name]).replace("'", '"')
    parts = re.findall(
        r"\bmodality\.(files|rules|duplicates|preprocessing|examples|networks|weights|augmentation|sample)\(", text
    )
    named = {f"refit.modality.image.{'augment' if part == 'augmentation' else part}" for part in parts}
    return named | set(re.findall(r'"-m", "(refit\.[\w.]+)"', text))


def templates(name: str) -> set[str]:
    """The page's template that a report fills, and the frame of all pages."""
    filled = re.findall(r"get_template\('([\w.]+)'\)", ast.unparse(modules()[name]))
    return {f"refit/reports/{file}" for template in filled for file in (template, "page.html.j2")}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_which_code_a_stage_runs(stage: str) -> None:
    deps = [dep.replace("${data.modality}", "image") for dep in plain(dvc_stages()[stage]["deps"])]
    listed = {dep for dep in deps if dep.startswith(("tasks/", "refit/"))}
    assert listed == sources_of(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_which_params_a_stage_reads(stage: str) -> None:
    read: set[str] = set()
    for name in (f"tasks.{stage}",):
        text = (ROOT / f"{name.replace('.', '/')}.py").read_text()
        read |= set(re.findall(r"params\.(seed|(?:data|validate|finetune|evaluate|suspects)\.\w+)", text))
        read |= set(re.findall(r"params\.(data|validate|finetune|evaluate|suspects)[,)]", text))
        read |= set(re.findall(r"load_params\(\)\.([\w.]+)", text))
        read |= {
            f"checkpoint.{key}" for key in re.findall(r"(?<!`)\bcheckpoint\.(key|min_loaded|prefix|sha256|uri)\b", text)
        }
    listed = plain(dvc_stages()[stage].get("params", []))
    for key in read - {"data.source"}:  # that one is a dependency, by its content
        assert any(key == entry or key.startswith(f"{entry}.") for entry in listed), f"{stage} reads {key}"


def test_dvc_knows_which_files_a_stage_reads() -> None:
    written_by = {path.as_posix(): stage for stage, paths in STAGE_OUTPUTS.items() for path in paths}

    names = {name: str(value.as_posix()) for name, value in vars(paths).items() if isinstance(value, Path)}
    for stage in STAGES:
        text = (ROOT / "tasks" / f"{stage}.py").read_text()
        used = {names[name] for name in re.findall(r"\b(?:paths\.)?([A-Z][A-Z_]+)\b", text) if name in names}
        inputs = {path for path in used if written_by.get(path, stage) != stage}
        assert inputs <= set(plain(dvc_stages()[stage]["deps"])), stage


def test_no_file_has_outgrown_four_hundred_lines() -> None:
    for folder in ("flows", "tasks", "refit"):
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
