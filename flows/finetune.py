"""The training, on a worker that has what it needs (a GPU), and how the retraining flow sends it there.

    finetune(commit)              the worker's flow: the inputs of one commit in, the trained model out
    train_on_worker(...)          the other side: send, watch, and send again if the worker is lost

What travels is git (the commit) and the DVC remote (the stage's inputs one way; its outputs, and the run cache that
says what came from what, the other way). A training that ran twice pushes the same content twice: nothing doubles.
The state of a training that goes on travels there too: when its worker is lost, the next one goes on from it.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

import pandas as pd
from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import CancelledRun, ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelling

from flows.tools import commits, pipeline, policy
from flows.tools.liveness import SERVER_TROUBLE, Reporter, declare_lost, last_report, reporting, server_id
from flows.tools.state_mirror import NoMirror, mirrored
from refit import errors, paths
from refit.checkpoint.card import BaseCard
from refit.errors import CheckpointError, ParamsError, RefitError, WorkerLostError, WorkspaceError
from refit.params import Flow, load_params
from refit.records import digest_of_record, read_record
from refit.registry import live, tracking
from refit.training.lineage import lineage_of
from tasks import environment

_SECONDS_BETWEEN_LOOKS = 3.0
_DONE = re.compile(r"(?:training: step|epoch) +([\d,]+)(?:/| of )([\d,]+)")
_PENDING_PATIENCE = 10  # a container may be pulled for so many times the silence of a running worker


@flow(name="finetune", flow_run_name="finetune {commit}", persist_result=False)
def finetune(commit: str) -> None:
    """Train what a commit describes and push the result to the DVC remote.

    Args:
        commit: 40 hexadecimal digits, on the git remote, with the dvc.lock of the stages before the training.
    """
    policy.keep_logs_short()
    logger = get_run_logger()
    with reporting() as reporter:
        policy.retried(lambda: commits.check_out(commit), logger.warning)
        policy.retried(lambda: pipeline.pull(pipeline.inputs_of("finetune")), logger.warning)
        require_same_environment()
        policy.retried(pipeline.fetch_results, logger.warning)
        params, training = load_params(), training_here()
        with mirrored(training, logger) as mirror:
            with showing_curves(training, logger) if live.is_shared(params.register) else nullcontext():
                seconds = 3600 * params.flow.stage_timeout_hours
                pipeline.reproduce("finetune", _showing_progress(logger.info, reporter), timeout_seconds=seconds)
            policy.retried(pipeline.push, logger.warning)
            mirror.forget()


@contextmanager
def shown_and_kept(logger: "Logger | LoggerAdapter[Any]", keeps_state: bool) -> Iterator[None]:
    """For a training that the flow itself runs: its curves are shown; its state is kept if it would be lost here."""
    training = training_here()
    with mirrored(training, logger) if keeps_state else nullcontext(NoMirror()) as mirror:
        with showing_curves(training, logger):
            yield
        mirror.forget()


def showing_curves(training: str, logger: "Logger | LoggerAdapter[Any]") -> AbstractContextManager[None]:
    """The curves of the training that runs in the block, in MLflow."""
    tags = {tracking.FLOW_RUN_TAG: str(flow_run.id), tracking.SERVER_TAG: server_id()}
    return live.streaming(load_params().register, training, str(flow_run.name), tags, logger.warning)


def training_here() -> str:
    """Names what is to be trained here: the digest of its lineage.

    Raises:
        CheckpointError: the base checkpoint's card cannot be read.
    """
    base = read_record(paths.BASE_CARD, BaseCard, CheckpointError, "; run `dvc repro -f fetch`")
    return digest_of_record(lineage_of(load_params(), pd.read_parquet(paths.ACCEPTED), base))


def require_same_environment() -> None:
    """What another version of a library trained would be no result of the commit.

    Raises:
        WorkspaceError: which versions differ.
    """
    there = json.loads(paths.ENVIRONMENT.read_text())
    environment.main()
    here = json.loads(paths.ENVIRONMENT.read_text())
    if different := [
        f"{name} {here.get(name)} instead of {wanted}" for name, wanted in there.items() if here.get(name) != wanted
    ]:
        raise WorkspaceError(
            f"this worker has {', '.join(different)}; install what requirements.lock of the commit names, as the "
            "retraining that asks for this has it"
        )


def train_on_worker(commit: str, settings: Flow, parent_id: str, log: Callable[[str], None]) -> None:
    """Have a worker train a commit; come back when its result is on the DVC remote.

    A lost worker is replaced by the next one, `training_attempts` times in all. Interrupting this cancels it.

    Raises:
        ParamsError: there is no such deployment.
        WorkerLostError: no worker finished in time, or too many were lost.
        RefitError: the training failed, of the class and with the message of the worker's error.
    """
    deployment = settings.training_deployment
    assert deployment is not None
    deadline = time.monotonic() + settings.training_timeout_hours * 3600
    for attempt in range(1, settings.training_attempts + 1):
        run = _send(deployment, commit, f"{parent_id}/{attempt}")
        log(f"sent to {deployment} as {run.name!r} (attempt {attempt} of {settings.training_attempts})")
        state = _watch(run.id, settings, deadline, log)
        if state.is_completed():
            return
        if state.is_cancelled():
            raise CancelledRun(f"the training {run.name!r} was cancelled")
        if not state.is_crashed():
            raise _as_error(state)
        log(f"the worker of {run.name!r} is lost: {state.message}")
    raise WorkerLostError(
        f"{settings.training_attempts} workers were lost while training; look at their logs, then run again: "
        "what was finished is not computed again"
    )


def _send(deployment: str, commit: str, key: str) -> FlowRun:
    try:
        return run_deployment(deployment, parameters={"commit": commit}, timeout=0, idempotency_key=key)  # type: ignore[return-value]
    except ObjectNotFound:
        raise ParamsError(
            f"`flow.training_deployment` in params.yaml is {deployment!r}, which the Prefect server does not know; "
            "deploy it with `prefect deploy --all`, or set null to train in place"
        ) from None


def _watch(run_id: UUID, settings: Flow, deadline: float, log: Callable[[str], None]) -> State:
    """Wait for the run to end, or for its worker to be lost (CRASHED). Holds no slot and no lock meanwhile."""
    with get_client(sync_client=True) as client:
        try:
            return _wait(client, run_id, settings, deadline, log)
        except BaseException:
            client.set_flow_run_state(run_id, Cancelling(message="the retraining that asked for it was stopped"))
            raise


def _wait(
    client: SyncPrefectClient, run_id: UUID, settings: Flow, deadline: float, log: Callable[[str], None]
) -> State:
    sign: object = None
    changed = time.monotonic()
    while True:
        now = time.monotonic()
        try:
            run = client.read_flow_run(run_id)
            new_sign: object = (run.state_id, last_report(client, run_id))
        except SERVER_TROUBLE as error:
            log(f"the Prefect server does not answer ({type(error).__name__}); waiting for it")
            new_sign, run = object(), None  # silence of the server is not silence of the worker
        slow = time.monotonic() - now > _SECONDS_BETWEEN_LOOKS  # the server hung, for the worker as well
        if new_sign != sign or slow:
            sign, changed = new_sign, time.monotonic()
        if run is not None and run.state is not None:
            if run.state.is_final():
                return run.state
            patience = settings.worker_silence_seconds * (1 if run.state.is_running() else _PENDING_PATIENCE)
            if (run.state.is_running() or run.state.is_pending()) and now - changed > patience:
                declare_lost(client, run_id)
                continue
        if now > deadline:
            raise WorkerLostError(
                f"no worker of {settings.training_deployment} finished the training within "
                f"{settings.training_timeout_hours:g} hours; start one with `prefect worker start --pool <its pool>`"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _showing_progress(log: Callable[[str], None], reporter: Reporter) -> Callable[[str], None]:
    def show(line: str) -> None:
        log(line)
        if done := _DONE.match(line):
            steps, of = (int(number.replace(",", "")) for number in done.groups())
            reporter.progress = 100.0 * steps / max(1, of)

    return show


def _as_error(state: State) -> RefitError:
    message = state.message or "no message"
    if named := re.search(r"(\w+Error): (.*)", message, re.DOTALL):
        kind = getattr(errors, named[1], None)
        if isinstance(kind, type) and issubclass(kind, RefitError):
            return kind(named[2])
    return RefitError(f"the training on the worker failed: {message}")
