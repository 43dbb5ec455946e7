"""What is tried again, and how a failure reads in the logs."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from refit.errors import RefitError

RETRY_DELAYS_SECONDS = [10.0, 60.0, 300.0]

Result = TypeVar("Result")


def may_help(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: the error knows. Bad data stays bad; a server may come back."""
    error = state.data if isinstance(state.data, Exception) else getattr(state.data, "result", None)
    return isinstance(error, RefitError) and error.retryable


def retried(call: Callable[[], Result], log: Callable[[str], None]) -> Result:
    """Call, and call again after a while where the error says that it may help."""
    for delay in RETRY_DELAYS_SECONDS:
        try:
            return call()
        except RefitError as error:
            if not error.retryable:
                raise
            log(f"{error}; trying again in {delay:g} s")
            time.sleep(delay)
    return call()


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
