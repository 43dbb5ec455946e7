"""What a good engineer writes in a day: photos decoded once to uint8, channels last, bf16, a fused optimizer under one
cycle; and, where only the head learns, the features of each photo once."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as images

from .given import MEAN, STD, Job, head_name, network_of, run


def train(job: Job) -> nn.Module:
    """Train and validate, epoch by epoch."""
    network = network_of(job).to(memory_format=torch.channels_last)
    (pixels, labels), (val_pixels, val_labels) = (decoded(job, split) for split in ("train", "val"))
    if job.head_only:
        head = network.get_submodule(head_name(network, len(job.classes)))
        inputs, val_inputs = (features_of(job, network, head, some) for some in (pixels, val_pixels))
        fit(job, head, lambda rows: inputs[rows], labels, val_inputs, val_labels)
    else:
        fit(job, network, lambda rows: augmented(pixels[rows]), labels, val_pixels, val_labels)
    return network


def fit(
    job: Job, part: nn.Module, inputs_of: Callable[[Tensor], Tensor], labels: Tensor, val: Tensor, val_labels: Tensor
) -> None:
    """Train the network, or its head; `val` are photos, or their features."""
    optimizer = torch.optim.AdamW(
        [p for p in part.parameters() if p.requires_grad], lr=job.learning_rate, weight_decay=0.05, fused=True
    )
    steps = job.epochs * len(labels.split(job.batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.learning_rate, steps, pct_start=0.1)
    for epoch in range(job.epochs):
        part.train()
        for rows in torch.randperm(len(labels)).split(job.batch_size):
            with torch.autocast("cpu", torch.bfloat16):
                logits = part(inputs_of(rows))
            functional.cross_entropy(logits.float(), labels[rows], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        hits = predicted(job, part, val).argmax(1) == val_labels
        print(f"epoch {epoch + 1}: validation accuracy {hits.float().mean():.3f}")


def features_of(job: Job, network: nn.Module, head: nn.Module, pixels: Tensor) -> Tensor:
    """What the head reads, for each photo once."""
    caught: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].float()))
    predicted(job, network, pixels)
    hook.remove()
    return torch.cat(caught)


@torch.no_grad()
def predicted(job: Job, part: nn.Module, inputs: Tensor) -> Tensor:
    """Logits, for photos (uint8) or for features."""
    part.eval()
    with torch.autocast("cpu", torch.bfloat16):
        batches = inputs.split(job.batch_size)
        return torch.cat([part(as_input(some) if some.dtype == torch.uint8 else some) for some in batches])


def decoded(job: Job, split: str) -> tuple[Tensor, Tensor]:
    """(n, 3, size, size) uint8 and (n,) labels, all in memory."""
    folder = ImageFolder(str(Path(job.photos, split)))
    side = job.size
    squares = [
        images.center_crop(images.resize(images.pil_to_tensor(Image.open(path).convert("RGB")), side), [side, side])
        for path, _ in folder.samples
    ]
    return torch.stack(squares), torch.tensor(folder.targets)


def augmented(pixels: Tensor) -> Tensor:
    """A shift of up to an eighth, one for the batch, and a mirror for half of its photos."""
    room = pixels.shape[-1] // 8
    top, left = torch.randint(0, 2 * room + 1, (2,)).tolist()
    padded = functional.pad(pixels.float(), [room] * 4)
    square = padded[:, :, top : top + pixels.shape[-2], left : left + pixels.shape[-1]]
    flips = torch.rand(len(pixels)) < 0.5
    return as_input(torch.where(flips.view(-1, 1, 1, 1), square.flip(3), square))


def as_input(pixels: Tensor) -> Tensor:
    """Normalised, channels last."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    run(train)
