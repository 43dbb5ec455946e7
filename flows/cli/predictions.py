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
from tasks.predict import Failure, Prediction, examples_in, predict_files, predict_values

Form = Literal["text", "csv", "json"]


def show_files(chosen: Sequence[Path], uri: str | None, has_all: bool, form: Form) -> None:
    """Label files and print.

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
        results = (("-" if file == given else file, result) for file, result in predict_files(files, uri))
        _show(results, len(files), has_all, form, "file")


def show_values(values: Sequence[str], uri: str | None, has_all: bool, form: Form) -> None:
    """Label examples as a request would have them and print.

    Raises:
        DataError: one could not be labelled; all others are printed.
    """
    _show(predict_values(values, uri), len(values), has_all, form, "value")


_Results = Iterator[tuple[object, Prediction | Failure]]


def _show(results: _Results, count: int, has_all: bool, form: Form, kind: str) -> None:
    if num_failed := {"text": _lines, "csv": _table, "json": _document}[form](results, has_all, kind):
        raise DataError(f"{num_failed:,} of {count:,} {kind}s could not be labelled")


def _lines(results: _Results, has_all: bool, _kind: str) -> int:
    def line(name: object, found: Prediction) -> None:
        rest = [f"{name}={share:.4f}" for name, share in found.probabilities.items()] if has_all else []
        click.echo("\t".join([str(name), found.label, f"{found.probability:.4f}", *rest]))

    return _each(results, line)


def _table(results: _Results, has_all: bool, kind: str) -> int:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    head: list[str] = []

    def row(name: object, found: Prediction) -> None:
        shares = found.probabilities if has_all else {}
        if not head:
            head.extend([kind, "label", "probability", *shares])
            writer.writerow(head)
        writer.writerow([name, found.label, f"{found.probability:.6f}", *(f"{share:.6f}" for share in shares.values())])

    return _each(results, row)


def _document(results: _Results, has_all: bool, kind: str) -> int:
    found: list[dict[str, object]] = []

    def entry(name: object, one: Prediction) -> None:
        shares = {"probabilities": one.probabilities} if has_all else {}
        found.append({kind: str(name), "label": one.label, "probability": one.probability, **shares})

    num_failed = _each(results, entry, lambda name, failure: found.append({kind: str(name), "error": failure.reason}))
    print_json(found)
    return num_failed


def _each(
    results: _Results,
    show_one: Callable[[object, Prediction], object],
    keep_failure: Callable[[object, Failure], object] | None = None,
) -> int:
    """Print the good ones, name the bad ones on standard error; give how many those are."""
    num_failed = 0
    for name, result in results:
        if isinstance(result, Prediction):
            show_one(name, result)
        else:
            num_failed += 1
            click.echo(result.reason, err=True)
            if keep_failure:
                keep_failure(name, result)
    return num_failed
