"""The loop, and what makes it repeatable."""
