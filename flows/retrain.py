"""The retraining flow: validate, fetch, fine-tune, evaluate, compare, register.

    from flows.retrain import retrain
    retrain(commit=True)

Each step of the pure work is the DVC stage of that name; there is no second copy of it here. What the flow adds
are the effects: a commit, a push, a registered candidate, and pages for people to read.
"""

import datetime
import json
from dataclasses import asdict
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import get_run_context
from prefect.states import Completed

from flows import commits, pipeline, policy
from tasks import paths
from tasks.compare import compare as compare_with_champion
from tasks.params import load_params
from tasks.register import Registration, git_state, register_candidate
from tasks.reports import evaluation_markdown, validation_markdown


def _run_name() -> str:
    commit, _ = git_state()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"retrain {load_params().register.model_name} {today} {commit[:6]}"


@flow(name="retrain", flow_run_name=_run_name, persist_result=False)
def retrain(commit: bool = False) -> dict[str, Any]:
    """Retrain on the present data and params, and register the result as the candidate.

    Args:
        commit: end in a git commit with params.yaml, dvc.lock and the small metrics, and `dvc push` if there is a
            remote.
    """
    policy.keep_logs_short()
    params = load_params()
    if commit:
        commits.require_clean_code()
    run_stage("sample")
    run_stage("ingest")
    run_stage("validate")
    show_validation()
    run_stage("fetch")
    run_stage("finetune")
    run_stage("evaluate")
    show_evaluation()
    if commit:
        keep(f"Retrain {params.register.model_name}: {_headline()}")
    compare()
    return register()


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,  # DVC is the cache
    persist_result=False,
    retries=len(policy.RETRY_DELAYS_SECONDS),
    retry_delay_seconds=policy.RETRY_DELAYS_SECONDS,
    retry_condition_fn=policy.may_help,
)
def run_stage(stage: str) -> State[None]:
    """Reproduce one DVC stage, unless it is unchanged."""
    logger = get_run_logger()
    if pipeline.is_unchanged(stage):
        logger.info("unchanged: nothing to do")
        return Completed(name="Unchanged", message="its code, params and inputs are those of the last run")
    pipeline.reproduce(stage, logger.info)
    return Completed(message="reproduced")


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(policy.RETRY_DELAYS_SECONDS),
    retry_delay_seconds=policy.RETRY_DELAYS_SECONDS,
    retry_condition_fn=policy.may_help,
)
def register() -> dict[str, Any]:
    """Register the candidate in MLflow, and link to it from this run's page."""
    registration = register_candidate({"prefect.flow_run_id": _flow_run_id()})
    version = registration.version
    known = "new" if registration.is_new else "this content was registered before"
    get_run_logger().info("candidate: %s version %s (%s)", version.model_name, version.version, known)
    for name, address in registration.links.items():
        create_link_artifact(key=f"mlflow-{name}", link=address, link_text=f"MLflow {name}")
    return _summary(registration)


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(policy.RETRY_DELAYS_SECONDS),
    retry_delay_seconds=policy.RETRY_DELAYS_SECONDS,
    retry_condition_fn=policy.may_help,
)
def compare() -> str:
    """Compare the candidate with the champion; the verdict is for a person, and stops nothing here."""
    comparison = compare_with_champion()
    get_run_logger().info("gate: %s: %s", comparison["verdict"], "; ".join(comparison["reasons"]))
    summary = paths.COMPARISON_SUMMARY.read_text()
    create_markdown_artifact(summary, key="comparison", description="Candidate and champion")
    return str(comparison["verdict"])


@task(cache_policy=NO_CACHE, persist_result=False)
def keep(message: str) -> str:
    """Commit the run; push its data where there is a DVC remote."""
    sha = commits.commit_run(message)
    pushed = pipeline.push_outputs()
    get_run_logger().info("commit %s%s", sha[:12], ", data pushed" if pushed else "; no DVC remote, so no push")
    return sha


def show_validation() -> None:
    """The validation as an artifact of the flow run."""
    summary = json.loads(paths.VALIDATION_SUMMARY.read_text())
    create_markdown_artifact(validation_markdown(summary), key="validation", description="Data validation")


def show_evaluation() -> None:
    """The evaluation as an artifact of the flow run."""
    evaluation = json.loads(paths.EVALUATION.read_text())
    create_markdown_artifact(evaluation_markdown(evaluation), key="evaluation", description="Evaluation")


def _headline() -> str:
    accuracy = json.loads(paths.EVALUATION.read_text())["overall"]["accuracy"]
    return f"test accuracy {accuracy['value']:.4f} ({accuracy['low']:.4f} to {accuracy['high']:.4f})"


def _summary(registration: Registration) -> dict[str, Any]:
    version = registration.version
    return {
        **{name: value for name, value in asdict(version).items() if name in ("model_name", "version", "run_id")},
        "uri": version.uri,
        "is_new": registration.is_new,
        "git_commit": version.tags["refit.git_commit"],
        "links": dict(registration.links),
        "overall": json.loads(paths.EVALUATION.read_text())["overall"],
    }


def _flow_run_id() -> str:
    context: Any = get_run_context()
    return str(context.task_run.flow_run_id)
