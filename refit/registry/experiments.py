"""MLflow's experiments, and where their files go."""

from typing import TYPE_CHECKING

from .local_registry import database_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TRAINS_MODELS = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's pages show runs and their curves then, instead of what they have for language models."""


def experiment_id(client: "MlflowClient", name: str) -> str:
    """The id of the experiment of that name, made if there is none.

    Files go where the server says. A database file has no server to say it, and MLflow would put them below the current
    folder: in a scheduled run that is a checkout which is gone afterwards. So they go beside the database.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        place = _beside_database(mlflow.get_tracking_uri(), name)
        return str(client.create_experiment(name, artifact_location=place, tags=_TRAINS_MODELS))
    except MlflowException as error:
        found = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if found is None:
            raise
        return str(found.experiment_id)


def _beside_database(uri: str, name: str) -> str | None:
    database = database_of(uri)
    return None if database is None else (database.parent / "mlruns" / name).as_uri()
