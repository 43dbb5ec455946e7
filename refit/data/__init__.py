"""Where examples come from, and what is different between two sets of them. No torch."""

__all__ = [
    "archives",
    "changes",
    "children",
    "classes",
    "digests",
    "duplicates",
    "exceptions",
    "findings",
    "hamming",
    "inspection",
    "label_errors",
    "labels",
    "profile",
    "rules",
    "set_rules",
    "shift",
    "sources",
    "summary",
]
