"""Reports that a person reads: self-contained HTML pages, and Markdown for the Prefect and MLflow pages.

Everything here is a pure function of what it is given (and, `validation.excerpts`, of files whose digests it is given):
no clock, no machine, no path outside the project, so that the same run gives the same bytes. Values are escaped by
Jinja; a page loads nothing from elsewhere.
"""

__all__ = [
    "changes",
    "comparison",
    "croissant",
    "difference",
    "disagreements",
    "evaluation",
    "review",
    "suspects",
    "validation",
]
