"""2,624 pictures of solar cells as class folders: a real inspection set, from the package `elpv-dataset`.

    PYTHONPATH=benchmarks peers-venv/bin/python -m measuring.solar_cells FOLDER

Buerhop-Lutz et al., "A benchmark for visual identification of defective solar cells in electroluminescence imagery",
2018; CC BY-NC-SA. Experts gave each cell a probability of being defective: 0, 1/3, 2/3 or 1. Below a half it is
`functional` here, else `defective`; the two in the middle are the experts' own doubts, and bound any accuracy.
"""

import csv
import importlib.util
import shutil
import sys
from pathlib import Path


def lay_out(target: Path) -> dict[str, int]:
    """Copy the pictures (300 x 300, gray PNG) into `target/functional` and `target/defective`; gives their numbers."""
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise SystemExit("elpv-dataset is not installed here; install the group `peers` (docs/benchmarks.md)")
    data = Path(package.origin).parent / "data"
    counts = {"functional": 0, "defective": 0}
    for label in counts:
        (target / label).mkdir(parents=True)
    with (data / "labels.csv").open() as file:
        for path, probability, *_ in csv.reader(file, delimiter=" ", skipinitialspace=True):
            label = "functional" if float(probability) < 0.5 else "defective"
            shutil.copyfile(data / path, target / label / Path(path).name)
            counts[label] += 1
    return counts


if __name__ == "__main__":
    print(lay_out(Path(sys.argv[1])))
