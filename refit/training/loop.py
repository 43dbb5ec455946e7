"""The training loop. It knows batches and labels; what an example is, it is told by `Feed`.

    fitted = fit(network, head, train, val, feed, settings, seed)

Deterministic: the order of an epoch and every augmentation are functions of (seed, epoch, example); torch's own
generator, which dropout uses, is seeded anew for each step.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import modality
from ..errors import TrainingError
from ..modality.contract import Opaque
from ..model.classifier import predict_logits
from ..params import Finetune
from ..progress import say
from ..scoring import metrics
from .determinism import step_seed, uniforms
from .examples import Examples


@dataclass(frozen=True)
class Feed:
    """How prepared examples reach the network: the modality's functions, with its settings bound to them."""

    network_input: Callable[[Tensor], Tensor]  # (n, …) prepared or changed -> what the network reads
    augment: Callable[[Tensor, Tensor], Tensor]  # (n, …) and (n, num_draws) float32 in [0, 1) -> (n, …), changed
    num_draws: int


def feed_of(modality_name: str, preprocessing: Opaque, settings: Opaque) -> Feed:
    """The feed of a modality; `settings` are what it adds to the section `finetune`."""
    augmentation = modality.augmentation(modality_name)
    return Feed(
        network_input=partial(modality.networks(modality_name).network_input, preprocessing=preprocessing),
        augment=partial(augmentation.augment, settings=settings),
        num_draws=augmentation.NUM_DRAWS,
    )


@dataclass(frozen=True)
class Epoch:
    """One row of the history. Losses are in nats; accuracies in [0, 1]."""

    epoch: int
    learning_rate: float  # at the end of the epoch
    train_loss: float  # with label smoothing and augmentation, as optimised
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Fitted:
    """What training gives: the weights of the best epoch on validation, and how it went."""

    weights: dict[str, Tensor]  # on the CPU
    best_epoch: int
    history: tuple[Epoch, ...]
    temperature: float  # fitted on validation, for calibrated probabilities


def fit(
    network: nn.Module,
    head: list[str],
    train: Examples,
    val: Examples,
    feed: Feed,
    settings: Finetune,
    seed: int,
) -> Fitted:
    """Fine-tune `network` in place and keep the epoch that is best on validation.

    Best is the highest validation accuracy; among equals the lowest validation loss, then the earliest.

    Raises:
        TrainingError: the loss is not finite, or the network has no deterministic kernel on this device.
    """
    loop = _Loop(network, train, feed, settings, seed, head)
    history: list[Epoch] = []
    best: dict[str, Tensor] = {}
    best_logits = np.empty((0, 0))
    val_labels = val.labels.cpu().numpy()
    for epoch in range(settings.epochs):
        with _kernels_explained():
            train_loss, train_accuracy = loop.train_epoch(epoch)
            logits = predict_logits(network, val.inputs, feed.network_input, settings.batch_size)
        scored = metrics.score(metrics.softmax(logits), val_labels)
        history.append(
            Epoch(
                epoch=epoch + 1,
                learning_rate=loop.learning_rate,
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                val_loss=metrics.negative_log_likelihood(scored),
                val_accuracy=metrics.accuracy(scored),
            )
        )
        say(_line(history[-1], settings.epochs))
        if best_epoch(history) == epoch + 1:
            best = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            best_logits = logits
    temperature = metrics.fit_temperature(best_logits, val_labels)
    return Fitted(best, best_epoch(history), tuple(history), temperature)


class _Loop:
    """What lives from step to step: the optimizer and its schedule."""

    def __init__(
        self,
        network: nn.Module,
        train: Examples,
        feed: Feed,
        settings: Finetune,
        seed: int,
        head: list[str],
    ) -> None:
        self.network, self.train, self.feed = network, train, feed
        self.settings, self.seed = settings, seed
        self.batches = split_in_batches(len(train.labels), settings.batch_size)
        self.optimizer = _optimizer(network, head, settings)
        total_steps = settings.epochs * len(self.batches)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_at(step, total_steps, settings.warmup_fraction)
        )

    @property
    def learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """One pass over the training examples; gives its mean loss and accuracy."""
        keys, device = self.train.keys, self.train.labels.device
        order = uniforms(self.seed, "order", epoch, keys, 1)[:, 0].argsort(kind="stable")
        draws = uniforms(self.seed, "augment", epoch, keys, self.feed.num_draws).astype(np.float32)
        _set_training(self.network, self.settings.trainable)
        loss_sum, num_correct = 0.0, 0
        for index, batch in enumerate(self.batches):
            rows = torch.from_numpy(order[batch]).to(device)
            draws_of_batch = torch.from_numpy(draws[order[batch]]).to(device)
            inputs = self.feed.augment(self.train.inputs[rows], draws_of_batch)
            labels = self.train.labels[rows]
            torch.manual_seed(step_seed(self.seed, epoch * len(self.batches) + index))
            logits = self.network(self.feed.network_input(inputs))  # (batch, num_classes)
            loss = functional.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            loss_sum += _finite(loss, epoch, index) * len(rows)
            num_correct += int((logits.argmax(1) == labels).sum())
        return loss_sum / len(keys), num_correct / len(keys)


def best_epoch(history: Iterable[Epoch]) -> int:
    """The number of the best epoch so far: validation accuracy, then validation loss, then the earliest."""
    return min(history, key=lambda row: (-row.val_accuracy, row.val_loss, row.epoch)).epoch


def learning_rate_at(step: int, total_steps: int, warmup_fraction: float) -> float:
    """The share of the peak learning rate at a step: a linear rise, then half a cosine down to 0."""
    warmup_steps = round(total_steps * warmup_fraction)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def split_in_batches(num_examples: int, batch_size: int) -> list[slice]:
    """Slices that cover all examples; a last batch of one joins the one before (batch norm needs two)."""
    starts = list(range(0, num_examples, batch_size))
    if len(starts) > 1 and num_examples - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], num_examples], strict=True)]


def _set_training(network: nn.Module, trainable: str) -> None:
    """Training mode; a frozen backbone also keeps the statistics of its batch norms."""
    network.train()
    if trainable == "head":
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _optimizer(network: nn.Module, head: list[str], settings: Finetune) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); no decay on biases and norms; the head may learn faster."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        in_head = name in head
        parameter.requires_grad_(in_head or settings.trainable == "all")
        if parameter.requires_grad:
            groups.setdefault((in_head, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": settings.learning_rate * (settings.head_learning_rate_factor if in_head else 1.0),
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (in_head, decays), parameters in groups.items()
        ]
    )


@contextmanager
def _kernels_explained() -> Iterator[None]:
    """torch refuses a kernel whose result changes from run to run, in words for those who write networks."""
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise TrainingError(
            f"this model cannot be trained repeatably on a GPU: {operation} has no deterministic implementation there; "
            "set `finetune.device` to cpu, or choose another `finetune.model`"
        ) from None


def _finite(loss: Tensor, epoch: int, index: int) -> float:
    value = float(loss.detach())  # waits for the device; a run that has gone wrong must stop at once
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} in epoch {epoch + 1}, batch {index + 1}; try a lower `finetune.learning_rate`"
        )
    return value


def _line(row: Epoch, epochs: int) -> str:
    return (
        f"epoch {row.epoch:>3}/{epochs}  train loss {row.train_loss:.4f}  accuracy {row.train_accuracy:.4f}  "
        f"val loss {row.val_loss:.4f}  accuracy {row.val_accuracy:.4f}"
    )
