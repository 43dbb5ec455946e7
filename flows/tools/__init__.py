"""Thin adapters: DVC, git, the Prefect server, notifications, what is tried again."""
