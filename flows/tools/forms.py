"""Whether decisions may be carried out from Prefect's pages. Not by default.

    through = require_allowed()     in a flow that decides; what the history will say

Whoever reaches a Prefect server may start its deployments and answer its forms, and its open-source edition knows no
more than one password for all. A worker that logs in to MLflow as a reviewer therefore lends that account to all of
them. An operator who wants that says so in the worker's environment; a server without any password is refused.
"""

import os
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from prefect.settings import PREFECT_API_URL

from refit.errors import OrchestratorUnavailableError, RefusedError

OPT_IN = "REFIT_WHOEVER_REACHES_PREFECT_DECIDES"
_THROUGH = "Prefect"


def are_wanted() -> bool:
    """Whether the operator said so."""
    return os.environ.get(OPT_IN) == "yes"


def require_allowed() -> str:
    """What a decision goes through, for the history.

    Raises:
        RefusedError: the operator did not say so, or the server lets everybody in.
        OrchestratorUnavailableError: it does not answer.
    """
    if not are_wanted():
        raise RefusedError(
            "nothing is decided from Prefect: whoever reaches its server could use the account of this worker. Decide "
            f"with an account of your own: `refit promote`, `refit reject`, `refit rollback`. ({OPT_IN}=yes in the "
            "worker's environment allows it all the same; see docs/reviewers.md)"
        )
    address = PREFECT_API_URL.value()
    if not address or not _asks_for_a_password(address):
        raise RefusedError(
            f"nothing is decided from Prefect: {address or 'a temporary server'} asks nobody for a password. Start it "
            "with PREFECT_SERVER_API_AUTH_STRING, and give those who may decide PREFECT_API_AUTH_STRING"
        )
    return _THROUGH


def _asks_for_a_password(address: str) -> bool:
    """Asked as a stranger, for what is no secret."""
    try:
        urlopen(Request(f"{address}/admin/version"), timeout=30).close()  # noqa: S310
    except HTTPError as error:
        if error.code in (401, 403):
            return True
        raise OrchestratorUnavailableError(f"the Prefect server at {address} answers {error.code}") from None
    except OSError as error:
        raise OrchestratorUnavailableError(f"the Prefect server at {address} does not answer: {error}") from None
    return False
