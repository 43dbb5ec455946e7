"""Base weights: how they come here, and how they become safetensors."""

__all__ = ["card", "download"]
