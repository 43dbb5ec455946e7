"""MLflow as Refit uses it: runs, versions, releases, accounts. But for the served model itself, all of mlflow is here."""
