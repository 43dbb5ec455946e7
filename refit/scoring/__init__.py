"""How good predictions are: pure numbers, no torch, no files."""
