"""What is tried again, and how a failure reads in the logs."""

import logging
from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from tasks.errors import RefitError

RETRY_DELAYS_SECONDS = [10.0, 60.0, 300.0]


def may_help(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: the error knows. Bad data stays bad; a server may come back."""
    error = state.data if isinstance(state.data, Exception) else getattr(state.data, "result", None)
    return isinstance(error, RefitError) and error.retryable


class OneLine(logging.Filter):
    """A RefitError has said all there is to say: no traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RefitError):
            record.msg, record.args, record.exc_info = f"{type(error).__name__}: {error}", (), None
        return True


def keep_logs_short() -> None:
    """Put `OneLine` on the loggers of Prefect's engine."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, OneLine) for existing in logger.filters):
            logger.addFilter(OneLine())
