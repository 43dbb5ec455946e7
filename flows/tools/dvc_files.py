"""What is wrong with a file of DVC (dvc.lock, dvc.yaml, data/photos.dvc): which, in which line, and the way out.

damage_of(error)       from what DVC raised, which says the half of it, on several lines
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError

_CONFLICT = re.compile(r"^<{7}", re.MULTILINE)


def damage_of(error: Exception) -> str | None:
    """One line for a person; None: it is no file of DVC's that is damaged."""
    from dvc.utils.serialize import EncodingError
    from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError

    if isinstance(error, YAMLSyntaxError):
        return _damaged(error.relpath, *_syntax(error))
    if isinstance(error, YAMLValidationError):
        return _damaged(error.path, *_content(error))
    if isinstance(error, EncodingError):
        return _damaged(str(error.path), None, f"it is not {error.encoding}")
    return None


def _damaged(path: str, line: int | None, what: str) -> str:
    file = path.removeprefix("./")
    way_out = f"`git checkout HEAD {file}` brings back the committed one"
    way_out += "; without it (delete it) all stages run again" if file == "dvc.lock" else ", or repair it"
    return f"{file}{f', line {line},' if line else ''} is damaged: {what}; {way_out}"


def _syntax(error: "YAMLSyntaxError") -> tuple[int | None, str]:
    if conflict := _CONFLICT.search(error.yaml_text):
        return error.yaml_text.count("\n", 0, conflict.start()) + 1, "a merge conflict was left in it"
    cause = error.exc.__cause__
    mark = getattr(cause, "problem_mark", None)
    last = len(error.yaml_text.splitlines())  # what is missing is missed one line later
    return min(mark.line + 1, last) if mark else None, f"no YAML ({getattr(cause, 'problem', None) or cause})"


def _content(error: "YAMLValidationError") -> tuple[int | None, str]:
    from dvc.utils.serialize import parse_yaml_for_update
    from dvc.utils.strictyaml import determine_linecol

    first = error.exc.errors[0]
    line, _, _ = determine_linecol(parse_yaml_for_update(error.text, error.path), first.path)
    return line, f"{first.error_message}{' at ' if first.path else ''}{'.'.join(map(str, first.path))}"
