"""MLflow as Refit uses it: runs, versions, releases, accounts. The only room that imports mlflow."""
