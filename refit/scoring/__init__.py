"""How good predictions are: pure numbers, no torch, no files."""

__all__ = ["clusters", "evaluation", "intervals", "linear", "measures", "metrics"]
