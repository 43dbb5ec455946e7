"""Base weights: how they come here, become safetensors, and get into a network."""

__all__ = ["backbone", "card", "download", "folder", "hub"]
