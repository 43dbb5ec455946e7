"""torchvision's reference-style loop, as its references for classification train a network.

As shipped: its defaults (SGD 0.1 with momentum 0.9 and weight decay 1e-4, a step every 30 epochs, 16 workers capped at
the machine's cores). Best flags: --opt adamw at the job's learning rate, --lr-scheduler cosineannealinglr, label
smoothing, and what its user adds by hand on a CPU, where its --amp does nothing: bf16 autocast and channels last.
"""

import os
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from .given import Job, network_of, photos_of, run


def train(job: Job) -> nn.Module:
    """Train and validate, epoch by epoch."""
    workers = job.workers if job.best_flags else min(16, os.cpu_count() or 1)
    train_photos, val_photos = photos_of(job, "train"), photos_of(job, "val")
    train_batches = DataLoader(
        train_photos, batch_size=job.batch_size, sampler=RandomSampler(train_photos), num_workers=workers
    )
    val_batches = DataLoader(
        val_photos, batch_size=job.batch_size, sampler=SequentialSampler(val_photos), num_workers=workers
    )
    network = network_of(job)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1 if job.best_flags else 0.0)
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    if job.best_flags:
        network = network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(learning, lr=job.learning_rate, weight_decay=0.05, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=job.epochs)
    else:
        optimizer = torch.optim.SGD(learning, lr=0.1, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    for epoch in range(job.epochs):
        network.train()
        for images, labels in train_batches:
            if job.best_flags:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16) if job.best_flags else nullcontext():
                loss = loss_of(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        network.eval()
        correct = 0
        with torch.inference_mode():
            for images, labels in val_batches:
                with torch.autocast("cpu", torch.bfloat16) if job.best_flags else nullcontext():
                    correct += int((network(images).argmax(1) == labels).sum())
        print(f"epoch {epoch + 1}: validation accuracy {correct / len(val_photos):.3f}")
    return network


if __name__ == "__main__":
    run(train)
