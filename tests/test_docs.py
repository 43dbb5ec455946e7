"""The pages name what there is: the trees, links, paths and keys of params.yaml."""

import re
from pathlib import Path

import pytest

from refit.params import read_yaml

from .conftest import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")))
STOREYS = ("flows", "tasks", "refit")
TREES = {"README.md": "Where things are", "CONTRIBUTING.md": "The map"}
"""The headings of the two trees: a short one for users, and one of every module."""

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
PATH = re.compile(r"(?<![\w/.])(?:refit|tasks|flows|docs|tests)/[\w./-]*")
KEY = re.compile(r"`([a-z_]+(?:\.\w+)+)(?:\.\*)?(?:: [^`]*)?`")
"""A dotted name in backticks, alone, with a value (`flow.ingest_runner: dask`) or for all below it (`image.*`)."""


IN_A_RELEASE = {"refit/evidence.json", "refit/model.sig"}
"""Files of a registered model, not of this repository."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def without_blocks(text: str) -> str:
    """Blocks of code would upset the pairs of backticks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def tree_lines(page: str) -> list[str]:
    section = text_of(page).split(f"\n## {TREES[page]}\n", 1)[1]
    return [line for line in section.split("```")[1].splitlines() if line.strip()]


def tree(lines: list[str]) -> list[str]:
    """The paths that a tree names. A folder's lines are indented: a file or folder each, or names of modules."""
    found: list[str] = []
    above: list[tuple[int, str]] = []  # the folders that a line is in, with their indents
    for line in lines:
        indent = len(line) - len(line.lstrip())
        while above and above[-1][0] >= indent:
            above.pop()
        inside = above[-1][1] if above else ""
        names = re.split(r"  +", line.strip())[0].replace(",", " ").split()
        is_list = indent > 0 and not names[0].endswith(("/", ".py"))
        found += [f"{inside}{name}{'.py' if is_list else ''}" for name in names]
        if names[-1].endswith("/"):
            above.append((indent, f"{inside}{names[-1]}"))
    return found


def test_a_tree_is_read_as_people_read_it() -> None:
    lines = [
        "a.toml, b.lock  both",
        "flows/  decides",
        "    run.py   it",
        "    cli/  words",
        "        one, two",
        "docs/",
    ]
    cli = ["flows/cli/", "flows/cli/one.py", "flows/cli/two.py"]
    expected = ["a.toml", "b.lock", "flows/", "flows/run.py", *cli, "docs/"]
    assert tree(lines) == expected


def test_the_map_names_every_module_and_none_that_does_not_exist() -> None:
    there = {
        f"{path.relative_to(ROOT).as_posix()}{'/' if path.is_dir() else ''}"
        for storey in STOREYS
        for path in [ROOT / storey, *(ROOT / storey).rglob("*")]
        if (path.is_dir() and (path / "__init__.py").exists()) or (path.suffix == ".py" and path.stem != "__init__")
    }
    assert sorted(tree(tree_lines("CONTRIBUTING.md"))) == sorted(there)


def test_the_readmes_tree_is_short_and_names_every_room() -> None:
    named = tree(tree_lines("README.md"))
    assert [name for name in named if not (ROOT / name).exists()] == []
    rooms = {file.parent.relative_to(ROOT).as_posix() for file in ROOT.glob("refit/*/__init__.py")}
    assert {f"{room}/" for room in (*STOREYS, *rooms)} <= set(named)
    assert len(tree_lines("README.md")) <= 30


@pytest.mark.parametrize("page", TREES)
def test_a_tree_is_annotated_and_fits_a_window(page: str) -> None:
    for line in tree_lines(page):
        is_list = line.startswith(" ") and re.fullmatch(r"[\w, ]+", line)
        assert is_list or re.search(r"\S {2,}\S", line), f"nothing is said of {line.strip()}"
        assert len(line) <= 120, line


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for name, heading in LINK.findall(text_of(page)):
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page} links to {name}"
        if heading:
            assert heading in anchors(target), f"{page} links to {name}#{heading}"


def anchors(file: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(file.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_the_paths_that_a_page_names_exist(page: str) -> None:
    named = {name.rstrip("./") for name in PATH.findall(text_of(page))} - IN_A_RELEASE
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_the_keys_that_a_page_names_are_in_params_yaml(page: str) -> None:
    params = read_yaml(ROOT / "params.yaml")
    named = {name for name in KEY.findall(without_blocks(text_of(page))) if not name.endswith((".py", ".md"))}
    assert {name for name in named if name.split(".")[0] in params and not holds(params, name)} == set()


def holds(values: object, dotted: str) -> bool:
    for key in dotted.split("."):
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True
