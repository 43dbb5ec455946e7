"""The torch-free half of the text modality: what a text file is, found out by reading it once.

    inspection = inspect(Path("review.txt"))

A text is untrusted input: its size is bounded, it must be UTF-8, and whatever is wrong with the bytes becomes the
`error` of the record, never an exception. What two copies of a text share is `content_sha256` (line ends, Unicode form
and space at the ends aside); what two versions of it share is most of their `signature`, a MinHash (Broder 1997) of its
runs of five letters, case, accents and signs aside.
"""

import hashlib
import re
import stat
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..contract import Inspection, UnusableError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

COLUMN = "text"
"""The column of a table that holds texts."""

KIND = "Text"

MAX_BYTES = 4 * 1024 * 1024

LENGTHS = ("short", "medium", "long")
_SHORT, _MEDIUM = 16, 64  # words
_SHOWN = 280  # signs, on a page

NUM_HASHES = 128
"""Of a signature, 16 bits each: the share that two have in common estimates how many runs of letters their texts share,
of all that either has (Jaccard), with a standard deviation of 0.04."""
_RUN = 5  # letters
_MOST_LETTERS = 100_000  # of a longer text, its beginning is compared
_AT_ONCE = 4096  # runs, in half a megabyte

_TELLING_WORDS = 9  # of fewer, one in eight English sentences is taken for another language
_TELLING_LETTERS = 2_000
_SURE = 0.5  # docs/texts.md: how many are told, and how many wrongly

_WORD = re.compile(r"\w+|[^\w\s]")
_HTML = re.compile(r"</?[a-zA-Z][^<>]{0,200}>|&(?:[a-zA-Z]{2,8}|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
_MISREAD = re.compile("[\u00c2-\u00f4][\u0080-\u00bf\u0152-\u2122]")
"""UTF-8 that was read as Windows-1252 and written again: \u00c3\u00a9 for \u00e9, \u00e2\u20ac\u2122 for \u2019."""
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True, kw_only=True)
class TextInspection(Inspection):
    """With what only texts have; empty with an `error`."""

    characters: int = 0
    words: int = 0  # runs of letters and digits, and signs
    length: str = ""  # one of LENGTHS
    script: str = ""  # of most of its letters, in Unicode's names: latin, cyrillic, cjk, …
    language: str = ""  # by ISO 639: en, de, …; empty: short, uncertain, or py3langid is not installed
    control_characters: int = 0  # tabs and line ends aside
    html_tags: int = 0  # and entities


INSPECTED = TextInspection


def decided_by() -> dict[str, str | None]:
    """What decides how a text is read, beside the bytes and this file: Unicode's tables, tokenizers, networks."""
    packages = ("py3langid", "tokenizers", "transformers")
    return {"unicode": unicodedata.unidata_version, **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None  # training and predicting need it, and say so


def inspect(path: Path) -> TextInspection:
    """Read one text file; never raises for a bad one.

    Raises:
        OSError: the file cannot be read.
        MemoryError: there is not enough of it.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return TextInspection(error="not a regular file", rule="unreadable")
    if status.st_size > MAX_BYTES:
        return TextInspection(error=f"larger than {MAX_BYTES // 2**20} MiB", rule="bomb")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        text = decode(content)
    except UnusableError as error:
        return TextInspection(sha256=sha256, bytes=len(content), error=str(error), rule=error.rule)
    words = len(_WORD.findall(text))
    return TextInspection(
        sha256=sha256,
        bytes=len(content),
        content_sha256=hashlib.sha256(text.encode()).hexdigest(),
        signature=signature_of(text),
        characters=len(text),
        words=words,
        length=LENGTHS[(words > _SHORT) + (words > _MEDIUM)],
        script=_script(text),
        language=_language(text) if words >= _TELLING_WORDS else "",
        control_characters=sum(unicodedata.category(sign) == "Cc" and sign not in "\t\n" for sign in text),
        html_tags=len(_HTML.findall(text)),
    )


def signature_of(text: str) -> bytes:
    """The least of each of NUM_HASHES hashes of its runs of letters, 16 bits of it. The same on every machine."""
    letters = " ".join(_plain_words(text))[:_MOST_LETTERS].ljust(_RUN)
    codes = np.array([ord(letter) for letter in letters], dtype=np.uint64)
    runs = np.zeros(len(codes) - _RUN + 1, dtype=np.uint64)
    for place in range(_RUN):
        runs = _mixed(runs + codes[place : place + len(runs)])
    runs = np.unique(runs)
    numbers = np.arange(1, NUM_HASHES + 1, dtype=np.uint64)
    factors, shifts = _mixed(numbers) | np.uint64(1), _mixed(~numbers)
    least = np.full(NUM_HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(runs), _AT_ONCE):
        hashes = runs[start : start + _AT_ONCE, None] * factors + shifts
        least = np.minimum(least, hashes.min(axis=0))
    return (_mixed(least) >> np.uint64(48)).astype("<u2").tobytes()


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of a value (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def decode(content: bytes) -> str:
    """The text in a file: line ends as \\n, composed (Unicode's form NFC), without space at its ends.

    Raises:
        UnusableError: (a ValueError) it is not UTF-8, or empty; the message is for the user.
    """
    if content.startswith(b"version https://git-lfs"):
        raise UnusableError("pointer", "a git-lfs pointer: run `git lfs pull`")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableError("encoding", f"not UTF-8 (byte {error.start:,}); {_probably(content)}") from None
    if "\0" in text:
        raise UnusableError("encoding", f"holds zero bytes; {_probably(content)}")
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if not text:
        raise UnusableError("empty", "empty text")
    if (misread := _MISREAD.search(text)) and _was_misread(text):
        raise UnusableError("encoding", f"UTF-8 that was read as Windows-1252 and saved again, such as {misread[0]!r}")
    return text


def excerpt(content: bytes) -> str:
    """Its first words, in quotation marks. Raises ValueError as `decode` does."""
    text = " ".join(decode(content)[: 2 * _SHOWN].split())
    return f"“{text if len(text) <= _SHOWN else text[:_SHOWN] + ' …'}”"


def _was_misread(text: str) -> bool:
    try:
        return text.encode("cp1252").decode("utf-8") != text
    except UnicodeError:
        return False


def _probably(content: bytes) -> str:
    """What else than UTF-8 the bytes may be."""
    mark = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    if mark:
        return f"it is {mark}; save it as UTF-8"
    if content[:4] in (b"%PDF", b"PK\x03\x04", b"\x89PNG") or content.startswith(b"\x1f\x8b"):
        return "it is no text"
    sample = content[:4096]
    zeros = sample.count(0)
    if zeros > len(sample) // 5:
        return "it is probably UTF-16 without its mark; save it as UTF-8"
    if zeros:
        return "it is no text"
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return "save it as UTF-8"
    return "it is probably Windows-1252 or another encoding with one byte a letter; save it as UTF-8"


def _plain_words(text: str) -> list[str]:
    """Its words without case, accents and signs; or, if it has none, the text."""
    letters = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return re.findall(r"\w+", letters.casefold()) or [text]


def _script(text: str) -> str:
    """The first word of Unicode's name of its letters, of the most frequent one: LATIN SMALL LETTER A."""
    counts: dict[str, int] = {}
    for sign in text:
        if sign.isascii():
            name = "latin" if sign.isalpha() else ""
        else:
            name = re.split(r"[ -]", unicodedata.name(sign, ""))[0].lower() if sign.isalpha() else ""
        if name:
            counts[name] = counts.get(name, 0) + 1
    return max(sorted(counts), key=counts.__getitem__, default="none")


def _language(text: str) -> str:
    """As py3langid (Lui and Baldwin 2012) tells it from runs of bytes."""
    identifier = _identifier()
    if identifier is None:
        return ""
    language, probability = identifier.classify(text[:_TELLING_LETTERS])
    return str(language) if probability >= _SURE else ""


@lru_cache(maxsize=1)
def _identifier() -> "LanguageIdentifier | None":
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None  # texts can be validated without the extra `text`
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
