"""The built-in texts: what seven libraries, with which Refit is installed, say of their functions and classes.

Their docstrings are read as they lie on the disk; nothing is imported. The label is the library. Parameters, examples
and markup are left out, and so is every text that names one of the libraries: what is left is English prose, from which
the library has to be guessed. Texts of one file stay on one side. Installed versions decide the set, and nothing else.
"""

import hashlib
import re
from collections.abc import Iterator
from importlib.metadata import files, version
from pathlib import Path

import pandas as pd

from ...files import publish_table

LIBRARIES = {
    "matplotlib": "matplotlib",
    "mlflow": "mlflow",
    "pandas": "pandas",
    "prefect": "prefect",
    "scikit-learn": "sklearn",
    "sqlalchemy": "sqlalchemy",
    "sympy": "sympy",
}
"""Packages, whose names are the labels, and the folder in which each is. Refit needs them all, directly or not."""

PER_LIBRARY = 400

_FEWEST_WORDS, _MOST_WORDS = 8, 60
_DOCSTRING = re.compile(r':[ \t]*\n[ \t]+[rR]?"""(.*?)"""', re.DOTALL)
_BEHIND_PROSE = re.compile(
    r"^\s*(?:>>>|\.\. |:(?:param|type|returns?|rtype|raises)\b|[-=~]{3,}|\w[\w ]*\n\s*[-=~]{3,}"
    r"|(?:Args|Arguments|Attributes|Examples?|Notes?|Parameters|Raises|References|Returns?|See also|Yields)\b:?\s*$)",
    re.MULTILINE | re.IGNORECASE,
)
_ROLE = re.compile(r":[\w:+-]+:`[~.!]*([^`<]*?)\s*(?:<[^`]*)?`")
_NAMES = re.compile("|".join((*LIBRARIES.values(), "scikit", "alchemy")), re.IGNORECASE)


def decided_by() -> dict[str, str]:
    """What decides the set, beside this file: the versions of the libraries."""
    return {name: version(name) for name in LIBRARIES}


def write(folder: Path) -> str:
    """Write the set to an empty folder; gives what it is, in words."""
    rows = [(text, label, file) for label in LIBRARIES for text, file in _chosen(label)]
    found = pd.DataFrame(rows, columns=["text", "label", "group"])
    is_known = found["text"].duplicated(keep=False)  # two libraries say it
    publish_table(folder / "labels.csv", found[~is_known])
    return f"{(~is_known).sum():,} texts of {len(LIBRARIES)} libraries"


def prose(package: str, folder: str) -> Iterator[tuple[str, str]]:
    """(text, file) of each docstring of a package, in the order of its files; tests and what it carries along aside."""
    for path in sorted(files(package) or (), key=str):
        strange = {"tests", "test", "testing", "externals", "thirdparty"} & set(path.parts) or "_vendor" in str(path)
        if path.suffix != ".py" or path.parts[0] != folder or strange:
            continue
        for docstring in docstrings_in(Path(str(path.locate()))):
            if text := prose_of(docstring):
                yield text, str(path)


def docstrings_in(file: Path) -> list[str]:
    """Of the functions and classes in a file of Python."""
    return _DOCSTRING.findall(file.read_text(encoding="utf-8", errors="replace"))


def prose_of(docstring: str) -> str:
    """What stands before parameters and examples, in one line."""
    return without_markup(_BEHIND_PROSE.split(docstring, maxsplit=1)[0])


def without_markup(text: str) -> str:
    """The same in one line, without Sphinx's roles and signs."""
    return " ".join(_ROLE.sub(r"\1", text).replace("`", "").replace("*", "").split())


def _chosen(package: str) -> list[tuple[str, str]]:
    """Some of a package's texts; which, their content alone decides."""
    fit = {
        text: file
        for text, file in prose(package, LIBRARIES[package])
        if _FEWEST_WORDS <= len(text.split()) <= _MOST_WORDS and not _NAMES.search(text)
    }
    return sorted(fit.items(), key=lambda each: hashlib.sha256(each[0].encode()).digest())[:PER_LIBRARY]
