"""Decisions and Prefect: nothing is decided by default, and nobody borrows a reviewer's account unasked."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from refit.errors import RefusedError
from refit.gate import history
from tasks.promote import past_decisions, review

from .servers import free_port, serving
from .services import environment, prefect_api
from .test_promote import candidate, champion, passing

__all__ = ["passing", "prefect_api"]  # fixtures

pytestmark = pytest.mark.usefixtures("no_processes")

PASSWORD = "reviewers:a-password-of-all"
OPT_IN = "REFIT_WHOEVER_REACHES_PREFECT_DECIDES"


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server that asks for a password."""
    home, port = tmp_path_factory.mktemp("protected"), free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    settings = environment(
        home,
        PREFECT_SERVER_API_AUTH_STRING=PASSWORD,
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_UI_ENABLED="false",
    )
    with serving(command, f"http://127.0.0.1:{port}/api/health", home, settings):
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def at(address: str, password: str | None = None) -> Iterator[None]:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: password}):
        yield


def test_by_default_nothing_is_decided_from_prefect(passing: Path, prefect_api: str) -> None:
    from flows import promote

    number = candidate(0.7)
    digest = review(number).digest
    with at(prefect_api):
        for decide in (
            lambda: promote.promote(number, "a bare curl", digest),
            lambda: promote.reject(number, "a bare curl", digest),
            lambda: promote.rollback("a bare curl"),
        ):
            with pytest.raises(RefusedError, match=r"nothing is decided from Prefect: .*`refit promote`"):
                decide()
    assert champion() is None
    assert past_decisions().entries == ()


def test_a_server_that_asks_nobody_for_a_password_decides_nothing(
    passing: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import promote

    monkeypatch.setenv(OPT_IN, "yes")
    number = candidate(0.7)
    digest = review(number).digest
    with at(prefect_api), pytest.raises(RefusedError, match="asks nobody for a password"):
        promote.promote(number, "a bare curl", digest)
    assert champion() is None


def test_where_it_is_wanted_the_form_asks_for_everything_and_the_history_says_so(
    passing: Path, protected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run suspends, is answered badly, then well, and is taken up again: as a worker would, without its minute."""
    from prefect.client.orchestration import SyncPrefectClient, get_client
    from prefect.exceptions import Pause
    from prefect.flow_engine import run_flow

    from flows.promote import approve, promote

    monkeypatch.setenv(OPT_IN, "yes")
    number = candidate(0.7)
    digest = review(number).digest

    def go_on(client: SyncPrefectClient, run_id: UUID) -> Any:
        return run_flow(approve, client.read_flow_run(run_id), {"version": number})

    with at(protected, PASSWORD), get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(approve), "approval")
        run = client.create_flow_run_from_deployment(deployment, parameters={"version": number})
        with pytest.raises(Pause):
            go_on(client, run.id)
        good = {"decision": "promote", "reason": "good on cats", "evidence": digest[:12], "reviewer": "ann"}
        bad: list[dict[str, Any]] = [{}, *({**good, name: " "} for name in good)]
        bad += [{name: value for name, value in good.items() if name != left_out} for left_out in good]
        for answer in bad:
            assert client.resume_flow_run(run.id, run_input=answer).status.value == "REJECT", answer
            assert champion() is None
        assert client.resume_flow_run(run.id, run_input=good).status.value == "ACCEPT"
        assert go_on(client, run.id)["to"] == "models:/pets/1"
        with pytest.raises(RefusedError, match="has the evidence"):
            promote(number, "another evidence than was seen", "0" * 12)
    assert champion().version == "1"
    (entry,) = past_decisions().entries
    assert entry.move.through == "Prefect"
    assert entry.move.reason == "good on cats (ann, in Prefect)"
    assert "through Prefect, by whoever reached it, with this account" in entry.note


def test_a_decision_of_an_older_version_is_read() -> None:
    tags = {
        f"{history.TAG}x": '{"id": "x", "kind": "promote", "state": "done", "who": "ann", "when": "2026-01-01", '
        '"reason": "r", "from_version": null, "to_version": "1", "candidate": "c", "evidence": "e", "verdict": "pass"}'
    }
    (move,) = history.from_tags(tags)
    assert (move.through, move.state) == ("", "done")
