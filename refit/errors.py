"""Every mistake that a user can make or meet, and the one place that turns it into one line.

    RefitError                  1   anything below
    ├── ParamsError             2   params.yaml (or the command line) says something impossible
    ├── DataError               3   the data source cannot be read, or the data is not good enough
    ├── CheckpointError         4   the base checkpoint is missing, damaged or does not fit the model
    │   └── DownloadError       5   ... or could not be fetched; trying again may help
    │       └── NetworkError   15   ... since there is no way to its server; trying again does not help
    ├── TrainingError           6   the training itself went wrong (a loss that is not finite)
    ├── TrackingError           7   MLflow refused
    │   └── TrackingUnavailableError
    │                           9   MLflow cannot be reached, or is in trouble; trying again may help
    ├── WorkspaceError          8   a file cannot be written, or git or DVC refused
    │   ├── OrchestratorUnavailableError
    │   │                      12   the Prefect server cannot be reached; trying again may help
    │   ├── StorageUnavailableError
    │   │                      10   the DVC or git remote cannot be reached; trying again may help
    │   └── WorkerLostError    11   the worker that trained is gone; another one may take it up
    ├── DeploymentError        16   the champion could not be brought to where it is served
    └── EvidenceError          13   what a decision must rest on is missing, damaged or of something else
        └── RefusedError       14   the evidence does not allow the promotion, or somebody was faster

The number is the exit code of the process; what each means is in `EXIT_CODES`, which `refit --help` shows. `retryable`
says whether the same call may succeed later.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from .paths import STAGE_OUTPUTS
from .stopping import Stopped, leaving_on_sigterm


class RefitError(Exception):
    """Base of all errors that are shown to the user as one line."""

    exit_code = 1
    meaning = "any other failure"
    retryable = False


class ParamsError(RefitError):
    """A parameter is unknown, of the wrong type, out of range, or contradicts another one."""

    exit_code = 2
    meaning = "wrong parameter or option"


class DataError(RefitError):
    """The data source cannot be read, or the validation stopped the run."""

    exit_code = 3
    meaning = "data not good enough: reports/validation.html"


class CheckpointError(RefitError):
    """A checkpoint is missing, damaged, unpinned, or does not fit the model."""

    exit_code = 4
    meaning = "checkpoint missing or wrong"


class DownloadError(CheckpointError):
    """A checkpoint could not be fetched; what has arrived is kept and the next try goes on from there."""

    exit_code = 5
    meaning = "download failed; what arrived is kept"
    retryable = True


class NetworkError(DownloadError):
    """No connection to the server of a checkpoint: no network, no such name, nobody there, or a proxy is needed."""

    exit_code = 15
    meaning = "no connection for the download: set HTTPS_PROXY, or checkpoint.uri to a file"
    retryable = False


class TrainingError(RefitError):
    """Training cannot go on."""

    exit_code = 6
    meaning = "training failed"


class TrackingError(RefitError):
    """The MLflow server refused, or has not what was asked for."""

    exit_code = 7
    meaning = "MLflow refused"


class TrackingUnavailableError(TrackingError):
    """The MLflow server cannot be reached, or answers that it is in trouble."""

    exit_code = 9
    meaning = "MLflow is down; `refit register` completes it"
    retryable = True


class WorkspaceError(RefitError):
    """A file cannot be written, or git or DVC refused."""

    exit_code = 8
    meaning = "file, git or DVC trouble"


class StorageUnavailableError(WorkspaceError):
    """The DVC remote or the git remote cannot be reached."""

    exit_code = 10
    meaning = "DVC or git remote unreachable"
    retryable = True


class OrchestratorUnavailableError(WorkspaceError):
    """The Prefect server cannot be reached."""

    exit_code = 12
    meaning = "Prefect server unreachable"
    retryable = True


class WorkerLostError(WorkspaceError):
    """A training worker stopped reporting, or no worker took the training up in time."""

    exit_code = 11
    meaning = "training worker lost"


class DeploymentError(RefitError):
    """The champion moved, but where it is served it does not answer as it should; it was taken back where possible."""

    exit_code = 16
    meaning = "champion not in service, and taken back if there was one before"


class EvidenceError(RefitError):
    """What a decision must rest on is missing, damaged, or is about something else. Never taken for a pass."""

    exit_code = 13
    meaning = "evidence missing or damaged"


class RefusedError(EvidenceError):
    """The evidence is there and says no; or the champion was moved by somebody else meanwhile."""

    exit_code = 14
    meaning = "refused by the evidence, or overtaken"


ERRORS_BY_EXIT_CODE: dict[int, type[RefitError]] = {
    error.exit_code: error
    for error in (
        RefitError,
        ParamsError,
        DataError,
        CheckpointError,
        DownloadError,
        NetworkError,
        TrainingError,
        TrackingError,
        TrackingUnavailableError,
        WorkspaceError,
        StorageUnavailableError,
        WorkerLostError,
        OrchestratorUnavailableError,
        DeploymentError,
        EvidenceError,
        RefusedError,
    )
}

REPRODUCED = {"identical": 0, "equivalent": 20, "different": 21}
"""Exit codes of `refit reproduce`, by its outcome."""

EXIT_CODES: dict[int, str] = {
    0: "done",
    **{code: f"{kind.meaning}{'; try again' * kind.retryable}" for code, kind in sorted(ERRORS_BY_EXIT_CODE.items())},
    REPRODUCED["equivalent"]: "reproduced: not the same bits, every measure within its tolerance",
    REPRODUCED["different"]: "reproduced: different",
    130: "interrupted",
    143: "terminated",
}
"""What each exit code of a process of ours means."""


def exit_with(error: RefitError) -> NoReturn:
    """Print `error: <message>` on standard error and leave with the error's exit code.

    `REFIT_TRACEBACK=1` in the environment re-raises instead, for those who debug Refit itself.
    """
    if os.environ.get("REFIT_TRACEBACK"):
        raise error
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main` as a process: a RefitError becomes one line and an exit code.

    So does the lack of a file that another stage makes. SIGTERM and Ctrl-C leave with 143 and 130, and unwind what was
    begun; `refit/stopping.py` has what saves its state first.
    """
    try:
        with leaving_on_sigterm():
            main()
    except RefitError as error:
        exit_with(error)
    except FileNotFoundError as error:
        for stage, outputs in STAGE_OUTPUTS.items():
            for output in outputs:  # not by error.filename, which pandas and safetensors leave empty
                if str(error).rstrip("'").endswith(str(output)):
                    exit_with(WorkspaceError(f"{output} is missing; run `dvc repro {stage}`"))
        raise
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT) from None
