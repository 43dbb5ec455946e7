"""What `refit predict` prints: a line as soon as a file is labelled, a table, or one JSON document."""

import csv
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import click

from flows.cli.printing import print_json
from refit.errors import DataError
from tasks.predict import Failure, Prediction, examples_in, predict_files


def show(chosen: Sequence[Path], uri: str | None, has_all: bool, form: Literal["text", "csv", "json"]) -> None:
    """Label and print.

    Args:
        chosen: files, folders, and `-` for an example on standard input.
        has_all: print the probability of every class.

    Raises:
        DataError: a file could not be labelled; all others are printed.
    """
    with tempfile.TemporaryDirectory(prefix="refit-input-") as folder:
        given = Path(folder, "standard input")
        if Path("-") in chosen:
            given.write_bytes(sys.stdin.buffer.read())
        files = [file for path in chosen for file in ([given] if str(path) == "-" else examples_in(path))]
        results = ((Path("-") if file == given else file, result) for file, result in predict_files(files, uri))
        num_failed = {"text": _lines, "csv": _table, "json": _document}[form](results, has_all)
    if num_failed:
        raise DataError(f"{num_failed:,} of {len(files):,} files could not be labelled")


_Results = Iterator[tuple[Path, Prediction | Failure]]


def _lines(results: _Results, has_all: bool) -> int:
    def line(file: Path, found: Prediction) -> None:
        rest = [f"{name}={share:.4f}" for name, share in found.probabilities.items()] if has_all else []
        click.echo("\t".join([str(file), found.label, f"{found.probability:.4f}", *rest]))

    return _each(results, line)


def _table(results: _Results, has_all: bool) -> int:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    head: list[str] = []

    def row(file: Path, found: Prediction) -> None:
        shares = found.probabilities if has_all else {}
        if not head:
            head.extend(["file", "label", "probability", *shares])
            writer.writerow(head)
        writer.writerow([file, found.label, f"{found.probability:.6f}", *(f"{share:.6f}" for share in shares.values())])

    return _each(results, row)


def _document(results: _Results, has_all: bool) -> int:
    found: list[dict[str, object]] = []

    def entry(file: Path, one: Prediction) -> None:
        shares = {"probabilities": one.probabilities} if has_all else {}
        found.append({"file": str(file), "label": one.label, "probability": one.probability, **shares})

    num_failed = _each(results, entry, lambda file, failure: found.append({"file": str(file), "error": failure.reason}))
    print_json(found)
    return num_failed


def _each(
    results: _Results,
    show_one: Callable[[Path, Prediction], object],
    keep_failure: Callable[[Path, Failure], object] | None = None,
) -> int:
    """Print the good ones, name the bad ones on standard error; give how many those are."""
    num_failed = 0
    for file, result in results:
        if isinstance(result, Prediction):
            show_one(file, result)
        else:
            num_failed += 1
            click.echo(result.reason, err=True)
            if keep_failure:
                keep_failure(file, result)
    return num_failed
