"""params.yaml changed as a person would: the values of some keys, where they stand, and not a sign besides.

    use("text")      what the modality's sample.yaml says goes into params.yaml

Lines are edited, since a library that writes YAML would move comments.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import ParamsError
from ..files import publish_text
from ..paths import PARAMS

_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<space> ?)(?P<value>.*?)(?P<comment>\s+#.*)?")


def use(modality: str, path: Path = PARAMS) -> tuple[str, ...]:
    """Set the keys that the built-in examples of a modality need; gives the keys that changed.

    Raises:
        ParamsError: there are no such examples, params.yaml lacks one of the keys, or together with what else it says
            they make no sense; it is left as it was.
    """
    from . import load_params, modalities

    said = {name: file for name in modalities() if (file := _sample_of(name)).is_file()}
    if modality not in said:
        raise ParamsError(f"there are no built-in examples for {modality!r}; there are some for: {', '.join(said)}")
    before = path.read_text(encoding="utf-8")
    wanted = {key: value for _, key, value in _values(said[modality].read_text(encoding="utf-8").splitlines())}
    after, changed = _with(before, wanted, path)
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder, path.name)
        tried.write_text(after, encoding="utf-8")
        try:
            load_params(tried)
        except ParamsError as error:
            raise ParamsError(str(error).replace(str(tried), str(path))) from None
    publish_text(path, after)
    return changed


def _sample_of(modality: str) -> Path:
    return Path(__file__).parents[1] / "modality" / modality / "sample.yaml"


def _with(text: str, wanted: Mapping[str, str], path: Path) -> tuple[str, tuple[str, ...]]:
    lines = text.splitlines()
    found = {key: (row, value) for row, key, value in _values(lines)}
    if missing := [key for key in wanted if key not in found]:
        raise ParamsError(f"{path} has no line of its own for `{'`, `'.join(missing)}`")
    changed = tuple(key for key, value in wanted.items() if found[key][1] != value)
    for key in changed:
        row, _ = found[key]
        match = _LINE.fullmatch(lines[row])
        assert match is not None, "`_values` has read it"
        lines[row] = f"{match['indent']}{match['key']}: {wanted[key]}{match['comment'] or ''}"
    return "\n".join(lines) + "\n", changed


def _values(lines: list[str]) -> Iterator[tuple[int, str, str]]:
    """(row, dotted key, value as it is spelt) of each line that has one."""
    above: list[tuple[int, str]] = []
    for row, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        indent = len(match["indent"])
        above = [*(each for each in above if each[0] < indent), (indent, match["key"])]
        if match["value"]:
            yield row, ".".join(key for _, key in above), match["value"]
