"""Who decided what, when and why: the records, and what can be read from them. Pure: no MLflow, no clock.

A decision is one tag of the registered model that only reviewers write: `refit.move.<id>` -> JSON of a `Move`. MLflow
itself records neither who moved an alias nor that it was moved; a move made past Refit shows as a break in the chain.
"""

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

TAG = "refit.move."
MINUTES_A_CLAIM_LIVES = 15
"""A decision that was begun blocks others for so long; then whoever began it is taken for gone."""
MOST_LETTERS = 2000
_AGAINST_THE_GATE = "without the gate's consent"


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
    through: str = ""  # what carried it out with an account that is not the reviewer's own; empty: nothing

    @property
    def moves_champion(self) -> bool:
        """Whether it changes what is served."""
        return self.kind != "reject"

    def is_same_decision(self, other: "Move") -> bool:
        """Whether this is another attempt at it, by the same person."""
        keys = ("kind", "who", "candidate", "from_version", "evidence")
        return all(getattr(self, key) == getattr(other, key) for key in keys)


@dataclass(frozen=True)
class Entry:
    """A decision as it is shown; `note` is empty where all is well."""

    move: Move
    note: str


@dataclass(frozen=True)
class Timeline:
    """What was decided about a model, and what came of it."""

    model_name: str
    champion: str | None  # its address
    previous: str | None
    entries: tuple[Entry, ...]  # oldest first


@dataclass(frozen=True)
class Outcome:
    """What a decision did, or (`is_dry_run`) would do."""

    kind: str
    version: str | None  # address of what was decided on
    from_version: str | None  # number of the champion before
    to: str | None  # address of the champion after
    evidence: str
    verdict: str
    reason: str
    who: str
    is_forced: bool = False
    is_dry_run: bool = False
    is_champion_already: bool = False
    move: Move | None = None  # as it was written; None: nothing was moved


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


def claims(moves: Iterable[Move], now: datetime.datetime, past: Iterable[Move] | None = None) -> list[Move]:
    """Decisions that somebody is carrying out right now.

    Args:
        moves: as they are.
        now: with a time zone.
        past: as they were a while ago. What was begun since then is under way, however slow somebody's clock is.
    """
    oldest = (now - datetime.timedelta(minutes=MINUTES_A_CLAIM_LIVES)).isoformat()
    begun = [move for move in moves if move.state == "begun"]
    known = begun if past is None else list(past)
    return [move for move in begun if move.when > oldest or move not in known]


def decision_on(moves: Iterable[Move], candidate: str, evidence: str) -> Move | None:
    """The last promotion or rejection of a candidate with this evidence that was carried out."""
    kinds = ("promote", "reject")
    found = [move for move in moves if move.kind in kinds and move.state == "done" and move.candidate == candidate]
    return next((move for move in reversed(found) if move.evidence == evidence), None)


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


def made_champion(moves: Iterable[Move], champion: str | None) -> Move | None:
    """The decision that made the present champion, whether it was written as done or broke off; None: it was put there
    past Refit.

    Args:
        moves: oldest first.
        champion: its number.
    """
    for move in reversed(list(moves)):
        if move.moves_champion and move.state in ("begun", "done"):
            if move.to_version == champion:
                return move
            if move.state == "done":
                return None
    return None


def last_champion(moves: Iterable[Move]) -> str | None:
    """The number of the version that the last decision made the champion; None: none."""
    last = _last_decision(moves)
    return None if last is None else last.to_version


def way_back(moves: Iterable[Move], champion: str | None, who: str, reason: str) -> str | None:
    """The number of the release that a rollback means which names none; None: the one with the alias `previous`.

    It is the present champion where a rollback that broke off made it that, or this very one, repeated; and the last
    that was decided on where the champion was moved past Refit.

    Args:
        moves: oldest first.
        champion: the number of the present one.
        who: of the rollback.
        reason: of the rollback.
    """
    moves = list(moves)
    made = made_champion(moves, champion)
    is_repeated = made is not None and (made.state == "begun" or (made.who, made.reason) == (who, reason))
    if made is not None and made.kind == "rollback" and is_repeated:
        return champion
    last = last_champion(moves)
    return None if last == champion else last


def _last_decision(moves: Iterable[Move]) -> Move | None:
    return next((move for move in reversed(list(moves)) if move.moves_champion and move.state == "done"), None)


def timeline(moves: Iterable[Move], champion: str | None) -> tuple[Entry, ...]:
    """The decisions with the breaks between them, oldest first.

    Args:
        moves: oldest first.
        champion: the number of the version that is the champion now; None: there is none.
    """
    entries: list[Entry] = []
    known: str | None = None
    for move in moves:
        if move.moves_champion and move.state == "done":
            if move.from_version != known:
                entries.append(_outside(known, move.from_version, f"before {move.when}"))
            known = move.to_version
        entries.append(Entry(move, _note(move)))
    if champion != known:
        entries.append(_outside(known, champion, "since then"))
    return tuple(entries)


def moved_past(entries: Sequence[Entry], now: datetime.datetime) -> Entry | None:
    """The present champion, if nobody decided on it. None where a decision is being carried out: it moves the alias
    before it is written as done.

    Args:
        entries: a timeline's.
        now: with a time zone.
    """
    if not entries or entries[-1].move.kind != "outside" or claims((entry.move for entry in entries), now):
        return None
    return entries[-1]


def _outside(before: str | None, after: str | None, when: str) -> Entry:
    """A move that Refit has no record of."""
    move = Move("", "outside", "done", "unknown", when, "", before, after, None, "", "")
    return Entry(move, "the alias was moved past Refit: nobody's evidence, nobody's reason")


def _note(move: Move) -> str:
    if move.state == "begun":
        return "begun and not finished; the same command again finishes it"
    if move.state == "overtaken":
        return "the champion was moved by somebody else at the same time"
    notes = []
    if move.through:
        notes.append(f"through {move.through}, by whoever reached it, with this account")
    if move.is_forced:
        against = "although its commit or a rejection spoke against it"
        notes.append(_AGAINST_THE_GATE if move.verdict != "pass" else against)
    return "; ".join(notes)
