"""What rivals are given where the examples are texts: a language model's folder, and a file for each text."""

from pathlib import Path

from .given import Job


def texts_of(job: Job, split: str) -> tuple[list[str], list[int]]:
    """The texts of a split, and the numbers of their classes."""
    files = sorted(Path(job.photos, split).glob("*/*"))
    return [file.read_text() for file in files], [job.classes.index(file.parent.name) for file in files]
