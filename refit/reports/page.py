"""What all pages share: their frame, and tables in Markdown."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """Jinja with the frame of all pages, `page.html.j2`."""
    made = Environment(
        loader=PackageLoader("refit", "reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.filters["percent"] = lambda share: f"{share:.1%}"
    return made


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells]
