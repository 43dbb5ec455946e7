"""The reviewer's decisions as Prefect flows, so that they can be made from its pages.

    promote, reject, rollback      run from a form; the parameters are those of the commands
    approve                        shows the evidence, then suspends: no process waits; the answer to its form decides

Deploy them on a work pool whose workers log in to MLflow as a reviewer: `prefect deploy flows/promote.py:approve`.
"""

import json
from typing import Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.tools import policy
from flows.tools.notifications import tell_of_move
from flows.tools.rollout import roll_out
from refit.gate.history import Outcome
from refit.params import load_params
from refit.records import as_plain
from refit.reports.comparison import comparison_markdown
from tasks import promote as decisions

SECONDS_TO_DECIDE = 14 * 24 * 3600  # two weeks


class Decision(RunInput):
    """The reviewer's answer."""

    decision: Literal["promote", "reject"] = Field(description="What to do with the candidate.")
    reason: str = Field(min_length=1, description="Why; kept in the history.")
    reviewer: str = Field(min_length=1, description="Who decides. The worker's account is what MLflow checks.")
    is_forced: bool = Field(default=False, description="Promote although the gate did not pass.")


@flow(name="promote", flow_run_name="promote {version}", persist_result=False)
def promote(
    version: str, reason: str, evidence: str | None = None, is_forced: bool = False, is_dry_run: bool = False
) -> dict[str, object]:
    """Make a candidate the champion.

    Args:
        version: number of the candidate.
        reason: why; kept in the history.
        evidence: digest of the evidence that you saw; empty: whatever it is now.
        is_forced: although the gate did not pass.
        is_dry_run: check everything, change nothing.
    """
    policy.keep_logs_short()
    return _told(decisions.promote(version, reason, evidence or None, is_forced, is_dry_run))


@flow(name="reject", flow_run_name="reject {version}", persist_result=False)
def reject(version: str, reason: str, evidence: str | None = None, is_dry_run: bool = False) -> dict[str, object]:
    """Write down that a candidate is not wanted."""
    policy.keep_logs_short()
    return _told(decisions.reject(version, reason, evidence or None, is_dry_run))


@flow(name="rollback", persist_result=False)
def rollback(reason: str, to: str | None = None, is_dry_run: bool = False) -> dict[str, object]:
    """Make an earlier release the champion again.

    Args:
        reason: why; kept in the history.
        to: number of the release; empty: the one before.
        is_dry_run: check everything, change nothing.
    """
    policy.keep_logs_short()
    return _told(decisions.rollback(to or None, reason, is_dry_run))


@flow(name="approve", flow_run_name="approve {version}", persist_result=True)
def approve(version: str) -> dict[str, object]:
    """Show a candidate's evidence, suspend until somebody answers, and carry the answer out.

    The decision is bound to the evidence that was shown. While it waits, nothing runs and no worker is held.
    """
    policy.keep_logs_short()
    case = decisions.review(version)
    create_markdown_artifact(
        comparison_markdown(case.bundle.comparison, load_params().register.model_name),
        key="decision",
        description=f"Evidence {case.digest[:12]} of {case.version.uri}",
    )
    form = Decision.with_initial_data(
        description=f"{case.version.uri}, gate: **{case.verdict}**, evidence `{case.digest[:12]}`",
        decision="promote",
        reason="",
        reviewer="",
        is_forced=False,
    )
    # The key names the evidence: an answer to a form with other evidence is not taken for an answer to this one.
    answer = suspend_flow_run(wait_for_input=form, timeout=SECONDS_TO_DECIDE, key=f"decision-{case.digest[:12]}")
    reason = f"{answer.reason} ({answer.reviewer}, in Prefect)"
    if answer.decision == "reject":
        return _told(decisions.reject(version, reason, case.digest))
    return _told(decisions.promote(version, reason, case.digest, answer.is_forced))


def _told(outcome: Outcome) -> dict[str, object]:
    plain = as_plain(outcome)
    get_run_logger().info("%s", json.dumps(plain, sort_keys=True))
    tell_of_move(outcome)
    roll_out(outcome, get_run_logger().info, tell_of_move)
    return plain
