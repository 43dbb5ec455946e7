"""Built-in numbers: two classes whose sums differ in sign."""

from pathlib import Path

import numpy as np


def decided_by() -> dict[str, str]:
    """Nothing but this file."""
    return {}


def write(folder: Path) -> str:
    """Sixty files of each class; one that is no numbers, and one with a number that is too large."""
    generator = np.random.default_rng(0)
    for label, sign in (("minus", -1), ("plus", 1)):
        (folder / label).mkdir()
        for number in range(60):
            values = sign * generator.uniform(0.1, 1.0, 4)
            (folder / label / f"{number}.txt").write_text(" ".join(f"{value:.6f}" for value in values))
    (folder / "plus" / "bad.txt").write_text("no numbers")
    (folder / "plus" / "large.txt").write_text("1 1 1 1000")
    return "122 files of numbers"
