"""Lightning: a LightningModule and a Trainer, as its guide to transfer learning has it.

As shipped: Adam at the guide's 1e-3, the Trainer's defaults. Best flags: bf16-mixed, channels last, fused AdamW at the
job's learning rate under one cycle, data loader workers, no checkpoints, logger, bars or sanity check.
"""

import tempfile
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from .given import Job, head_name, network_of, photos_of, run


class Classifier(lightning.LightningModule):
    """The network with its loss, metric and optimizer."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.network = network_of(job)
        if job.best_flags:
            self.network = self.network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, size, size) float32 -> logits."""
        if self.job.best_flags:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(images)
        return logits

    def on_train_epoch_start(self) -> None:
        """A frozen backbone is in eval mode, as in the guide."""
        if self.job.head_only:
            self.network.eval()
            self.network.get_submodule(head_name(self.network, len(self.job.classes))).train()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss."""
        images, labels = batch
        return functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """The accuracy."""
        images, labels = batch
        self.log("val_accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """What learns, and how."""
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not self.job.best_flags:
            return torch.optim.Adam(learning, lr=1e-3)
        optimizer = torch.optim.AdamW(learning, lr=self.job.learning_rate, weight_decay=0.05, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.job.learning_rate, steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(job: Job) -> nn.Module:
    """Train and validate, epoch by epoch."""
    lightning.seed_everything(job.seed)
    workers: dict[str, Any] = {}
    if job.best_flags:
        workers = {"num_workers": job.workers, "persistent_workers": job.workers > 0}
    train_batches = DataLoader(photos_of(job, "train"), batch_size=job.batch_size, shuffle=True, **workers)
    val_batches = DataLoader(photos_of(job, "val"), batch_size=job.batch_size, **workers)
    flags: dict[str, Any] = {}
    if job.best_flags:
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        flags = {"precision": "bf16-mixed", "num_sanity_val_steps": 0} | dict.fromkeys(off, False)
    classifier = Classifier(job)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(max_epochs=job.epochs, default_root_dir=folder, **flags)
        trainer.fit(classifier, train_batches, val_batches)
    return classifier.network


if __name__ == "__main__":
    run(train)
