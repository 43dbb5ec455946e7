"""From a text, however it comes, to the tokens that a network reads. No torch: a registered model carries this."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ...errors import WorkspaceError
from . import files
from .preprocessing import EXTRA_NEEDED, Preprocessing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INPUT = "text"
"""The name of a request's column: {"text": [...]}."""

REQUIRES = ("tokenizers", "transformers")

NOTHING = -1
"""Stands behind the last token of a text."""

MORE = -3
"""Stands in the last place of a text that has more tokens than are read."""


def prepare(example: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """One text, in UTF-8, as its tokens (max_tokens + 1,) int32, NOTHING behind them, and in the end MORE if it has.

    Raises:
        ValueError: the text cannot be read; the message is for the user.
        WorkspaceError: the extra `text` is not installed.
    """
    found = _tokenizer(preprocessing.tokenizer, preprocessing.max_tokens).encode(files.decode(example))
    if not found.ids:
        raise ValueError("a text in which the tokenizer finds nothing")
    row = np.full(preprocessing.max_tokens + 1, NOTHING, dtype=np.int32)
    row[: len(found.ids)] = found.ids
    if found.overflowing:
        row[-1] = MORE
    return row


def parse(value: object) -> bytes:
    """An example of a request: a text, or the bytes of a file.

    Raises:
        ValueError: it is neither; the message is for the user.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    raise ValueError(f"a text is expected, found {type(value).__name__}")


def request(content: bytes) -> str:
    """A file's bytes as a request has them."""
    return files.decode(content)


def picture(prepared: np.ndarray, preprocessing: Preprocessing) -> str:
    """A row of `prepare` as text, in quotation marks: what the network read of it."""
    tokenizer = _tokenizer(preprocessing.tokenizer, preprocessing.max_tokens)
    return f"“{tokenizer.decode([int(token) for token in prepared if token >= 0])}”"


def slices(prepared: np.ndarray, preprocessing: Preprocessing) -> dict[str, np.ndarray]:
    """Which of (n, max_tokens + 1) texts, as `prepare` gives them, the network reads to their end."""
    return {"tokens": np.where(prepared[:, -1] == MORE, f"cut at {preprocessing.max_tokens}", "all read")}


@lru_cache(maxsize=4)
def _tokenizer(definition: str, max_tokens: int) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer, decoders, models
    except ImportError:
        raise WorkspaceError(EXTRA_NEEDED) from None
    tokenizer = Tokenizer.from_str(definition)
    if tokenizer.decoder is None and isinstance(tokenizer.model, models.WordPiece):
        tokenizer.decoder = decoders.WordPiece()  # else pages show the pieces of words
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer
