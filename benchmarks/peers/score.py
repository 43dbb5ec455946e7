"""Which photos a trained network gets right, outside what is measured: the same scorer for all.

python -m peers.score job.json      -> {"val": [0, 1, …], "test": […]}
"""

import json

import torch
import torchvision
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from .given import Job, photos_of, read_job


@torch.inference_mode()
def hits(job: Job, split: str) -> list[int]:
    """1 for each photo whose class is found, else 0."""
    network = torchvision.models.get_model(job.model, weights=None, num_classes=len(job.classes))
    network.load_state_dict(load_file(job.weights_out))
    network.eval()
    found: list[int] = []
    for images, labels in DataLoader(photos_of(job, split), batch_size=32):
        found += (network(images).argmax(1) == labels).int().tolist()
    return found


if __name__ == "__main__":
    print(json.dumps({split: hits(read_job(), split) for split in ("val", "test")}))
