"""What the commands share: the option --json, and how a document is printed."""

import json
import sys

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


def print_json(content: object) -> None:
    """One document on standard output: plain values, and records among them."""
    import msgspec

    json.dump(msgspec.to_builtins(content), sys.stdout, indent=2, ensure_ascii=False, sort_keys=True)
    sys.stdout.write("\n")
