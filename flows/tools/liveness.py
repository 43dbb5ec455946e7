"""Who is still alive: a running flow reports every few seconds, and whoever stops reporting is found out.

    with reporting(): …                 in a flow: a thread that touches a progress artifact of this run
    last_report(client, run_id)         when a run reported last, or None
    reconcile(silence_seconds)          at start-up: runs that are RUNNING and silent become CRASHED

Prefect leaves a run whose process was killed together with its worker in RUNNING for ever. Times are compared as
the server stamped them, so the clocks of the machines do not matter.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate, VariableCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterType,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed

from refit.errors import OrchestratorUnavailableError

FLOWS = ("retrain", "finetune")
SERVER_TROUBLE = (httpx.TransportError, PrefectHTTPStatusError)
_SECONDS_BETWEEN_REPORTS = 5.0
_LIFE_SIGN = "refit-life-sign"
_SERVER_ID = "refit_server_id"


class Reporter:
    """Reports from a thread; `progress` (0 to 100) is what the run's page shows."""

    def __init__(self) -> None:
        self.progress = 0.0
        self._stop = Event()
        self._thread = Thread(target=self._report, args=(flow_run.id,), daemon=True)

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def stop(self) -> None:
        """Report no more."""
        self._stop.set()
        self._thread.join(_SECONDS_BETWEEN_REPORTS)

    def _report(self, run_id: str) -> None:
        with get_client(sync_client=True) as client:
            artifact_id = None
            while not self._stop.is_set():
                try:
                    if artifact_id is None:
                        artifact_id = _create(client, run_id)
                    else:
                        client.update_artifact(artifact_id, ArtifactUpdate(data=self.progress))
                except SERVER_TROUBLE as error:
                    # The work goes on; whether the server comes back in time is for the one who waits to say.
                    logging.getLogger("prefect.flow_runs").debug("no life sign: %s", error)
                self._stop.wait(_SECONDS_BETWEEN_REPORTS)


def require_server() -> None:
    """Fail early when there is no server, or the one that PREFECT_API_URL names does not answer.

    Raises:
        OrchestratorUnavailableError: so it is.
    """
    address = PREFECT_API_URL.value()
    if not address:
        raise OrchestratorUnavailableError(
            "no Prefect server is named, and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE forbids a temporary one; "
            "set PREFECT_API_URL, or allow it"
        )
    with get_client(sync_client=True) as client:
        trouble = client.api_healthcheck()
    if trouble is not None:
        raise OrchestratorUnavailableError(
            f"the Prefect server at {address} does not answer ({type(trouble).__name__}); start it with "
            "`prefect server start`, or unset PREFECT_API_URL to do without one"
        )


@contextmanager
def reporting() -> Iterator[Reporter]:
    """Report that this flow run is alive for as long as the block lasts."""
    reporter = Reporter()
    reporter.start()
    try:
        yield reporter
    finally:
        reporter.stop()


def last_report(client: SyncPrefectClient, run_id: UUID) -> datetime | None:
    """When a flow run reported last, by the server's clock."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(type=ArtifactFilterType(any_=["progress"])),
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])),
    )
    return max((artifact.updated for artifact in found if artifact.updated), default=None)


def reconcile(silence_seconds: int) -> list[str]:
    """Mark runs of our flows as crashed that are RUNNING but silent; give their names."""
    with get_client(sync_client=True) as client:
        now = _server_time(client)
        running = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS))),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
            ),
        )
        silent = [
            run for run in running if str(run.id) != flow_run.id and _is_silent(client, run, now, silence_seconds)
        ]
        for run in silent:
            declare_lost(client, run.id)
        return [run.name for run in silent]


def server_id() -> str:
    """Names this Prefect server for good, whatever its address: a variable in its database, made when first asked for.

    A temporary server has another port each time, and the same address is another server on another machine.
    """
    with get_client(sync_client=True) as client:
        found = client.read_variable_by_name(_SERVER_ID)
        if found is None:
            with suppress(ObjectAlreadyExists):  # another run's, at the same time
                client.create_variable(VariableCreate(name=_SERVER_ID, value=uuid4().hex))
            found = client.read_variable_by_name(_SERVER_ID)
        assert found is not None
        return str(found.value)


def is_over(run_id: str) -> bool:
    """Whether a flow run of this server has ended, or was deleted there."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run_id)).state
        except (ObjectNotFound, ValueError):
            return True
        return state is not None and state.is_final()


def declare_lost(client: SyncPrefectClient, run_id: UUID) -> None:
    """The run's process is gone: say so, against Prefect's rules if need be."""
    client.set_flow_run_state(run_id, Crashed(message="it stopped reporting: its worker is gone"), force=True)


def _is_silent(client: SyncPrefectClient, run: Any, now: datetime, silence_seconds: int) -> bool:
    heard = last_report(client, run.id) or run.start_time or run.created
    return bool(now - heard > timedelta(seconds=silence_seconds))


def _server_time(client: SyncPrefectClient) -> datetime:
    artifact = client.create_artifact(ArtifactCreate(type="progress", data=0.0, flow_run_id=UUID(flow_run.id)))
    assert artifact.created is not None
    return artifact.created


def _create(client: SyncPrefectClient, run_id: str) -> UUID:
    artifact = ArtifactCreate(
        key=_LIFE_SIGN, type="progress", description="progress of this run", data=0.0, flow_run_id=UUID(run_id)
    )
    return client.create_artifact(artifact).id
