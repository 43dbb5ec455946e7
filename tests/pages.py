"""The commands that a page tells its reader to type, in order, so that tests can type them."""

import re

from .conftest import ROOT


def commands(page: str, heading: str = "") -> list[str]:
    """The commands of a page's console blocks, without their comments; those of one section, if it is named."""
    text = (ROOT / page).read_text()
    if heading:
        (text,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines), "no output is shown, or it would be taken for a command"
    return [re.split(r"\s+#\s", line.removeprefix("$ "))[0] for line in lines]


def command(page: str, part: str) -> str:
    """The one command of a page that has this in it."""
    (found,) = [line for line in commands(page) if part in line]
    return found


def filled(line: str, values: dict[str, str]) -> str:
    """A command with what the reader has to put in.

    Args:
        values: from what the page says (`<server>`, `s3://bucket/photos`) to what it is here.
    """
    for said, here in values.items():
        line = line.replace(said, here)
    assert not re.search(r"<[^>|]*>|…", line), f"nothing is known to put into {line}"
    return line
