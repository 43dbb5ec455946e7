"""Class names that may be one class, and a typo: `Cats ` beside `Cats`, `cat` beside `cats`, a Cyrillic с in `сat`.

same_looking(["Cats", "Cats "])                  [("Cats", "Cats ")]
similar({"cat": 100, "cats": 3})                 [("cat", "cats", "a plural")]
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping

_LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕһԁԛԝьАВЕЗКМНОРСТУХІЈЅαοικνρυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijshdqwbABE3KMHOPCTYXIJSaoikvpuxABEZHIKMNOPTYX",
)
"""Letters of the Cyrillic and Greek alphabets that look like Latin ones (Unicode's confusables.txt has many more)."""

_LEAST_LETTERS = 5  # a shorter name has neighbours that mean something else: cat, car, cap
_RARE = 0.2  # a typo has at most this share of the images of what was meant


def looks(label: str) -> str:
    """What a reader sees of a label: without invisible signs, look-alikes as Latin letters, one kind of space."""
    visible = "".join(sign for sign in unicodedata.normalize("NFKC", label) if unicodedata.category(sign) != "Cf")
    return " ".join(visible.translate(_LOOK_ALIKES).split())


def same_looking(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different labels that look the same."""
    groups: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        groups.setdefault(looks(label), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def similar(counts: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Pairs of labels that look different and may be one: the one with more images, the other, and what differs.

    Args:
        counts: images by label.
    """
    names = {looks(label): label for label in sorted(counts, key=lambda label: (counts[label], label))}
    found = dict.fromkeys(_equal(names, _singular), "a plural") | dict.fromkeys(_equal(names, _plain), "case or signs")
    for pair in _close(names):
        few, many = sorted(counts[names[name]] for name in pair)
        if few <= _RARE * many:
            found.setdefault(pair, "one letter")
    named = []
    for pair, why in found.items():
        more, fewer = sorted((names[name] for name in pair), key=lambda label: (-counts[label], label))
        named.append((more, fewer, why))
    return sorted(named)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def _singular(name: str) -> str:
    plain = _plain(name)
    for ending, replacement in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh")):
        if plain.endswith(ending):
            return plain.removesuffix(ending) + replacement
    return plain.removesuffix("s") if len(plain) > 3 and not plain.endswith("ss") else plain


def _equal(names: Iterable[str], key: Callable[[str], str]) -> Iterator[frozenset[str]]:
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(key(name), name)
        if other != name:
            yield frozenset((other, name))


def _close(names: Iterable[str]) -> Iterator[frozenset[str]]:
    """Names that differ in one letter, or in the order of two; those with a digit are numbered, and meant. Such names
    are equal once a letter is taken out of one or both."""
    by_rest: dict[str, list[str]] = {}
    for name in names:
        plain = _plain(name)
        if len(plain) >= _LEAST_LETTERS and not any(sign.isdigit() for sign in plain):
            for rest in {plain} | {plain[:place] + plain[place + 1 :] for place in range(len(plain))}:
                by_rest.setdefault(rest, []).append(name)
    for group in by_rest.values():
        for one in group:
            for other in group:
                if one < other and _distance_is_one(_plain(one), _plain(other)):
                    yield frozenset((one, other))


def _distance_is_one(one: str, other: str) -> bool:
    if abs(len(one) - len(other)) > 1 or one == other:
        return False
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    one, other = one[start:], other[start:]
    exchanged = len(one) > 1 and one[1::-1] == other[:2] and one[2:] == other[2:]
    return exchanged or one[1:] == other[1:] or one[1:] == other or one == other[1:]
