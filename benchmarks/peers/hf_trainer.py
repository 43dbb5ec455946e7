"""Hugging Face's Trainer on a torchvision network, as its guide to image classification has it.

As shipped: the defaults of TrainingArguments, validated each epoch as in the guide. Best flags: bf16, channels last,
fused AdamW at the job's learning rate under a cosine, data loader workers, no checkpoints, no bars.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from .given import Job, network_of, photos_of, run


class Classifier(nn.Module):
    """What Trainer wants of a model: pixel_values and labels in, loss and logits out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """(n, 3, size, size) float32 and (n,) int64."""
        logits = self.network(pixel_values)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def collate(examples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """A batch by the names of the model's arguments."""
    images, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def collate_channels_last(examples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """The same in the memory format that convolutions like."""
    batch = collate(examples)
    return batch | {"pixel_values": batch["pixel_values"].contiguous(memory_format=torch.channels_last)}


def accuracy(prediction: Any) -> dict[str, float]:
    """The guide's metric."""
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def train(job: Job) -> nn.Module:
    """Train and validate, epoch by epoch."""
    network = network_of(job)
    flags: dict[str, Any] = {}
    if job.best_flags:
        network = network.to(memory_format=torch.channels_last)
        flags = {
            "bf16": True,
            "optim": "adamw_torch_fused",
            "learning_rate": job.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,  # below 1: a share of the steps
            "weight_decay": 0.05,
            "dataloader_num_workers": job.workers,
            "dataloader_persistent_workers": job.workers > 0,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=job.epochs,
            per_device_train_batch_size=job.batch_size,
            per_device_eval_batch_size=job.batch_size,
            eval_strategy="epoch",
            remove_unused_columns=False,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            seed=job.seed,
            **flags,
        )
        Trainer(
            model=Classifier(network),
            args=arguments,
            data_collator=collate_channels_last if job.best_flags else collate,
            train_dataset=photos_of(job, "train"),
            eval_dataset=photos_of(job, "val"),
            compute_metrics=accuracy,
        ).train()
    return network


if __name__ == "__main__":
    run(train)
