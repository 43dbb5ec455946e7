"""The rivals: a file for each, written as that library's documentation has its users write it.

Each runs in a process of its own, `python -m peers.<name> job.json` with PYTHONPATH=benchmarks, and leaves its weights
in torchvision's names, so that one scorer reads them all. They share what is given to all (`given.py`), and nothing
of Refit.
"""
