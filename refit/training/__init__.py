"""The loop, what it reads, and what makes it repeatable."""

__all__ = ["determinism", "examples", "frozen", "loop"]
