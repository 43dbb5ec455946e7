"""What every rival is given: the job, a network with the base weights, and the photos.

if __name__ == "__main__":
    run(train)          # train(job) -> the trained network; its weights go to job.weights_out
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2 as transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Job:
    """What is to be trained: the same for all. Threads come by OMP_NUM_THREADS, as torch reads it."""

    photos: str  # a folder with train, val and test; in each a folder per class
    base: str  # safetensors in torchvision's names; its output layer is left out
    model: str  # torchvision's name
    head_only: bool
    epochs: int
    batch_size: int
    learning_rate: float  # for AdamW; rows "as shipped" keep their library's own
    size: int  # pixels
    workers: int  # of data loaders; rows "as shipped" keep their library's own
    seed: int
    best_flags: bool  # False: as shipped
    weights_out: str

    @property
    def classes(self) -> list[str]:
        """In the order of their indices."""
        return sorted(folder.name for folder in Path(self.photos, "train").iterdir())


def read_job() -> Job:
    """The job that the command line names."""
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


def run(train: Callable[[Job], nn.Module]) -> None:
    """Train, and save the weights."""
    job = read_job()
    torch.manual_seed(job.seed)
    weights = {name: tensor.detach().contiguous() for name, tensor in train(job).state_dict().items()}
    save_file(weights, job.weights_out)


def network_of(job: Job) -> nn.Module:
    """torchvision's network with the base weights and a new output layer; frozen below it where only that learns."""
    network: nn.Module = torchvision.models.get_model(job.model, weights=None, num_classes=len(job.classes))
    head = head_name(network, len(job.classes))
    weights = {name: tensor for name, tensor in load_file(job.base).items() if not name.startswith(f"{head}.")}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if unexpected or not all(name.startswith(f"{head}.") for name in missing):
        raise SystemExit(f"{job.base} does not fit {job.model}: missing {missing[:4]}, unexpected {unexpected[:4]}")
    if job.head_only:
        network.requires_grad_(False)
        network.get_submodule(head).requires_grad_(True)
    return network


def head_name(network: nn.Module, num_classes: int) -> str:
    """The output layer: the last one of the right width."""
    wide = [
        name
        for name, module in network.named_modules()
        if num_classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ]
    return wide[-1]


def photos_of(job: Job, split: str) -> ImageFolder:
    """Photos as the tutorials of PyTorch, Hugging Face and Lightning prepare them: random crops, or centred ones."""
    crop = (
        [transforms.RandomResizedCrop(job.size), transforms.RandomHorizontalFlip()]
        if split == "train"
        else [transforms.Resize(job.size), transforms.CenterCrop(job.size)]
    )
    as_input = [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(MEAN, STD)]
    return ImageFolder(str(Path(job.photos, split)), transforms.Compose([*crop, *as_input]))
