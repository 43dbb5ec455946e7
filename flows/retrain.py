"""The retraining flow: bring data, validate, fetch, fine-tune, evaluate, compare, register.

    from flows.retrain import retrain
    retrain(deliver="commit")

Each step of the pure work is the DVC stage of that name; there is no second copy of it here. What the flow adds
are the effects: new data, a worker to train on, a commit, a push, a registered candidate, and pages to read.
"""

import datetime
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Literal

import pandas as pd
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed

from flows.finetune import shown_and_kept, train_on_worker
from flows.prepare import prepare
from flows.tools import commits, pipeline, policy
from flows.tools.data_changes import last_run, publish_changes
from flows.tools.liveness import SERVER_TROUBLE, is_over, reconcile, reporting, server_id
from flows.tools.notifications import tell
from refit import paths
from refit.data.summary import ValidationSummary
from refit.errors import DataError, TrackingError, TrackingUnavailableError, WorkspaceError
from refit.files import sha256_of_file
from refit.gate.comparison import Comparison
from refit.locks import one_at_a_time
from refit.params import Params, load_params, moves
from refit.records import as_plain, read_record
from refit.registry import champion, local_registry, tracking
from refit.registry.origin import FLOW_RUN_LINK_TAG
from refit.registry.provenance import git_state
from refit.reports.changes import changes_markdown
from refit.reports.evaluation import evaluation_markdown
from refit.reports.validation import validation_markdown
from refit.scoring.evaluation import Evaluation
from tasks.compare import compare as compare_with_champion
from tasks.register import Registration, find_registered, register_candidate

Deliver = Literal["workspace", "commit", "branch"]

_EFFECT: dict[str, Any] = {
    "cache_policy": NO_CACHE,  # DVC is the cache
    "persist_result": False,
    "retries": len(policy.RETRY_DELAYS_SECONDS),
    "retry_delay_seconds": policy.RETRY_DELAYS_SECONDS,
    "retry_condition_fn": policy.may_help,
}


def _run_name() -> str:
    commit = git_state().commit
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"retrain {load_params().register.model_name} {today} {commit[:7]}"


def retrain_here(deliver: Deliver) -> State[Any]:
    """The flow, in this process. Prefect's heartbeat, of which `reporting` has no need, would end a second late."""
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return retrain(deliver=deliver, return_state=True)  # type: ignore[return-value]  # it is no coroutine


@flow(name="retrain", flow_run_name=_run_name, persist_result=False)
def retrain(deliver: Deliver = "workspace") -> Any:
    """Retrain on the present params and data, and register the result as the candidate.

    Args:
        deliver: where the run ends. `workspace`: in this folder. `commit`: in a git commit too, and `dvc push` where
            there is a remote. `branch` (for schedules, in a clean checkout): new data is brought in first; with
            nothing new the run ends at once; else it ends in a pushed branch `retrain/<run>`.
    """
    policy.keep_logs_short()
    params = load_params()
    local_registry.check(tracking.tracking_uri(params.register))  # one that is away may be back when it is needed
    with reporting():
        cleaning = clean_up.submit(params)  # beside the stages: it looks at other runs only
        if deliver == "branch":
            bring_data()
            cleaning.result()  # the run may end here
            if known := already_registered(params):
                return nothing_to_do(known)
            commits.start_branch(_branch())
        elif deliver == "commit":
            commits.require_clean_code()
            pipeline.require_tracked_source(params.data.source)
        run_stage("environment")
        run_stage("sample")
        before = run_before()
        if params.flow.ingest_runner is not None and not pipeline.is_unchanged("ingest"):
            prepare(params.flow.ingest_runner)
        run_stage("ingest")
        pipeline.bring_examples(params.data.source)
        try:
            run_stage("validate")
        finally:
            show_validation(before, params)
        keep_classes(params)
        run_stage("fetch")
        if params.flow.training_deployment is not None:
            train_elsewhere(params, deliver)
        run_stage("finetune", is_kept=deliver == "branch" and params.flow.training_deployment is None)
        run_stage("evaluate")
        show_evaluation()
        run_stage("suspects")
        pipeline.require_unchanged(params.data.source)
        if deliver != "workspace":
            keep(f"Retrain {params.register.model_name}: {_headline()}", deliver)
        cleaning.result()
        with one_at_a_time():
            compare()
            return register()


@task(task_run_name="{stage}", **_EFFECT)
def run_stage(stage: str, is_kept: bool = False) -> State[None]:
    """Reproduce one DVC stage, unless it is unchanged.

    Args:
        stage: its name.
        is_kept: whether the state of a training goes to the DVC remote meanwhile: a checkout may not outlive its run.
    """
    logger = get_run_logger()
    try:
        hours = load_params().flow.stage_timeout_hours
        is_forced = stage == "ingest" and paths.ACCIDENTS.exists()  # which DVC knows nothing of
        with shown_and_kept(logger, is_kept) if stage == "finetune" else nullcontext():
            is_new = pipeline.reproduce(stage, logger.info, timeout_seconds=3600 * hours, is_forced=is_forced)
        if not is_new:
            if stage == "fetch" and moves(uri := load_params().checkpoint.uri):
                logger.info("%s is not looked up again; `dvc repro -f fetch` does that", uri)
            return Completed(name="Unchanged", message="its code, params and inputs are those of the last run")
    except DataError as error:
        tell("refit.data.rejected", str(error))
        raise
    return Completed(message="reproduced")


@task(task_run_name="train elsewhere", cache_policy=NO_CACHE, persist_result=False)
def train_elsewhere(params: Params, deliver: Deliver) -> State[None]:
    """Send the training to a worker; its result comes back through the DVC remote."""
    logger = get_run_logger()
    if pipeline.is_unchanged("finetune"):
        return Completed(name="Unchanged", message="trained before")
    if deliver != "branch":
        raise WorkspaceError(
            "`flow.training_deployment` needs what git and DVC carry to the worker: run with --branch (or as the "
            "scheduled deployment), or set it to null to train here"
        )
    commit = commits.commit_run("Inputs of the training")
    policy.retried(pipeline.push, logger.warning)
    policy.retried(lambda: commits.push_branch(_branch()), logger.warning)
    train_on_worker(commit, params.flow, str(flow_run.id), logger.info)
    policy.retried(pipeline.fetch_results, logger.warning)
    pipeline.reproduce("finetune", _only_restoring(logger.info))
    return Completed(message="trained by a worker")


@task(task_run_name="register", **_EFFECT)
def register() -> dict[str, Any]:
    """Register the candidate in MLflow, and link to it from this run's page."""
    registration = find_registered() or register_candidate(
        {
            tracking.FLOW_RUN_TAG: str(flow_run.id),
            tracking.SERVER_TAG: server_id(),
            **({FLOW_RUN_LINK_TAG: address} if (address := str(flow_run.ui_url or "")).startswith("http") else {}),
        }
    )
    version = registration.version
    known = "new" if registration.is_new else "this content was registered before"
    get_run_logger().info("candidate: %s version %s (%s)", version.model_name, version.version, known)
    if registration.is_new:  # first: once more, it is known
        tell("refit.candidate.waiting", f"{version.uri} waits for review: {_headline()}")
    for name, address in registration.links.items():
        create_link_artifact(key=f"mlflow-{name}", link=address, link_text=f"MLflow {name}")
    return _summary(registration)


@task(task_run_name="compare", **_EFFECT)
def compare() -> State[None]:
    """Compare the candidate with the champion; the verdict is for a person, and stops nothing here."""
    if find_registered() is not None:
        return Completed(name="Unchanged", message="it was registered, with a comparison with the present champion")
    comparison = compare_with_champion()
    get_run_logger().info("gate: %s: %s", comparison.verdict, "; ".join(comparison.reasons))
    summary = paths.COMPARISON_SUMMARY.read_text()
    create_markdown_artifact(summary, key="comparison", description="Candidate and champion")
    return Completed(message=f"the gate says: {comparison.verdict}")


@task(task_run_name="commit", **_EFFECT)
def keep(message: str, deliver: Deliver) -> str:
    """Commit the run; push its data where there is a DVC remote, and then its branch."""
    sha = commits.commit_run(message)
    pushed = pipeline.push()
    if deliver == "branch":
        commits.push_branch(_branch())
    get_run_logger().info("commit %s%s", sha[:12], ", data pushed" if pushed else "; no DVC remote, so no push")
    return sha


@task(task_run_name="bring data", **_EFFECT)
def bring_data() -> str | None:
    """New data in, and the record of the last run, so that what is known is not computed again."""
    logger = get_run_logger()
    last = commits.adopt_last_run()
    logger.info("last run: %s", last or "none")
    pipeline.update_sources(logger.info)
    return last


@task(task_run_name="look for news", **_EFFECT)
def already_registered(params: Params) -> dict[str, Any] | None:
    """The version that this very code, params and data gave before, if all of it is known and registered."""
    if not pipeline.is_known():
        return None
    version = tracking.version_with_tag(params.register, "refit.dvc_lock_sha256", sha256_of_file(paths.LOCK))
    return None if version is None else {"uri": version.uri, "git_commit": version.tags.get("refit.git_commit")}


@task(task_run_name="clean up", cache_policy=NO_CACHE, persist_result=False)
def clean_up(params: Params) -> None:
    """Runs whose process is gone are RUNNING for ever, in Prefect and in MLflow, unless somebody looks.

    A server that does not answer is no reason to stop: the next run looks again.
    """
    logger = get_run_logger()
    try:
        if lost := reconcile(params.flow.worker_silence_seconds):
            logger.warning("declared lost, since silent: %s", ", ".join(lost))
        ended = tracking.end_runs(
            params.register, server_id(), lambda run_id: run_id != str(flow_run.id) and is_over(run_id)
        )
    except (TrackingError, *SERVER_TROUBLE) as error:
        logger.warning("not cleaned up: %s", error)
    else:
        if ended:
            logger.warning("MLflow runs of dead flow runs marked as killed: %s", ", ".join(ended))


def nothing_to_do(known: dict[str, Any]) -> State[dict[str, Any]]:
    """End the run: neither data nor params nor code are new."""
    message = f"neither data nor params nor code are new since {known['uri']}"
    create_markdown_artifact(f"## Nothing to do\n{message}.", key="news", description="Nothing to do")
    return Completed(name="NothingToDo", message=message, data=known)


@task(task_run_name="classes of the champion", cache_policy=NO_CACHE, persist_result=False)
def keep_classes(params: Params) -> None:
    """Stop before anything is trained that could not say what the champion says.

    A registry that does not answer is no reason to stop: without it there is no comparison and no candidate either.
    """
    try:
        champion.require_its_classes(params)
    except TrackingUnavailableError as error:
        get_run_logger().warning("not known whether the champion has classes that are missing here: %s", error)
    except DataError as error:
        tell("refit.data.rejected", str(error))
        raise


def run_before() -> pd.DataFrame | None:
    """What the last run found in the data: by the tables that are here, or that the DVC remote has."""
    if not paths.MANIFEST.exists() and paths.LOCK.exists():
        pipeline.pull([paths.MANIFEST.as_posix(), paths.REJECTED.as_posix()])
    return last_run()


def show_validation(before: pd.DataFrame | None, params: Params) -> None:
    """The validation, and what is new since the last run, as artifacts of the flow run; those of a run that the data
    stopped too."""
    if not paths.VALIDATION_SUMMARY.exists():  # the stage did not come to its end
        return
    summary = read_record(paths.VALIDATION_SUMMARY, ValidationSummary, WorkspaceError)
    create_markdown_artifact(validation_markdown(summary), key="validation", description="Data validation")
    text = changes_markdown(publish_changes(before, params.data.modality), params.data.source)
    get_run_logger().info(text.splitlines()[1])
    create_markdown_artifact(text, key="data-changes", description="Data since the last run")


def show_evaluation() -> None:
    """The evaluation as an artifact of the flow run."""
    evaluation = read_record(paths.EVALUATION, Evaluation, WorkspaceError)
    create_markdown_artifact(evaluation_markdown(evaluation), key="evaluation", description="Evaluation")


def _only_restoring(log: Any) -> Any:
    def show(line: str) -> None:
        if line.startswith("Running stage"):  # raising stops it at once
            raise WorkspaceError("the worker's result did not arrive through the DVC remote; is it the same for both?")
        log(line)

    return show


def _branch() -> str:
    started = flow_run.scheduled_start_time.strftime("%Y-%m-%d-%H%M")
    return f"retrain/{started}-{str(flow_run.id)[-6:]}"


def _headline() -> str:
    accuracy = read_record(paths.EVALUATION, Evaluation, WorkspaceError).overall["accuracy"]
    return f"test accuracy {accuracy.value:.4f} ({accuracy.low:.4f} to {accuracy.high:.4f})"


def _summary(registration: Registration) -> dict[str, Any]:
    version = registration.version
    comparison = read_record(paths.COMPARISON, Comparison, WorkspaceError)
    return {
        **{name: value for name, value in asdict(version).items() if name in ("model_name", "version", "run_id")},
        "uri": version.uri,
        "is_new": registration.is_new,
        "git_commit": version.tags["refit.git_commit"],
        "links": dict(registration.links),
        "gate": {"verdict": comparison.verdict, "reasons": list(comparison.reasons)},
        "page": paths.REVIEW.as_posix(),
        "overall": as_plain(read_record(paths.EVALUATION, Evaluation, WorkspaceError))["overall"],
    }
