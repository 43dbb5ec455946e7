"""Who may ask an MLflow server with accounts, and one request that it refuses: the server's `authorization_function`.

    [mlflow]
    authorization_function = refit.registry.guard:authenticate

MLflow lets any account make an experiment whose files lie anywhere, the folder of a release on the server included, and
then writes there what that account uploads. Here the server alone says where files lie. This module is loaded by the
server and stands alone: deploy/compose.yaml mounts it as a file.
"""

import json

from flask import Response, request
from mlflow.exceptions import MlflowException
from mlflow.protos.service_pb2 import CreateExperiment
from mlflow.server.auth import authenticate_request_basic_auth
from mlflow.server.handlers import _get_request_message
from werkzeug.datastructures import Authorization

_PATH = "/mlflow/experiments/create"
_REFUSAL = "the server says where the files of an experiment lie: leave artifact_location out"


def authenticate() -> Authorization | Response:
    """As MLflow's own function does; an experiment with a place of its own for its files is refused with 403."""
    if request.path.endswith(_PATH) and _names_a_place():
        refusal = {"error_code": "PERMISSION_DENIED", "message": _REFUSAL}
        return Response(json.dumps(refusal), status=403, mimetype="application/json")
    return authenticate_request_basic_auth()


def _names_a_place() -> bool:
    """Read by MLflow's own reader: whatever spelling the handler would understand, is understood here."""
    try:
        return bool(_get_request_message(CreateExperiment()).artifact_location)
    except MlflowException:
        return False  # the handler raises the same
