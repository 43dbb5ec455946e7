"""Records on disk: frozen dataclasses in JSON, each with one reader and one writer.

    card = read_record(Path("models/model.json"), Card, CheckpointError)
    publish_record(Path("models/model.json"), card)

What is read is checked against the types: a key that is missing or of another type is an error that names it. Keys that
a record does not have are left alone, so that an older reader may read what a newer writer adds; where the meaning
changes, the record's `format` does. The spelling is canonical: the same record gives the same bytes.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from .errors import RefitError
from .files import publish_json, sha256_of_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record")


def read_record(path: Path, kind: type[Record], error: type[RefitError], way_out: str = "") -> Record:
    """The record in a file.

    Args:
        error: what to raise.
        way_out: said at the end of the message.

    Raises:
        RefitError: of the class `error`; the file is missing, is not JSON, or a key is missing or of another type.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}){way_out}") from None
    return parse_record(data, kind, error, str(path), way_out)


def parse_record(data: bytes, kind: type[Record], error: type[RefitError], where: str, way_out: str = "") -> Record:
    """The record in some bytes, which came from `where`. Raises as `read_record` does."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise error(f"{where} is not what this version of Refit writes: {problem}{way_out}") from None


def as_record(values: object, kind: type[Record], error: type[RefitError], where: str) -> Record:
    """The record that plain values make up: what JSON or YAML gave. Raises as `read_record` does."""
    try:
        return msgspec.convert(values, type=kind)
    except msgspec.ValidationError as problem:
        raise error(f"{where}: {problem}") from None


def as_plain(record: "DataclassInstance") -> dict[str, object]:
    """A record as plain values, for JSON. (msgspec alone would leave out a default of a record that was read.)"""
    plain: dict[str, object] = msgspec.to_builtins(dataclasses.asdict(record))
    return plain


def publish_record(target: Path, record: "DataclassInstance") -> None:
    """Write a record as canonical, readable JSON."""
    publish_json(target, as_plain(record))


def digest_of_record(record: "DataclassInstance") -> str:
    """The SHA-256 of a record in canonical compact JSON."""
    return sha256_of_json(as_plain(record))
