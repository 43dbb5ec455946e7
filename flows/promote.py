"""A reviewer's decision and Prefect: what its pages show, and what they may not do.

    approve                        shows the evidence and reminds until the decision stands in the registry, where a
                                   reviewer made it with an own account (`refit promote`, `refit reject`)
    promote, reject, rollback      carry a decision out with the account of the worker, if its operator allows that

Prefect's server has one password at most: whoever reaches it can start any of these, and is nobody in particular. So
the workers of these deployments need no more than a reader's account, and decide nothing, unless the operator says
otherwise (`flows/tools/forms.py`); then `approve` asks by a form, and the history says how it was decided.
"""

import datetime
import json
from typing import Annotated, Any, Literal
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Completed, Scheduled
from pydantic import Field

from flows.tools import forms, policy
from flows.tools.notifications import tell, tell_of_move
from flows.tools.rollout import roll_out
from refit.gate.history import Outcome
from refit.params import load_params
from refit.records import as_plain
from refit.registry import tracking
from refit.reports.review import review_markdown
from tasks import promote as decisions

SECONDS_TO_ANSWER = 14 * 24 * 3600  # a form; two weeks

Reason = Annotated[str, Field(min_length=1, pattern=r"\S", description="Why; kept in the history.")]
Evidence = Annotated[
    str, Field(pattern=r"^[0-9a-f]{12,64}$", description="Digest of the evidence that you saw; its first 12 digits do.")
]


class Decision(RunInput):
    """The answer to the form. Nothing in it has a default, but for the one that changes nothing."""

    decision: Literal["promote", "reject"] = Field(description="What to do with the candidate.")
    reason: Reason
    evidence: Evidence
    reviewer: str = Field(min_length=1, pattern=r"\S", description="Who you are; nobody checks it.")
    is_forced: bool = Field(default=False, description="Promote although the gate did not pass.")


@flow(name="promote", flow_run_name="promote {version}", persist_result=False)
def promote(
    version: str, reason: Reason, evidence: Evidence, is_forced: bool = False, is_dry_run: bool = False
) -> dict[str, object]:
    """Make a candidate the champion, with the account of the worker.

    Args:
        version: number of the candidate.
        reason: why; kept in the history.
        evidence: digest of the evidence that you saw (`refit review`).
        is_forced: although the gate did not pass.
        is_dry_run: check everything, change nothing.
    """
    policy.keep_logs_short()
    through = forms.require_allowed()
    return _told(decisions.promote(version, reason, evidence, is_forced, is_dry_run, through))


@flow(name="reject", flow_run_name="reject {version}", persist_result=False)
def reject(version: str, reason: Reason, evidence: Evidence, is_dry_run: bool = False) -> dict[str, object]:
    """Write down that a candidate is not wanted, with the account of the worker."""
    policy.keep_logs_short()
    through = forms.require_allowed()
    return _told(decisions.reject(version, reason, evidence, is_dry_run, through))


@flow(name="rollback", persist_result=False)
def rollback(reason: Reason, to: str | None = None, is_dry_run: bool = False) -> dict[str, object]:
    """Make an earlier release the champion again, with the account of the worker.

    Args:
        reason: why; kept in the history.
        to: number of the release; empty: the one before.
        is_dry_run: check all of it, change nothing.
    """
    policy.keep_logs_short()
    through = forms.require_allowed()
    return _told(decisions.rollback(to or None, reason, is_dry_run, through))


@flow(name="approve", flow_run_name="approve {version}", persist_result=True)
def approve(
    version: str,
    look_every_minutes: Annotated[float, Field(gt=0)] = 15.0,
    remind_every_hours: Annotated[float, Field(gt=0)] = 24.0,
    give_up_after_days: Annotated[float, Field(gt=0)] = 14.0,
) -> Any:
    """Show a candidate's evidence until the decision stands in the registry. No process waits meanwhile.

    Args:
        version: number of the candidate.
        look_every_minutes: how often the registry is asked.
        remind_every_hours: how often those who are told of candidates are told again.
        give_up_after_days: then nobody wants to decide.
    """
    policy.keep_logs_short()
    case = decisions.review(version)
    if forms.are_wanted():
        return _ask(case, forms.require_allowed())
    if stands := decisions.decision_on(case):
        done = "Promoted" if stands.kind == "promote" else "Rejected"
        return Completed(name=done, message=f"{stands.who}: {stands.reason}", data=as_plain(stands))
    looks = flow_run.run_count or 1
    if looks * look_every_minutes > give_up_after_days * 24 * 60:
        return Completed(name="NobodyDecided", message=f"in {give_up_after_days:g} days")
    per_reminder = max(1, round(remind_every_hours * 60 / look_every_minutes))
    if (looks - 1) % per_reminder == 0:
        _show(case)
        tell("refit.candidate.waiting", f"{case.version.uri} waits for review: {_how_to_decide(case)}")
    _look_again(look_every_minutes, f"nobody decided yet on {case.version.uri}: {_how_to_decide(case)}")
    raise AssertionError("unreachable")


def _how_to_decide(case: decisions.Case) -> str:
    number = case.version.version
    return f"`refit review {number}`, then promote or reject with --evidence {case.digest[:12]}"


def _look_again(minutes: float, message: str) -> None:
    """End this process; a worker takes the run up again after a while. Not by `suspend_flow_run`, whose run would need
    somebody to resume it."""
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    state: State[Any] = Scheduled(scheduled_time=when, name="AwaitingDecision", message=message)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(str(flow_run.id)), state)
    raise Pause(state=state)


def _ask(case: decisions.Case, through: str) -> dict[str, object]:
    """By a form, on which the run waits; carry the answer out."""
    _show(case)
    form = Decision.with_initial_data(description=_page(case))
    # The key names the evidence: an answer to a form with other evidence is not taken for an answer to this one.
    answer = suspend_flow_run(wait_for_input=form, timeout=SECONDS_TO_ANSWER, key=f"decision-{case.digest[:12]}")
    reason, number = f"{answer.reason} ({answer.reviewer}, in Prefect)", case.version.version
    if answer.decision == "reject":
        return _told(decisions.reject(number, reason, answer.evidence, through=through))
    return _told(decisions.promote(number, reason, answer.evidence, answer.is_forced, through=through))


def _show(case: decisions.Case) -> None:
    """The evidence and links, as artifacts of the run's page."""
    create_markdown_artifact(_page(case), key="decision", description=f"Evidence of {case.version.uri}")
    for name, address in tracking.links(load_params().register, case.version).items():
        create_link_artifact(key=f"mlflow-{name}", link=address, link_text=f"MLflow {name}")


def _page(case: decisions.Case) -> str:
    return review_markdown(case.bundle.comparison, decisions.where_from(case), load_params().register.model_name)


def _told(outcome: Outcome) -> dict[str, object]:
    plain = as_plain(outcome)
    get_run_logger().info("%s", json.dumps(plain, sort_keys=True))
    tell_of_move(outcome)
    roll_out(outcome, get_run_logger().info, tell_of_move)
    return plain
