"""The flow `watch`: a champion that was moved past Refit is told of.

    watch()        one look; the deployment `watch` of prefect.yaml makes one every quarter of an hour

Not by MLflow's webhooks: its file store has none, and who moves an alias in its pages may switch them off. A look needs
a reader's account. What was told is remembered in a Prefect variable, so that each move is told once.
"""

import datetime
import json

from prefect import flow
from prefect.logging import get_run_logger
from prefect.variables import Variable

from flows.tools import policy
from flows.tools.notifications import tell
from refit.gate.history import Timeline, moved_past
from tasks import promote as decisions

TOLD = "refit_moves_past"
"""Prefect variable: JSON {registered model: the number of the champion that was told of, or null}."""


@flow(name="watch", persist_result=False)
def watch() -> str:
    """Compare the champion with the decisions, and tell once of one that nobody decided on.

    Raises:
        TrackingError: the registry does not answer.
    """
    policy.keep_logs_short()
    past = decisions.past_decisions()
    told = _told()
    entry = moved_past(past.entries, datetime.datetime.now(datetime.UTC))
    if entry is None:
        if told.pop(past.model_name, None) is not None:
            _remember(told)
        return f"{past.champion or 'no champion'}, as it was decided"
    message = _in_words(past, entry.move.from_version) + f" ({entry.note})"
    number = entry.move.to_version or ""
    get_run_logger().warning("%s", message)
    if told.get(past.model_name) != number:
        tell("refit.model.moved-past", message)
        _remember(told | {past.model_name: number})
    return message


def _in_words(past: Timeline, before: str | None) -> str:
    """What was moved, and what to do about it."""
    decided = "no version" if before is None else f"models:/{past.model_name}/{before}"
    return (
        f"{past.champion or 'nothing'} is the champion, and {decided} was decided on: look at `refit history`; "
        "`refit rollback` goes back to it"
    )


def _told() -> dict[str, str]:
    found = Variable.get(TOLD, default=None)
    return dict(json.loads(found)) if isinstance(found, str) else {}


def _remember(told: dict[str, str]) -> None:
    Variable.set(TOLD, json.dumps(told, sort_keys=True), overwrite=True)


if __name__ == "__main__":
    watch()
