"""Who decided what, when and why: the records, and what can be read from them. Pure: no MLflow, no clock.

A decision is one tag of the registered model that only reviewers write: `refit.move.<id>` -> JSON of a `Move`. MLflow
itself records neither who moved an alias nor that it was moved; a move made past Refit shows as a break in the chain.
"""

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TAG = "refit.move."
MINUTES_A_CLAIM_LIVES = 15
"""A decision that was begun blocks others for so long; then whoever began it is taken for gone."""
MOST_LETTERS = 2000


@dataclass(frozen=True)
class Move:
    """One decision. `state`: begun (a claim, or broken off), done, withdrawn, overtaken."""

    id: str
    kind: str  # promote, rollback, reject, withdraw
    state: str
    who: str
    when: str  # ISO 8601, UTC
    reason: str
    from_version: str | None  # of the champion before; None: there was none
    to_version: str | None  # of the champion after; None for a rejection and a withdrawal
    candidate: str | None  # address of the candidate version
    evidence: str  # digest of the bundle that was decided on
    verdict: str  # the gate's
    is_forced: bool = False

    @property
    def moves_champion(self) -> bool:
        """Whether it changes what is served."""
        return self.kind != "reject"

    def is_same_decision(self, other: "Move") -> bool:
        """Whether this is another attempt at it, by the same person."""
        keys = ("kind", "who", "candidate", "from_version", "evidence")
        return all(getattr(self, key) == getattr(other, key) for key in keys)


def as_tag(move: Move) -> tuple[str, str]:
    """Key and value."""
    return f"{TAG}{move.id}", json.dumps(dataclasses.asdict(move), sort_keys=True, ensure_ascii=False)


def from_tags(tags: Mapping[str, str]) -> list[Move]:
    """All decisions, oldest first. A tag that somebody spoiled by hand is shown as what it is."""
    moves = [_read(key.removeprefix(TAG), value) for key, value in tags.items() if key.startswith(TAG)]
    return sorted(moves, key=lambda move: (move.when, move.id))


def _read(name: str, value: str) -> Move:
    try:
        return Move(**json.loads(value))
    except (ValueError, TypeError):
        return Move(name, "reject", "unreadable", "?", "", f"unreadable record: {value[:80]}", None, None, None, "", "")


def claims(moves: Iterable[Move], now: datetime.datetime) -> list[Move]:
    """Decisions that somebody is carrying out right now."""
    oldest = (now - datetime.timedelta(minutes=MINUTES_A_CLAIM_LIVES)).isoformat()
    return [move for move in moves if move.state == "begun" and move.when > oldest]


def rejection_of(moves: Iterable[Move], candidate: str, evidence: str) -> Move | None:
    """The rejection of a candidate with this evidence, if it was rejected."""
    found = [move for move in moves if move.kind == "reject" and move.state == "done" and move.candidate == candidate]
    return next((move for move in reversed(found) if move.evidence == evidence), None)


def trace_of_a_champion(moves: Iterable[Move], previous: str | None) -> str | None:
    """What speaks against a registry that names no champion; None: nothing does.

    Args:
        moves: oldest first.
        previous: the number of the version with the alias `previous`.
    """
    moves = list(moves)
    if last := _last_decision(moves):
        made = f"{last.who} made version {last.to_version} the champion at {last.when[:19]}"
        return None if last.to_version is None else made
    if any(move.state == "unreadable" for move in moves):
        return "a record of a decision is unreadable"
    return None if previous is None else f"version {previous} is marked as the one before it"


def last_champion(moves: Iterable[Move]) -> str | None:
    """The number of the version that the last decision made the champion; None: none."""
    last = _last_decision(moves)
    return None if last is None else last.to_version


def _last_decision(moves: Iterable[Move]) -> Move | None:
    return next((move for move in reversed(list(moves)) if move.moves_champion and move.state == "done"), None)


def timeline(moves: Iterable[Move], champion: str | None) -> list[dict[str, Any]]:
    """The decisions with the breaks between them, oldest first; each with `note`, empty where all is well.

    Args:
        moves: oldest first.
        champion: the number of the version that is the champion now; None: there is none.
    """
    rows: list[dict[str, Any]] = []
    known: str | None = None
    for move in moves:
        if move.moves_champion and move.state == "done":
            if move.from_version != known:
                rows.append(_outside(known, move.from_version, f"before {move.when}"))
            known = move.to_version
        rows.append(dataclasses.asdict(move) | {"note": _note(move)})
    if champion != known:
        rows.append(_outside(known, champion, "since then"))
    return rows


def _outside(before: str | None, after: str | None, when: str) -> dict[str, Any]:
    """A move that Refit has no record of."""
    return {
        "id": None, "kind": "outside", "state": "done", "who": "unknown", "when": when, "reason": "",
        "from_version": before, "to_version": after, "candidate": None, "evidence": "", "verdict": "",
        "is_forced": False, "note": "the alias was moved past Refit: nobody's evidence, nobody's reason",
    }  # fmt: skip


def _note(move: Move) -> str:
    if move.state == "begun":
        return "begun and not finished; the same command again finishes it"
    if move.state == "overtaken":
        return "the champion was moved by somebody else at the same time"
    return "without the gate's consent" if move.is_forced else ""
