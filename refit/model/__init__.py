"""A trained model as it is used, and as MLflow loads it: what travels with a registered version."""

__all__ = ["card", "classifier"]
