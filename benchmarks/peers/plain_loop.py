"""A plain torch loop: the official quickstart's, with AdamW at the job's learning rate and nothing else."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from .given import Job, network_of, photos_of, run


def train(job: Job) -> nn.Module:
    """Train and validate, epoch by epoch."""
    train_batches = DataLoader(photos_of(job, "train"), batch_size=job.batch_size, shuffle=True)
    val_batches = DataLoader(photos_of(job, "val"), batch_size=job.batch_size)
    network = network_of(job)
    loss_of = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=job.learning_rate)
    for epoch in range(job.epochs):
        network.train()
        for images, labels in train_batches:
            loss = loss_of(network(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        network.eval()
        with torch.no_grad():
            correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in val_batches)
        print(f"epoch {epoch + 1}: validation accuracy {correct / len(val_batches.dataset):.3f}")  # type: ignore[arg-type]
    return network


if __name__ == "__main__":
    run(train)
