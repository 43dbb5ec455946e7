"""timm: its loaders, optimizer, schedule and loss, put together as its train.py does, on the same torchvision network.

As shipped: train.py's defaults (SGD with 0.1 per 256 photos, cosine, 5 epochs of warm-up, label smoothing 0.1, colour
jitter, 4 workers). Best flags: --amp with bfloat16, --channels-last, --opt adamw at the job's learning rate, no
warm-up, no colour jitter.
"""

from contextlib import nullcontext

import torch
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy
from torch import nn

from .given import Job, network_of, run


def train(job: Job) -> nn.Module:
    """Train and validate, epoch by epoch."""
    device = torch.device("cpu")
    network = network_of(job)
    if job.best_flags:
        network = network.to(memory_format=torch.channels_last)
    train_batches, val_batches = (
        create_loader(
            create_dataset("", root=job.photos, split=split, is_training=split == "train"),
            input_size=(3, job.size, job.size),
            batch_size=job.batch_size,
            is_training=split == "train",
            color_jitter=0.0 if job.best_flags else 0.4,
            crop_pct=1.0,
            num_workers=job.workers if job.best_flags else 4,
            persistent_workers=job.workers > 0 or not job.best_flags,
            use_prefetcher=False,
            device=device,
        )
        for split in ("train", "val")
    )
    optimizer = (
        create_optimizer_v2(network, opt="adamw", lr=job.learning_rate, weight_decay=0.05, fused=True)
        if job.best_flags
        else create_optimizer_v2(network, opt="sgd", lr=0.1 * job.batch_size / 256, weight_decay=2e-5, momentum=0.9)
    )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=job.epochs,
        warmup_epochs=0 if job.best_flags else 5,
        step_on_epochs=not job.best_flags,
        updates_per_epoch=len(train_batches),
    )
    loss_of = LabelSmoothingCrossEntropy(smoothing=0.1)
    updates = 0
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
            updates += 1
            schedule.step_update(num_updates=updates)
        schedule.step(epoch + 1)
        network.eval()
        top1 = AverageMeter()
        with torch.inference_mode():
            for images, labels in val_batches:
                with torch.autocast("cpu", torch.bfloat16) if job.best_flags else nullcontext():
                    logits = network(images)
                top1.update(accuracy(logits, labels)[0].item(), len(labels))
        print(f"epoch {epoch + 1}: validation accuracy {top1.avg:.1f}")
    return network


if __name__ == "__main__":
    run(train)
