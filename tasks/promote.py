"""The effects `promote`, `reject` and `rollback`: a reviewer's decision, carried out whole or not at all.

    case = review("3")                                        what is to be decided, with its evidence
    promote("3", "better on cats", seen=case.digest)          bound to the evidence that was seen

The champion's alias moves by compare-and-swap, as far as MLflow allows: a claim is written first, other claims and the
champion are read after it, and the champion is read again after the move. Two reviewers at once may both be refused,
never both succeed. Killed at any point and repeated, a decision is finished, not doubled; until then the champion
is one complete model, the old or the new one.
"""

import dataclasses
import datetime
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from refit import paths
from refit.errors import EvidenceError, RefusedError, TrackingError
from refit.files import publish_text
from refit.gate import evidence, history
from refit.gate.checks import Verdict
from refit.gate.evidence import Bundle
from refit.gate.golden import Golden
from refit.gate.history import Move, Outcome, Timeline
from refit.params import Register, load_params
from refit.records import parse_record, read_record
from refit.registry import releases, tracking, versions
from refit.registry.origin import Origin, origin_of
from refit.registry.probe import Bare, Packed, serving_check
from refit.registry.provenance import doubt_of
from refit.registry.records import CONTENT_TAG, Version
from refit.registry.tracking import CHAMPION, EVIDENCE_TAG, PREVIOUS
from refit.reports.review import review_page


@dataclass(frozen=True)
class Case:
    """A version with its evidence, opened and verified."""

    version: Version
    digest: str
    bundle: Bundle

    @property
    def verdict(self) -> Verdict:
        """The gate's."""
        return self.bundle.comparison.verdict


@dataclass(frozen=True)
class Objection:
    """Why a promotion is refused, and whether a reviewer may go on all the same."""

    reason: str
    may_be_forced: bool


def review(number: str) -> Case:
    """A candidate version with its evidence.

    Raises:
        TrackingError: no such version.
        EvidenceError: its evidence is missing, or not what was recorded.
    """
    settings = load_params().register
    version = tracking.version(settings, tracking.candidates(settings), number)
    case = _open(settings, version)
    found = case.bundle
    if found.content_digest != version.tags.get(CONTENT_TAG) or found.model_name != settings.model_name:
        raise EvidenceError(f"the evidence of {version.uri} is about another model")
    return case


def where_from(case: Case) -> Origin:
    """Commit, changes beside it, who and when, curves and links of a candidate."""
    with _reading(case.version):
        return origin_of(case.version, case.bundle, load_params().register)


def page(case: Case) -> None:
    """Write the reviewer's page, reports/review.html, from the comparison's page that the evidence names."""
    settings, version = load_params().register, case.version
    name = "comparison.html"
    with _reading(version):
        data = tracking.read_file(settings, f"runs:/{version.run_id}/evidence/{name}")
    evidence.require_same_files({name: evidence.digest_of(data)}, {name: case.bundle.files[name]}, version.uri)
    publish_text(paths.REVIEW, review_page(data.decode(), where_from(case)))


def released(number: str) -> Case:
    """A released version with its evidence."""
    settings = load_params().register
    return _open(settings, releases.released_version(settings, number))


def _open(settings: Register, version: Version) -> Case:
    with _reading(version):
        bundle = versions.bundle_of(version, settings)
    return Case(version, version.tags[EVIDENCE_TAG], bundle)


@contextmanager
def _reading(version: Version) -> Iterator[None]:
    """What cannot be read is no evidence, unless trying again may help."""
    try:
        yield
    except OSError as error:
        raise EvidenceError(f"the evidence of {version.uri} cannot be read: {error}") from None
    except TrackingError as error:
        if error.retryable:
            raise
        raise EvidenceError(f"the evidence of {version.uri} cannot be read: {error}") from None


def objections(case: Case, champion: Version | None, rejection: Move | None) -> list[Objection]:
    """Everything that speaks against promoting; empty: nothing."""
    found = []
    compared, present = case.bundle.comparison.champion, None if champion is None else champion.identity
    if compared != present:
        then, now = (entry.uri if entry else "no champion" for entry in (compared, present))
        found.append(
            Objection(
                f"the champion changed since the comparison: it was compared with {then}, now there is {now}; run "
                "`refit compare` and `refit register` where it was trained, then decide again",
                may_be_forced=False,
            )
        )
    if case.verdict != "pass":
        reasons = "; ".join(case.bundle.comparison.reasons)
        found.append(Objection(f"the gate says {case.verdict}: {reasons}", may_be_forced=True))
    if doubt := doubt_of(case.bundle.git):
        found.append(Objection(doubt, may_be_forced=True))
    if rejection is not None:
        found.append(Objection(f"{rejection.who} rejected it: {rejection.reason}", may_be_forced=True))
    return found


def promote(
    number: str,
    reason: str,
    seen: str | None = None,
    is_forced: bool = False,
    is_dry_run: bool = False,
    through: str = "",
) -> Outcome:
    """Make a candidate the champion.

    Args:
        number: of the candidate version.
        reason: why, for the history.
        seen: digest of the evidence that the reviewer saw (its first 12 digits at least).
        is_forced: go on although the gate did not pass, or somebody rejected it; the reason is kept.
        is_dry_run: say what would happen, and change nothing.
        through: what lends its account to the reviewer (see `Move`).

    Raises:
        RefusedError: it may not be promoted, or somebody else was faster.
        EvidenceError: evidence or files are not what was recorded.
        TrackingError: MLflow refuses or does not answer; repeat the call.
    """
    settings, case = load_params().register, review(number)
    _require_reason(reason)
    _require_seen(case, seen)
    past, champion = releases.moves(settings), releases.champion(settings)
    move = _draft(settings, "promote", reason, case, champion, is_forced)
    if _is_release_of(champion, case):
        assert champion is not None
        return _finish(settings, past, champion, case, is_dry_run)
    against = objections(case, champion, history.rejection_of(past, case.version.uri, case.digest))
    _refuse(case, against, is_forced)
    move = dataclasses.replace(move, is_forced=bool(against), through=through)
    plan = _plan(move, case)
    if is_dry_run:
        return dataclasses.replace(plan, is_dry_run=True)
    release = _release(settings, case)
    done = _move_champion(settings, dataclasses.replace(move, to_version=release.version), past)
    return dataclasses.replace(plan, to=release.uri, move=done)


def rollback(number: str | None, reason: str, is_dry_run: bool = False, through: str = "") -> Outcome:
    """Make an earlier release the champion again; it must load and answer first.

    Args:
        number: of the released version; None: the one before (`previous`).
        reason: why.
        is_dry_run: check all of it, and change nothing.
        through: as for `promote`.

    Raises:
        RefusedError: there is nothing to go back to.
        EvidenceError: the target does not load, or does not answer as it did.
    """
    settings = load_params().register
    _require_reason(reason)
    past, champion = releases.moves(settings), tracking.version_with_alias(settings, CHAMPION)
    target = _target(settings, number, reason, past, champion)
    if champion is not None and champion.version == target:
        return _finish(settings, past, champion, released(target), is_dry_run)
    case = released(target)
    _require_answers(settings, case)
    move = dataclasses.replace(
        _draft(settings, "rollback", reason, case, champion, False), to_version=target, through=through
    )
    plan = dataclasses.replace(_plan(move, case), to=case.version.uri)
    if is_dry_run:
        return dataclasses.replace(plan, is_dry_run=True)
    return dataclasses.replace(plan, move=_move_champion(settings, move, past))


def reject(number: str, reason: str, seen: str | None = None, is_dry_run: bool = False, through: str = "") -> Outcome:
    """Write down that a candidate is not wanted. Nothing that is served changes."""
    settings, case = load_params().register, review(number)
    _require_reason(reason)
    _require_seen(case, seen)
    champion = tracking.version_with_alias(settings, CHAMPION)
    if _is_release_of(champion, case):
        raise RefusedError(f"{case.version.uri} is the champion; `refit rollback` takes it back")
    move = dataclasses.replace(_draft(settings, "reject", reason, case, champion, False), state="done", through=through)
    known = history.rejection_of(releases.moves(settings), case.version.uri, case.digest)
    if not is_dry_run and known is None:
        releases.write_move(settings, move)
    return dataclasses.replace(_plan(known or move, case), is_dry_run=is_dry_run)


def decision_on(case: Case) -> Move | None:
    """What was decided on a candidate with the evidence that it has now; None: nothing yet."""
    return history.decision_on(releases.moves(load_params().register), case.version.uri, case.digest)


def past_decisions() -> Timeline:
    """The history: decisions and moves made past Refit, oldest first, and the present champion."""
    return releases.timeline(load_params().register)


# What must hold before


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise RefusedError('a decision needs a reason: --reason "…"')
    if len(reason) > history.MOST_LETTERS:
        raise RefusedError(f"the reason has {len(reason):,} letters, at most {history.MOST_LETTERS:,} are kept")


def _require_seen(case: Case, seen: str | None) -> None:
    if seen is None:
        return
    if len(seen) < 12 or not case.digest.startswith(seen):
        raise RefusedError(
            f"{case.version.uri} has the evidence {case.digest[:12]} now, not {seen[:12]}: look at it again with "
            f"`refit review {case.version.version}`"
        )


def _refuse(case: Case, against: list[Objection], is_forced: bool) -> None:
    standing = [entry for entry in against if not (is_forced and entry.may_be_forced)]
    if standing:
        way_out = "; --force goes on all the same" if all(entry.may_be_forced for entry in standing) else ""
        reasons = "; ".join(entry.reason for entry in standing)
        raise RefusedError(f"{case.version.uri} is not promoted: {reasons}{way_out}")


def _is_release_of(champion: Version | None, case: Case) -> bool:
    """Whether the champion was made of this case by Refit; a copy that somebody made in MLflow was not."""
    tags = {} if champion is None else champion.tags
    return tags.get(EVIDENCE_TAG) == case.digest and releases.CANDIDATE_TAG in tags


def _target(settings: Register, number: str | None, reason: str, past: list[Move], champion: Version | None) -> str:
    """The release that a rollback goes back to."""
    if number is not None:
        return number
    present = None if champion is None else champion.version
    if found := history.way_back(past, present, releases.actor(settings), reason.strip()):
        return found
    previous = tracking.version_with_alias(settings, PREVIOUS)
    if previous is None:
        raise RefusedError(f"there is no version before the present champion of {settings.model_name}; name one: --to")
    return previous.version


def _release(settings: Register, case: Case) -> Version:
    """The candidate's data, packed here, tried here, and uploaded."""
    version = case.version
    with tempfile.TemporaryDirectory(prefix="refit-release-") as temporary:
        folder = Path(temporary)
        with _reading(version):
            data = versions.fetch_bare(version, case.bundle, settings, folder / "data")
            beside = releases.fetch_evidence(settings, version, case.bundle, folder / "evidence")
            golden = read_record(beside / "golden.json", Golden, EvidenceError)
        model = releases.pack(data, beside, golden, folder / "model")
        _check(Packed(model), golden, f"the release of {version.uri}")
        return releases.publish(settings, version, case.bundle, model)


def _require_answers(settings: Register, case: Case) -> None:
    """The released weights, read by the code that is installed here, answer as they did."""
    version = case.version
    with tempfile.TemporaryDirectory(prefix="refit-release-") as temporary:
        with _reading(version):
            data = versions.fetch_bare(version, case.bundle, settings, Path(temporary))
            stored = tracking.read_file(settings, f"{version.uri}/refit/golden.json")
        name = "golden.json"
        evidence.require_same_files({name: evidence.digest_of(stored)}, {name: case.bundle.files[name]}, version.uri)
        _check(data, parse_record(stored, Golden, EvidenceError, version.uri), version.uri)


def _check(model: Bare | Packed, golden: Golden, name: str) -> None:
    serving_check(model, golden, load_params().gate.max_probability_error, name)


# The move itself


def _draft(settings: Register, kind: str, reason: str, case: Case, champion: Version | None, is_forced: bool) -> Move:
    return dataclasses.replace(
        releases.new_move(settings, kind, reason, None if champion is None else champion.version),
        candidate=case.version.tags.get(releases.CANDIDATE_TAG, case.version.uri),
        evidence=case.digest,
        verdict=case.verdict,
        is_forced=is_forced,
    )


def _plan(move: Move, case: Case) -> Outcome:
    return Outcome(
        kind=move.kind,
        version=case.version.uri,
        from_version=move.from_version,
        to=None,
        evidence=case.digest,
        verdict=case.verdict,
        reason=move.reason,
        who=move.who,
        is_forced=move.is_forced,
    )


def _move_champion(settings: Register, move: Move, past: list[Move]) -> Move:
    """Claim, look, move, look again. `past`: the decisions as they were when this one was judged."""
    begun = [old for old in releases.moves(settings) if old.state == "begun" and old.is_same_decision(move)]
    move = releases.stamped(move)  # packing, trying and uploading took their time: others see the claim from here on
    if begun:  # an attempt that broke off
        move = dataclasses.replace(move, id=begun[0].id)
    releases.write_move(settings, move)
    if obstacle := _obstacle(settings, move, past):
        releases.write_move(settings, dataclasses.replace(move, state="withdrawn"))
        raise RefusedError(obstacle)
    assert move.to_version is not None
    releases.set_alias(settings, CHAMPION, move.to_version)
    after = _champion_number(settings)
    if after != move.to_version:
        releases.write_move(settings, dataclasses.replace(move, state="overtaken"))
        raise RefusedError(f"somebody moved the champion to version {after} at the same time; see `refit history`")
    return _complete(settings, move)


def _complete(settings: Register, move: Move) -> Move:
    """What follows once the champion was moved. Until then `previous` stands, which an attempt that broke off needs."""
    if move.from_version is not None:
        releases.set_alias(settings, PREVIOUS, move.from_version)
    done = dataclasses.replace(move, state="done")
    releases.write_move(settings, done)
    return done


def _obstacle(settings: Register, move: Move, past: list[Move]) -> str | None:
    """What others did since a decision was judged, or do right now."""
    present, now = releases.moves(settings), datetime.datetime.now(datetime.UTC)
    others = [claim for claim in history.claims(present, now, past) if claim.id != move.id]
    if others:
        return (
            f"{others[0].who} is deciding about {settings.model_name} right now (since {others[0].when}); look at "
            "`refit history`, then decide again"
        )
    rejection = history.rejection_of(present, move.candidate or "", move.evidence)
    if move.kind == "promote" and rejection is not None and rejection not in past:
        return f"{rejection.who} rejected it meanwhile: {rejection.reason}; nothing was changed"
    champion = _champion_number(settings)
    if champion not in (move.from_version, move.to_version):
        return f"the champion was moved to version {champion} meanwhile; nothing was changed"
    return None


def _finish(settings: Register, past: list[Move], champion: Version, case: Case, is_dry_run: bool) -> Outcome:
    """It is the champion already: complete what an earlier attempt may have left open."""
    move = history.made_champion(past, champion.version)
    if move is not None and move.state == "begun" and not is_dry_run:
        _complete(settings, move)
    draft = move or _draft(settings, "promote", "", case, champion, False)
    return dataclasses.replace(_plan(draft, case), to=champion.uri, is_champion_already=True, is_dry_run=is_dry_run)


def _champion_number(settings: Register) -> str | None:
    found = tracking.version_with_alias(settings, CHAMPION)
    return None if found is None else found.version
