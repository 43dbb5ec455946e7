"""Paths on the command line: they count from where the user is, not from the project, whose folder `refit` goes to.

@click.argument("files", type=FromStart())
"""

from pathlib import Path
from typing import Any

import click

STARTED_IN = Path.cwd()


def from_start(path: Path) -> Path:
    """A path as the user means it. `-` stays what it is."""
    return path if str(path) == "-" else STARTED_IN / path


class FromStart(click.Path):
    """click's type for a path, looked for where the user is."""

    def __init__(self, **checks: Any) -> None:
        super().__init__(path_type=Path, **checks)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does."""
        return super().convert(from_start(Path(value)), param, ctx)
