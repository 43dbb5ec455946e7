"""Promotion, rejection, rollback and their history, on a local registry; and every fault between two calls."""

import dataclasses
import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from refit import paths
from refit.errors import EvidenceError, RefusedError, TrackingError
from refit.gate import history
from refit.gate.decide import Check, Decision
from refit.gate.history import Move
from refit.params import load_params
from refit.registry import releases, tracking
from tasks import compare as comparing
from tasks import promote
from tasks.compare import compare
from tasks.register import find_registered, register_candidate

from .conftest import commit_all
from .test_tracking import client

pytestmark = pytest.mark.usefixtures("no_processes")


def decided(monkeypatch: pytest.MonkeyPatch, verdict: Any) -> None:
    """From here on the gate says this."""
    check = Check("accuracy", verdict, f"because it is a test of {verdict}", 0.0)
    monkeypatch.setattr(comparing, "decide", lambda *_arguments: Decision(verdict, (check,), None))


def candidate(mark: float) -> str:
    """Another candidate: the same weights with other measures; its number."""
    evaluation = json.loads(paths.EVALUATION.read_text())
    evaluation["overall"]["accuracy"]["value"] = mark
    paths.EVALUATION.write_text(json.dumps(evaluation))
    compare()
    return register_candidate().version.version


@pytest.fixture
def passing(committed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    decided(monkeypatch, "pass")
    return committed


def champion() -> Any:
    return tracking.version_with_alias(load_params().register, "champion")


def previous() -> Any:
    return tracking.version_with_alias(load_params().register, "previous")


def test_a_promotion_is_a_copy_that_carries_its_evidence(passing: Path) -> None:
    case = promote.review(candidate(0.7))
    result = promote.promote("1", "first one", seen=case.digest[:12])
    assert (result.to, result.from_version, result.verdict) == ("models:/pets/1", None, "pass")
    release = champion()
    assert release.uri == "models:/pets/1"
    assert release.source != case.version.source, "no pointer to the candidate's files"
    assert release.tags["refit.evidence"] == case.digest
    experiment = client().get_experiment_by_name("pets-releases")
    logged = client().get_logged_model(release.source.removeprefix("models:/"))
    assert logged.experiment_id == experiment.experiment_id
    with tracking.connected(load_params().register):
        files = tracking.stored_files(release.source)
    for name in ("artifacts/model.safetensors", "artifacts/model.json"):
        assert files[name] == case.bundle.model_files[name]
    assert {path for path in files if path.startswith("refit/")} == {
        "refit/evidence.json", "refit/golden.json", "refit/examples.csv", "refit/comparison.html", "refit/files.json",
        "refit/history.csv", "refit/profile.json",
    }  # fmt: skip
    assert promote.released("1").bundle == case.bundle


def test_the_second_promotion_keeps_the_first_as_previous(passing: Path) -> None:
    promote.promote(candidate(0.7), "first")
    promote.promote(candidate(0.8), "second")
    assert (champion().version, previous().version) == ("2", "1")
    past = promote.past_decisions()
    assert [(e.move.kind, e.move.from_version, e.move.to_version, e.move.reason) for e in past.entries] == [
        ("promote", None, "1", "first"), ("promote", "1", "2", "second"),
    ]  # fmt: skip
    assert all(entry.note == "" and "(not verified)" in entry.move.who for entry in past.entries)


@pytest.mark.parametrize("verdict", ["hold", "reject"])
def test_what_did_not_pass_needs_force_and_the_reason_is_kept(
    trained: Path, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(monkeypatch, verdict)
    number = candidate(0.7)
    with pytest.raises(RefusedError, match=f"the gate says {verdict}: because it is a test .*--force"):
        promote.promote(number, "I like it")
    assert champion() is None
    assert promote.promote(number, "the gate knows too little", is_forced=True).is_forced
    entry = promote.past_decisions().entries[-1]
    assert (entry.move.reason, entry.move.verdict, entry.note) == (
        "the gate knows too little", verdict, "without the gate's consent",
    )  # fmt: skip


@pytest.mark.parametrize("where", ["outside of git", "uncommitted changes", "untracked source"])
def test_without_a_clean_known_commit_it_needs_force_until_it_is_committed(
    trained: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(monkeypatch, "pass")
    if where != "outside of git":
        commit_all(trained, monkeypatch, "params.yaml", "dvc.yaml", "dvc.lock")
        (trained / ("dvc.lock" if where == "uncommitted changes" else "extra.py")).write_text("schema: '2.0' # new\n")
    number = candidate(0.7)
    with pytest.raises(
        RefusedError, match=r"is not promoted: it was made .*commit .*`refit register`.*--force goes on"
    ):
        promote.promote(number, "x")
    assert champion() is None
    plan = promote.promote(number, "it is urgent", is_forced=True, is_dry_run=True)
    assert plan.verdict == "pass"
    commit_all(trained, monkeypatch, "params.yaml", "dvc.yaml", "dvc.lock", *map(str, trained.glob("*.py")))
    assert find_registered() is None, "its version does not name this commit"
    compare()
    assert register_candidate().version.version == number
    promote.promote(number, "committed now")
    assert len(champion().tags["refit.git_commit"]) == 40


def test_without_a_reason_nothing_is_decided(passing: Path) -> None:
    number = candidate(0.7)
    for act in (promote.promote, promote.reject):
        with pytest.raises(RefusedError, match="needs a reason"):
            act(number, "  ")
    with pytest.raises(RefusedError, match="needs a reason"):
        promote.rollback(None, "")


def test_a_decision_is_bound_to_the_evidence_that_was_seen(passing: Path) -> None:
    number = candidate(0.7)
    for seen in ("0" * 64, "0" * 12, promote.review(number).digest[:6]):
        with pytest.raises(RefusedError, match=r"has the evidence .* now, not"):
            promote.promote(number, "x", seen=seen)
    assert champion() is None


def test_a_champion_that_changed_since_the_comparison_cannot_be_forced(passing: Path) -> None:
    first, second = candidate(0.7), candidate(0.8)
    promote.promote(first, "first")
    with pytest.raises(RefusedError, match="the champion changed since the comparison: it was compared with no champ"):
        promote.promote(second, "second", is_forced=True)
    with pytest.raises(EvidenceError, match="the champion changed since the comparison; run `refit compare`"):
        register_candidate()
    compare()
    assert register_candidate().version.version == second, "the same content, with new evidence"
    promote.promote(second, "second")
    assert (champion().version, previous().version) == ("2", "1")


def test_a_rejection_is_kept_and_stands(passing: Path) -> None:
    number = candidate(0.7)
    promote.reject(number, "cats look like dogs")
    promote.reject(number, "again")
    with pytest.raises(RefusedError, match="rejected it: cats look like dogs"):
        promote.promote(number, "x")
    assert champion() is None
    assert [entry.move.kind for entry in promote.past_decisions().entries] == ["reject"]
    promote.promote(number, "we talked about it", is_forced=True)
    with pytest.raises(RefusedError, match="is the champion"):
        promote.reject(number, "x")


def test_a_rollback_goes_back_and_can_be_undone(passing: Path) -> None:
    with pytest.raises(RefusedError, match="no version before the present champion"):
        promote.rollback(None, "x")
    promote.promote(candidate(0.7), "first")
    promote.promote(candidate(0.8), "second")
    promote.rollback(None, "errors in production")
    assert (champion().version, previous().version) == ("1", "2")
    promote.rollback("2", "it was the camera")
    assert (champion().version, previous().version) == ("2", "1")
    assert promote.rollback("2", "again").is_champion_already
    kinds = [(entry.move.kind, entry.move.to_version, entry.note) for entry in promote.past_decisions().entries]
    assert kinds == [("promote", "1", ""), ("promote", "2", ""), ("rollback", "1", ""), ("rollback", "2", "")]


def test_a_rollback_to_what_does_not_answer_leaves_the_champion(passing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote.promote(candidate(0.7), "first")
    promote.promote(candidate(0.8), "second")

    def broken(*arguments: Any) -> None:
        raise EvidenceError(f"{arguments[-1]} cannot be used: damaged")

    monkeypatch.setattr(promote, "serving_check", broken)
    with pytest.raises(EvidenceError, match="models:/pets/1 cannot be used"):
        promote.rollback(None, "x")
    assert champion().version == "2"
    with pytest.raises(TrackingError, match="7"):
        promote.rollback("7", "x")
    assert champion().version == "2"


def test_a_dry_run_changes_nothing(passing: Path) -> None:
    number = candidate(0.7)
    assert promote.promote(number, "x", is_dry_run=True).is_dry_run
    promote.reject(number, "x", is_dry_run=True)
    assert champion() is None
    assert [model.name for model in client().search_registered_models()] == ["pets-candidates"]
    assert client().get_experiment_by_name("pets-releases") is None
    promote.promote(number, "x")
    promote.promote(candidate(0.8), "y")
    before = promote.past_decisions()
    promote.rollback(None, "x", is_dry_run=True)
    assert promote.past_decisions() == before


def test_overwritten_candidate_files_are_never_promoted(passing: Path) -> None:
    number = candidate(0.7)
    stored = list((passing / "mlruns").rglob("model.safetensors"))
    assert len(stored) == 1
    stored[0].write_bytes(stored[0].read_bytes() + b"x")
    with pytest.raises(EvidenceError, match=r"does not hold the bytes .*: artifacts/model\.safetensors"):
        promote.promote(number, "x", is_forced=True)
    assert champion() is None


def test_what_a_release_says_of_itself_is_not_the_word_of_the_candidates_tags(passing: Path) -> None:
    """[A size of a terabyte let every later candidate pass; another commit let `refit clean` take the data away.]"""
    number = candidate(0.7)
    said = dict(tracking.version(load_params().register, "pets-candidates", number).tags)
    names = ("refit.weights_bytes", "refit.git_commit", "refit.weights_sha256")
    for name in names:
        client().set_model_version_tag("pets-candidates", number, name, "1" * 12)
    client().delete_model_version_tag("pets-candidates", number, "refit.dvc_lock_sha256")
    promote.promote(number, "x")
    for name in (*names, "refit.dvc_lock_sha256", "refit.content_digest"):
        assert champion().tags[name] == said[name]


def test_changed_evidence_is_never_believed(passing: Path) -> None:
    number = candidate(0.7)
    digest = promote.review(number).digest
    stored = next((passing / "mlruns").rglob(f"{digest}.json"))
    original = stored.read_text()
    stored.write_text(original.replace('"verdict": "pass"', '"verdict": "hold"', 1))
    with pytest.raises(EvidenceError, match="is not what it was"):
        promote.promote(number, "x", is_forced=True)
    stored.unlink()
    with pytest.raises(EvidenceError, match="cannot be read"):
        promote.promote(number, "x", is_forced=True)


def test_a_candidate_that_was_deleted_meanwhile(passing: Path) -> None:
    number = candidate(0.7)
    client().delete_model_version("pets-candidates", number)
    with pytest.raises(TrackingError, match="pets-candidates"):
        promote.promote(number, "x")


def test_a_champion_whose_version_was_deleted_is_said(passing: Path) -> None:
    promote.promote(candidate(0.7), "first")
    client().delete_model_version("pets", "1")
    assert champion() is None
    past = promote.past_decisions()
    assert past.entries[-1].move.kind == "outside"
    assert (past.entries[-1].move.from_version, past.entries[-1].move.to_version) == ("1", None)


def test_moves_past_refit_are_shown(passing: Path) -> None:
    first, second = candidate(0.7), candidate(0.8)
    promote.promote(first, "first")
    compare()
    register_candidate()
    promote.promote(second, "second")
    client().set_registered_model_alias("pets", "champion", "1")
    last = promote.past_decisions().entries[-1]
    assert (last.move.kind, last.move.from_version, last.move.to_version) == ("outside", "2", "1")
    assert "moved past Refit" in last.note
    promote.rollback("2", "who did that?")
    kinds = [(entry.move.kind, entry.move.to_version) for entry in promote.past_decisions().entries]
    assert kinds == [("promote", "1"), ("promote", "2"), ("outside", "1"), ("rollback", "2")]


def test_a_copy_made_in_mlflows_pages_is_recognised_and_every_command_still_works(passing: Path) -> None:
    """[`refit diff` ended with 9 and a wrong message, and `rollback` went to the release before the last.]"""
    from refit.registry.versions import difference

    promote.promote(candidate(0.7), "first")
    promote.promote(candidate(0.8), "second")
    number = candidate(0.9)
    with tracking.connected(load_params().register) as mlflow:
        copied = mlflow.copy_model_version(f"models:/pets-candidates/{number}", "pets")
        mlflow.set_registered_model_alias("pets", "champion", copied.version)
    assert champion().version == "3"
    assert difference("champion", "1").first == "models:/pets/3"
    assert difference("previous", "champion").second == "models:/pets/3"
    last = promote.past_decisions().entries[-1]
    assert (last.move.kind, last.move.to_version) == ("outside", "3")
    assert "is a copy made in MLflow" in last.note
    assert compare().champion is not None
    with pytest.raises(EvidenceError, match="was copied past Refit and is no release"):
        promote.rollback("3", "x", is_dry_run=True)
    with pytest.raises(RefusedError, match="the champion changed since the comparison"):
        promote.promote(number, "the same, but as a release")
    promote.rollback(None, "who did that?")
    assert (champion().version, previous().version) == ("2", "3")
    assert compare().champion is not None
    assert register_candidate().version.version == number
    assert promote.promote(number, "now as a release").to == "models:/pets/4"
    kinds = [(entry.move.kind, entry.move.to_version) for entry in promote.past_decisions().entries]
    assert kinds == [("promote", "1"), ("promote", "2"), ("outside", "3"), ("rollback", "2"), ("promote", "4")]


# Faults


class Killed(BaseException):
    """The process is gone: no handler runs."""


WRITES = (
    "create_registered_model create_experiment create_logged_model log_model_artifacts finalize_logged_model "
    "create_model_version set_registered_model_tag set_registered_model_alias"
).split()
READS = "get_model_version search_model_versions get_model_version_by_alias get_registered_model get_experiment_by_name"


@contextmanager
def fault(monkeypatch: pytest.MonkeyPatch, number: int, kind: str) -> Iterator[list[str]]:
    """The call of that number goes wrong: `down` before it takes effect, `lost` and `killed` after it did."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    seen: list[str] = []

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            if len(seen) != number:
                return original(*arguments, **options)
            if kind == "down":
                raise MlflowException("503 from the server")
            original(*arguments, **options)
            raise Killed if kind == "killed" else MlflowException("the reply was lost")

        return call

    with monkeypatch.context() as patch:
        for name in (*WRITES, *READS.split()):
            patch.setattr(MlflowClient, name, wrapped(name, getattr(MlflowClient, name)))
        yield seen


def copied(template: Path, name: str) -> None:
    shutil.copytree(template, template.parent / name)
    os.chdir(template.parent / name)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def attempt(act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, number: int, kind: str) -> list[str]:
    with fault(monkeypatch, number, kind) as seen, suppress(Killed, TrackingError, EvidenceError):
        act()
    return seen


def promote_second() -> Any:
    return promote.promote("2", "second")


def roll_back() -> Any:
    return promote.rollback("1", "back")


def roll_back_to_previous() -> Any:
    return promote.rollback(None, "back")


@pytest.mark.parametrize("act", [promote_second, roll_back, roll_back_to_previous])
def test_after_every_fault_a_repetition_finishes_and_doubles_nothing(
    passing: Path, act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the decision in turn: server down, reply lost, process killed; then the same command again."""
    promote.promote(candidate(0.7), "first")
    candidate(0.8)
    if act is not promote_second:
        promote_second()
    before, target = ("1", "2") if act is promote_second else ("2", "1")
    copied(passing, "counted")
    calls = attempt(act, monkeypatch, 0, "down")
    num_faults = 0
    for number, name in enumerate(calls, start=1):
        for kind in ("down", ("lost", "killed")[number % 2]) if name in WRITES else ("down",):
            copied(passing, f"{number}-{kind}")
            attempt(act, monkeypatch, number, kind)
            assert champion().version in (before, target), "always one complete model"
            promote.released(champion().version)
            act()
            assert (champion().version, previous().version) == (target, before), (name, kind)
            done = [e.move for e in promote.past_decisions().entries if e.move.state == "done"]
            assert [move.to_version for move in done][-2:] == [before, target], (name, kind)
            assert len(client().search_model_versions("name='pets'")) == 2, (name, kind)
            assert not [entry for entry in promote.past_decisions().entries if entry.note], (name, kind)
            num_faults += 1
    assert num_faults >= 20, calls


def test_two_reviewers_at_once_never_both_win(passing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other reviewer promotes another candidate, whole, between any two calls of the first."""
    from mlflow import MlflowClient

    promote.promote(candidate(0.7), "first")
    candidate(0.8)
    candidate(0.9)
    outcomes = set()
    for boundary in range(1, 30):
        copied(passing, f"race-{boundary}")
        winners: list[str] = []
        calls = 0

        def other(winners: list[str] = winners) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(releases, "actor", lambda _settings: "ben")
                try:
                    promote.promote("3", "ben's choice")
                    winners.append("3")
                except RefusedError:
                    pass

        names = (
            "set_registered_model_tag",
            "set_registered_model_alias",
            "get_model_version_by_alias",
            "get_registered_model",
        )
        originals = {name: getattr(MlflowClient, name) for name in names}

        def between(name: str, boundary: int = boundary, other: Any = other, originals: Any = originals) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == boundary:
                    other()
                return originals[name](*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(MlflowClient, name, between(name))
            patch.setattr(releases, "actor", lambda _settings: "ann")
            try:
                promote.promote("2", "ann's choice")
                winners.append("2")
            except RefusedError:
                pass
        if calls < boundary:
            break
        outcomes.add(tuple(winners))
        assert len(winners) <= 1, boundary
        tags = champion().tags["refit.candidate"]
        assert tags == f"models:/pets-candidates/{winners[0] if winners else '1'}", boundary
    assert outcomes >= {("2",), ("3",)}


def test_what_happens_while_a_release_is_packed_and_uploaded_counts(
    passing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[A claim bore the time of before, so it was over when it was written; a rejection was not seen.]"""
    number, settings, release = candidate(0.7), load_params().register, promote._release

    def meanwhile(act: Callable[[], Any]) -> None:
        def slowly(*arguments: Any) -> Any:
            found = release(*arguments)
            act()
            return found

        monkeypatch.setattr(promote, "_release", slowly)

    def claimed_by_somebody_with_a_slow_clock() -> None:
        move = releases.new_move(settings, "promote", "mine", None)
        then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
        releases.write_move(settings, dataclasses.replace(move, who="ben", when=then.isoformat(), to_version="9"))

    meanwhile(claimed_by_somebody_with_a_slow_clock)
    with pytest.raises(RefusedError, match="ben is deciding about pets right now"):
        promote.promote(number, "x")
    meanwhile(lambda: promote.reject(number, "cats look like dogs"))
    with pytest.raises(RefusedError, match=r"rejected it meanwhile: cats look like dogs; nothing was changed"):
        promote.promote(number, "x", is_forced=True)
    assert champion() is None
    ends: list[str] = []
    meanwhile(lambda: ends.append(datetime.datetime.now(datetime.UTC).isoformat()))
    move = promote.promote(number, "we talked about it", is_forced=True).move
    assert move is not None
    assert move.when > ends[0], "a claim begins when it is written"


def test_a_claim_of_somebody_who_is_gone_blocks_for_a_quarter_of_an_hour() -> None:
    now = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)

    def begun(minutes: int) -> Move:
        when = (now - datetime.timedelta(minutes=minutes)).isoformat()
        return Move("x", "promote", "begun", "ann", when, "r", None, "1", "c", "e", "pass")

    assert history.claims([begun(14)], now)
    assert not history.claims([begun(16)], now)
    assert not history.claims([begun(16)], now, past=[begun(16)])
    assert history.claims([begun(16)], now, past=[begun(99)]), "it came while one looked: somebody's clock is slow"
    assert not history.claims([dataclasses.replace(begun(1), state="withdrawn")], now)
    # A promotion moves the alias before it is written as done: that is no move past Refit.
    assert history.moved_past(history.timeline([begun(1)], "1"), now) is None
    assert history.moved_past(history.timeline([begun(16)], "1"), now) is not None
    assert history.moved_past(history.timeline([dataclasses.replace(begun(1), state="done")], "1"), now) is None
    assert history.moved_past((), now) is None


def test_the_history_is_read_as_of_one_moment(passing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[A promotion between two calls looked like a move past Refit, of which `watch` told.]"""
    from mlflow import MlflowClient

    promote.promote(candidate(0.7), "first")
    candidate(0.8)
    original = MlflowClient.get_registered_model
    with monkeypatch.context() as patch:

        def promoted_after(*arguments: Any) -> Any:
            found = original(*arguments)
            patch.undo()
            promote_second()
            return found

        patch.setattr(MlflowClient, "get_registered_model", promoted_after)
        past = promote.past_decisions()
    assert (past.champion, [entry.move.kind for entry in past.entries]) == ("models:/pets/1", ["promote"])
    assert promote.past_decisions().champion == "models:/pets/2"


def test_a_record_that_was_spoiled_by_hand_is_shown_as_that() -> None:
    moves = history.from_tags({f"{history.TAG}x": "{broken", "other": "y"})
    assert [(move.state, move.id) for move in moves] == [("unreadable", "x")]
    assert history.timeline(moves, None)[0].move.state == "unreadable"
