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


def prepare(example: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """One text, in UTF-8, as its tokens (max_tokens,) int32, and NOTHING behind them.

    Raises:
        ValueError: the text cannot be read; the message is for the user.
        WorkspaceError: the extra `text` is not installed.
    """
    tokens = _tokenizer(preprocessing.tokenizer, preprocessing.max_tokens).encode(files.decode(example)).ids
    if not tokens:
        raise ValueError("a text in which the tokenizer finds nothing")
    row = np.full(preprocessing.max_tokens, NOTHING, dtype=np.int32)
    row[: len(tokens)] = tokens
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


@lru_cache(maxsize=4)
def _tokenizer(definition: str, max_tokens: int) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise WorkspaceError(EXTRA_NEEDED) from None
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer
