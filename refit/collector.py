"""The garbage collector, told that this is a short process.

torch, mlflow and prefect make a million objects at their import, which all live until the end. The collector walks
them again and again while they come and once more when they go: a third of a process's start, and a second at its end.
"""

import atexit
import gc


def relax() -> None:
    """Collect seldom; and nothing at the end, when the memory is given back as a whole."""
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)  # the first to be registered, so the last to be called
