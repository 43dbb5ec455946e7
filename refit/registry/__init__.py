"""MLflow as Refit uses it: runs, versions, releases, accounts. All of mlflow is here, but for the served model itself."""
