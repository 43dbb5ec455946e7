"""One training step of a phase: from the rows of a batch to changed weights.

    learner = Learner(job, phase, stream, ranks)
    learner.step(rows, epoch, step)

With `finetune.shards` 1 a batch is computed whole. Otherwise it is cut, each shard is computed alone, and gradients are
added in a fixed tree (`shards.py`): that is gradient accumulation on one process, and data parallelism on several.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..params import Finetune
from .arithmetic import autocast
from .determinism import seed_generators, step_seed, uniforms
from .features import Stream
from .job import Job
from .optimizer import Average, adamw, learning_rate_at, optimizer_tensors, restore
from .plan import Phase, num_steps
from .shards import Ranks, Statistics, cut, tree_sum
from .state import Position


class Learner:
    """What lives from step to step in a phase: the optimizer, and the average of the weights."""

    def __init__(self, job: Job, phase: Phase, stream: Stream, ranks: Ranks) -> None:
        self.job, self.phase, self.stream, self.ranks = job, phase, stream, ranks
        self.optimizer, self.rates = adamw(job.network, job.groups, phase, job.settings)
        named = dict(job.network.named_parameters())
        self.parameters = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self.average = Average(self.parameters, job.settings.ema_decay)
        self.weights = _example_weights(job)
        self.steps_per_epoch = num_steps(len(job.train), job.plan.batch_size)
        self.total_steps = phase.epochs * self.steps_per_epoch

    def step(self, rows: np.ndarray, position: Position, wants_stop: bool) -> Tensor:
        """Learn from one batch.

        Args:
            rows: (k,) int64, indices of training examples.
            position: how far the training has come.
            wants_stop: whether this process was asked to stop.

        Returns:
            (3,) on the device: the sum of the losses, the number of correct ones, how many processes want to stop.
        """
        epoch, step = len(position.history), position.steps_done
        rate = self.learning_rate(position)
        for group, peak in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = peak * rate
        if self.job.settings.shards == 1:
            loss, sums = self._loss(rows, rows, epoch, step)
            loss.backward()  # type: ignore[no-untyped-call]
            sums = torch.cat([sums, sums.new_tensor([float(wants_stop)])])
        else:
            sums = self._sharded(rows, epoch, step, wants_stop)
        if self.job.settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.job.settings.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self._step_of_phase(position))
        return sums

    def tensors(self) -> dict[str, Tensor]:
        """The state of optimizer and average, as `load` takes it."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        averages = {f"average/{name}": tensor for name, tensor in self.average.averages.items()}
        states = optimizer_tensors(self.optimizer, names)
        return averages | {f"optimizer/{key}": tensor for key, tensor in states.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        for name, average in self.average.averages.items():
            average.copy_(tensors[f"average/{name}"])
        prefix = "optimizer/"
        states = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        restore(self.optimizer, self.parameters, states)

    def learning_rate(self, position: Position) -> float:
        """The share of the peak rates at the next step."""
        return learning_rate_at(self._step_of_phase(position), self.total_steps, self.job.settings.warmup_fraction)

    def _step_of_phase(self, position: Position) -> int:
        return position.epoch * self.steps_per_epoch + position.step

    def _loss(self, rows: np.ndarray, batch: np.ndarray, epoch: int, seed_of: int) -> tuple[Tensor, Tensor]:
        """The share of some rows in the mean loss of their batch, and (2,): sum of their losses, number correct."""
        job = self.job
        labels = torch.from_numpy(job.train.labels[rows]).to(job.device)
        inputs = self.stream.train(epoch, rows)
        seed = step_seed(job.seed, seed_of)
        mixed = _mixed(inputs, job.settings, seed) if self.stream.part == "whole" else _Mixed(inputs, 1.0)
        seed_generators(seed, job.device)
        with autocast(job.device, job.precision):
            logits = self.stream.logits(mixed.inputs).float()  # (k, num_classes)
        losses = _cross_entropy(logits, labels, job.settings.label_smoothing)
        if mixed.share < 1:
            other = _cross_entropy(logits, labels.flip(0), job.settings.label_smoothing)
            losses = mixed.share * losses + (1 - mixed.share) * other
        total = float(len(batch))
        if self.weights is not None:
            losses = losses * torch.from_numpy(self.weights[rows]).to(job.device)
            total = float(self.weights[batch].sum(dtype=np.float64))
        loss = losses.sum() / total
        correct = (logits.argmax(1) == labels).sum()
        return loss, torch.stack([losses.detach().sum(), correct.to(losses.dtype)])

    def _sharded(self, rows: np.ndarray, epoch: int, step: int, wants_stop: bool) -> Tensor:
        """The gradients of a batch, shard by shard, summed over all ranks in one fixed tree."""
        shards = self.job.settings.shards
        pieces = cut(len(rows), shards)
        statistics = Statistics(self.job.network)

        def vector(shard: int) -> Tensor:
            """All that is added up, as (n,) float32: gradients, running statistics, the three sums."""
            self.optimizer.zero_grad(set_to_none=True)
            sums = torch.zeros(2, device=self.job.device)
            running = [torch.zeros_like(tensor) for tensor in statistics.running]
            if len(own := rows[pieces[shard]]):
                statistics.rewind()
                loss, sums = self._loss(own, rows, epoch, step * shards + shard)
                loss.backward()  # type: ignore[no-untyped-call]
                running = statistics.running
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
            stop = sums.new_tensor([float(wants_stop and shard == self.ranks.own(shards)[0])])
            return torch.cat([tensor.reshape(-1) for tensor in (*gradients, *running, sums, stop)])

        total = self.ranks.tree_sum(tree_sum(vector(shard) for shard in self.ranks.own(shards)))
        sizes = [tensor.numel() for tensor in (*self.parameters.values(), *statistics.running)]
        parts = torch.split(total, [*sizes, 3])
        for parameter, part in zip(self.parameters.values(), parts, strict=False):
            parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))
        averages = [
            part.view(tensor.shape)
            for part, tensor in zip(parts[len(self.parameters) :], statistics.running, strict=False)
        ]
        statistics.average(averages, sum(piece.stop > piece.start for piece in pieces))
        return parts[-1]


@dataclass(frozen=True)
class _Mixed:
    inputs: Tensor
    share: float  # of the example itself; the rest is of its partner, the mirror image in the batch


def _mixed(inputs: Tensor, settings: Finetune, seed: int) -> _Mixed:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) with one share for a batch; where both are on, they take
    turns by chance."""
    if not settings.mixup and not settings.cutmix:
        return _Mixed(inputs, 1.0)
    key = np.array([seed], dtype=np.uint64)
    which, share_draw, row, column = uniforms(seed, "mix", 0, key, 4)[0]
    is_cutmix = bool(settings.cutmix) and (not settings.mixup or which < 0.5)
    alpha = settings.cutmix if is_cutmix else settings.mixup
    from scipy.special import betaincinv  # a tenth of a second, for those who mix

    share = float(betaincinv(alpha, alpha, share_draw))
    if not is_cutmix:
        return _Mixed(share * inputs + (1 - share) * inputs.flip(0), share)
    height, width = inputs.shape[-2:]
    side = (1 - share) ** 0.5
    tall, wide = round(height * side), round(width * side)
    top, left = int(row * (height - tall + 1)), int(column * (width - wide + 1))
    mixed = inputs.clone()
    window = (..., slice(top, top + tall), slice(left, left + wide))
    mixed[window] = inputs.flip(0)[window]
    return _Mixed(mixed, 1 - tall * wide / (height * width))


def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


def _example_weights(job: Job) -> np.ndarray | None:
    """(n,) float32 with mean 1, so that each class counts the same; None: each example does."""
    if job.settings.class_balance != "weights":
        return None
    counts = np.bincount(job.train.labels)
    weights = (1 / np.maximum(counts, 1))[job.train.labels]
    return (weights / weights.mean()).astype(np.float32)
