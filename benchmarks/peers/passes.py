"""Passes over the training photos by ImageFolder, transforms and a DataLoader, without a network.

python -m peers.passes job.json PASSES      -> photos a second of the first pass and of the later ones, as JSON
"""

import json
import sys
import time

from torch.utils.data import DataLoader

from .given import photos_of, read_job


def main() -> None:
    """Without workers: CPU time is what is compared."""
    job, passes = read_job(), int(sys.argv[2])
    batches = DataLoader(photos_of(job, "train"), batch_size=job.batch_size, shuffle=True)
    seconds = []
    for _ in range(passes):
        began = time.perf_counter()
        count = sum(len(labels) for _, labels in batches)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"first": count / seconds[0], "later": count * (passes - 1) / sum(seconds[1:])}))


if __name__ == "__main__":
    main()
