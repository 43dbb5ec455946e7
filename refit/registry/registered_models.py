"""MLflow's registered models: made once, asked for in a way that has one meaning."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel


def create_model(client: "MlflowClient", name: str) -> None:
    """A registered model, unless there is one."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":
            return
        # A server with accounts answers an account that may write the model, but did not make it, with a refusal.
        if error.error_code != "PERMISSION_DENIED":
            raise
        client.get_registered_model(name)


def registered_model(client: "MlflowClient", name: str) -> "RegisteredModel | None":
    """A registered model with its tags and aliases; None only if the registry answers that there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
