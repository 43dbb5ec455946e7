"""Whether there is a champion: never guessed, on a real local registry and on a real MLflow server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.cli.status import describe, gather
from refit.errors import EvidenceError, RefusedError, TrackingError
from refit.gate import history
from refit.gate.history import Move
from refit.params import load_params
from refit.registry import releases, tracking, versions
from tasks import promote
from tasks.compare import compare
from tasks.register import register_candidate
from tasks.withdraw import withdraw

from .conftest import change_params, commit_all
from .services import mlflow_server
from .test_promote import decided
from .test_tracking import client

__all__ = ["mlflow_server"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_processes")


def champion() -> Any:
    return releases.champion(load_params().register)


def move(**changes: Any) -> Move:
    values: dict[str, Any] = {
        "id": "x", "kind": "promote", "state": "done", "who": "ann", "when": "2026-01-01T12:00:00", "reason": "r",
        "from_version": None, "to_version": "1", "candidate": None, "evidence": "", "verdict": "",
    }  # fmt: skip
    return Move(**values | changes)


WITHDRAWAL = move(kind="withdraw", from_version="1", to_version=None)
SPOILED = history.from_tags({f"{history.TAG}x": "{broken"})[0]


@pytest.mark.parametrize(
    ("moves", "previous", "expected"),
    [
        ([], None, None),
        ([move()], None, "ann made version 1 the champion at 2026-01-01T12:00:00"),
        ([move(), WITHDRAWAL], "1", None),
        ([move(), WITHDRAWAL, move(kind="rollback", to_version="3")], None, "ann made version 3 the champion"),
        ([move(state="begun"), move(state="overtaken"), move(kind="reject", to_version=None)], None, None),
        ([move(state="begun")], "2", "version 2 is marked as the one before it"),
        ([SPOILED], None, "a record of a decision is unreadable"),
        ([SPOILED, WITHDRAWAL], None, None),
    ],
)
def test_what_speaks_against_no_champion(moves: list[Move], previous: str | None, expected: str | None) -> None:
    found = history.trace_of_a_champion(moves, previous)
    assert (found is None) == (expected is None)
    assert found is None or expected in found


@pytest.fixture
def registry(request: pytest.FixtureRequest, committed: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model with a champion, in a database of its own or on a server."""
    decided(monkeypatch, "pass")
    name = "pets"
    if getattr(request, "param", "database") == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_server"))
        name = "pets-of-a-champion"
        change_params(committed / "params.yaml", {"register.model_name": name})
        commit_all(committed, monkeypatch, "params.yaml")
    assert champion() is None, "no such model"
    compare()
    register_candidate()
    assert champion() is None, "candidates only"
    promote.promote("1", "first")
    assert champion().version == "1"
    return name


def refuses(act: Callable[[], Any], expected: str) -> None:
    with pytest.raises(EvidenceError, match=expected) as caught:
        act()
    assert caught.value.exit_code == 13


@pytest.mark.parametrize("registry", ["database", "server"], indirect=True)
def test_a_champion_that_was_taken_away_is_not_no_champion(registry: str) -> None:
    client().delete_registered_model_alias(registry, "champion")
    made = r"names no champion of .*: .* made version 1 the champion at .*`refit rollback --to N`.*`refit withdraw`"
    for act in (champion, compare, register_candidate, lambda: promote.promote("1", "x", is_forced=True)):
        refuses(act, made)
    refuses(lambda: versions.find("champion", load_params().register), made)
    assert "names no champion" in describe(gather())
    assert promote.rollback("1", "who did that?").to == f"models:/{registry}/1"
    assert champion().version == "1"
    notes = [entry.move.kind for entry in promote.past_decisions().entries]
    assert notes == ["promote", "outside", "rollback"]


def test_a_reviewer_can_say_that_there_is_to_be_none(registry: str) -> None:
    with pytest.raises(RefusedError, match=r"/1 is the champion; whoever manages .* deletes the alias 'champion'"):
        withdraw("the product was stopped")
    client().delete_registered_model_alias(registry, "champion")
    with pytest.raises(RefusedError, match="needs a reason"):
        withdraw(" ")
    assert withdraw("the product was stopped", is_dry_run=True).from_version == "1"
    refuses(champion, "made version 1 the champion")
    withdraw("the product was stopped")
    assert champion() is None
    compare()
    register_candidate()
    last = promote.past_decisions().entries
    assert [(entry.move.kind, entry.move.from_version, entry.move.to_version) for entry in last[1:]] == [
        ("withdraw", "1", None)
    ]
    promote.promote("1", "started again")
    assert champion().version == "1"


def test_a_model_that_was_deleted_is_not_no_champion(registry: str) -> None:
    client().rename_registered_model(registry, f"{registry}-old")
    refuses(champion, "its releases are there, so the model itself was deleted or renamed")
    withdraw("a new beginning")
    assert champion() is None


def test_a_refusal_is_not_no_champion(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[An answer INVALID_PARAMETER_VALUE whose text holds "alias" was taken for "there is none".]"""
    from mlflow import MlflowClient
    from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

    def refuse(*_arguments: Any) -> Any:
        raise MlflowException("this gateway knows no alias of that kind", INVALID_PARAMETER_VALUE)

    for name in ("get_model_version_by_alias", "get_registered_model"):
        monkeypatch.setattr(MlflowClient, name, refuse)
    for ask in (champion, lambda: tracking.version_with_alias(load_params().register, "champion")):
        with pytest.raises(TrackingError, match="refused: this gateway"):
            ask()


def test_the_withdrawal_is_a_command(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli import main

    decided(monkeypatch, "pass")
    compare()
    register_candidate()
    promote.promote("1", "first")
    client().delete_registered_model_alias("pets", "champion")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    result = CliRunner().invoke(main, ["withdraw", "--reason", "stopped"])
    assert result.exit_code == 0, result.output
    assert "there is no champion (before: 1), by " in result.output
    shown = CliRunner().invoke(main, ["history"]).output
    assert "withdraw  1 -> none" in shown
