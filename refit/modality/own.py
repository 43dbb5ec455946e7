"""A network of the user's: `finetune.model: package.module:factory`. No torch; a registered model carries this.

    network = build("nets.small:build", num_outputs=3)      calls nets/small.py's build(num_outputs=3)
    digest("nets.small:build")                              what DVC and the model's card know of its source

Its source is the module's file, or all Python files of the package that it is in, below the project's folder; in a
registered model, below `own/` beside this. It is imported from there under a name made of its digest, so that an edit
is another module, and versions of it live in one process. Whatever else of the project it imports would not travel with
the model, and is refused before any of it runs.

A card from another account names only which of the files here is meant: it must have the digest in the card, and only
a function with a parameter `num_outputs` can be called.
"""

import ast
import hashlib
import importlib
import inspect
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ParamsError

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
_REFIT = ("refit", "tasks", "flows", "tests", "base", "benchmarks")
_CARRIED = Path(__file__).parents[1] / "own"


def is_own(architecture: str) -> bool:
    """Whether it names a function of the user's."""
    return _NAME.fullmatch(architecture) is not None


def sources(architecture: str) -> dict[str, bytes]:
    """The files that make a network: contents by path below the project's folder.

    Raises:
        ParamsError: there is no such module, or it could not travel with a model.
    """
    root, file = _file_of(architecture)
    is_package = len(file.parts) > 1
    files = sorted((root / file.parts[0]).rglob("*.py")) if is_package else [root / file]
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    for path, content in found.items():
        _require_self_contained(root, path, content)
    return found


def digest(architecture: str) -> str | None:
    """The SHA-256 of the source of a network; None for one that is not the user's."""
    if not is_own(architecture):
        return None
    digest = hashlib.sha256()
    for path, content in sorted(sources(architecture).items()):
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def require_digest(architecture: str, expected: str | None, where: str) -> None:
    """Refuse a model whose network is made by other source than lies here.

    Raises:
        CheckpointError: it is.
    """
    if digest(architecture) != expected:
        raise CheckpointError(
            f"{where} was made with another source of {architecture} than lies here; check out the commit that made it"
        )


def imported(architecture: str) -> set[str]:
    """The libraries that its source imports, by the first part of their names."""
    names = {name for content in sources(architecture).values() for name in _absolute_imports(ast.parse(content))}
    return names - sys.stdlib_module_names


def build(architecture: str, num_outputs: int) -> Any:
    """What the factory gives.

    Raises:
        ParamsError: there is no such module or function, or it fails; the message says where.
    """
    function = _function(architecture)
    try:
        return function(num_outputs=num_outputs)
    except Exception as error:  # the user's code may raise anything
        raise ParamsError(f"{_said(architecture)}, whose call failed{_where(error)}") from error


def _function(architecture: str) -> Callable[..., Any]:
    root, file = _file_of(architecture)
    module_name, name = architecture.split(":")
    package = f"refit_own_{(digest(architecture) or '')[:12]}"
    if package not in sys.modules:
        base = types.ModuleType(package)
        base.__path__ = [str(root)]
        sys.modules[package] = base
    try:
        module = importlib.import_module(f"{package}.{module_name}")
    except Exception as error:  # as above
        raise ParamsError(f"{_said(architecture)}, but {file} cannot be imported{_where(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise ParamsError(
            f"{_said(architecture)}, but {file} has no function {name}; it has {', '.join(functions) or 'none'}"
        )
    if "num_outputs" not in inspect.signature(function).parameters:
        raise ParamsError(f"{_said(architecture)}, but {name} in {file} has no parameter `num_outputs`")
    return function


def _file_of(architecture: str) -> tuple[Path, Path]:
    """(the folder in which to look, the module's file below it)."""
    module = architecture.partition(":")[0]
    root = _CARRIED if _CARRIED.is_dir() else Path.cwd()
    path = Path(*module.split("."))
    tried = [path.with_suffix(".py"), path / "__init__.py"]
    if path.parts[0] in _REFIT:
        raise ParamsError(f"{_said(architecture)}, but `{path.parts[0]}` is Refit's own; give the module another place")
    for file in tried:
        if (root / file).is_file():
            return root, file
    raise ParamsError(f"{_said(architecture)}, but {root} has neither {tried[0]} nor {tried[1]}")


def _require_self_contained(root: Path, path: str, content: bytes) -> None:
    try:
        tree = ast.parse(content)
    except SyntaxError as error:
        raise ParamsError(f"{path}, line {error.lineno}: {error.msg}") from None
    depth = len(Path(path).parts) - 1  # how many dots stay in its package
    if any(isinstance(node, ast.ImportFrom) and node.level > depth for node in ast.walk(tree)):
        raise ParamsError(f"{path} imports what is not in its package; a registered model would not have it")
    for name in sorted(_absolute_imports(tree)):
        if (root / name).is_dir() or (root / f"{name}.py").is_file():
            raise ParamsError(
                f"{path} imports `{name}` of this project; a registered model would not have it by that name. Put what "
                "the network needs into its package, and import it relatively (`from .blocks import Block`)"
            )


def _absolute_imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def _said(architecture: str) -> str:
    return f"`finetune.model` is {architecture}"


def _where(error: Exception) -> str:
    """What was raised, and the last line of the user's that raised it."""
    frames, line = [], error.__traceback__
    while line is not None:
        frames.append(line)
        line = line.tb_next
    ours = [frame for frame in frames if "refit_own_" in frame.tb_frame.f_globals.get("__name__", "")]
    place = f" at {Path(ours[-1].tb_frame.f_code.co_filename).name}:{ours[-1].tb_lineno}" if ours else ""
    return f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"
