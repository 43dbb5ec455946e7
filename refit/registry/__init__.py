"""MLflow as Refit uses it: runs, versions, releases, accounts. Beside it only the served model imports mlflow."""

__all__ = [
    "access",
    "champion",
    "live",
    "local_registry",
    "origin",
    "packaging",
    "probe",
    "provenance",
    "records",
    "releases",
    "retention",
    "runs",
    "tracking",
    "verification",
    "versions",
]
