"""The training loop. It knows batches and labels; what an example is, it is told by `Feed`.

    fitted = fit(job, keeper)

Deterministic: the order of an epoch and every augmentation are functions of (seed, epoch, example); torch's own
generator, which dropout uses, is seeded anew for each step and shard. So a training that was killed goes on from its
last saved state, on as many processes as there are now, and ends with the same bits.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from ..errors import TrainingError
from ..progress import TrainingProgress, say, training_progress
from ..scoring import metrics
from ..stopping import Stopped, ending_at_once, stop_requests
from .arithmetic import autocast
from .determinism import uniforms
from .features import Stream, Work, stream_for
from .job import Job
from .plan import Phase, num_steps
from .shards import Ranks
from .state import Epoch, Keeper, Position, parse
from .step import Learner

_STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 16}
"""How many steps a GPU may run ahead before their losses are looked at, which waits for it."""


_BATCHES_IN_POOL = 32
"""Among so many batches' examples those of like extent are put together: enough for little padding, and few enough that
an epoch's batches stay a matter of chance."""


@dataclass(frozen=True)
class Fitted:
    """What training gives: the weights of the best epoch on validation, and how it went."""

    weights: dict[str, Tensor]  # on the CPU
    best_epoch: int
    history: tuple[Epoch, ...]
    temperature: float  # fitted on validation, for calibrated probabilities
    work: Work


def fit(job: Job, keeper: Keeper | None = None, ranks: Ranks | None = None) -> Fitted:
    """Fine-tune `job.network` in place and keep the epoch that is best on validation.

    Best is the highest validation accuracy; among equals the lowest validation loss, then the earliest.

    Raises:
        TrainingError: the loss is not finite, the network has no deterministic kernel on this device, or does not fit
            in its memory.
        Stopped: the process was asked to stop; its state is saved.
    """
    run = _Run(job, keeper or Keeper(None), ranks or Ranks())
    with _device_explained(), run.progress() as progress:
        while (phase := run.phase()) is not None:
            learner = run.begin(phase)  # a signal ends it at once: what the caches hold by then is kept
            with stop_requests() as requested:
                while run.position.epoch < phase.epochs and not run.is_over():
                    with ending_at_once():
                        learner.stream.prepare(len(run.position.history))
                    learner.stream.train_mode()
                    for rows in run.remaining_batches():
                        sums = learner.step(rows, run.position, wants_stop=requested() is not None)
                        run.count(rows, sums, learner, progress)
                        run.save_if_due(learner, requested)
                    run.end_epoch(phase, learner, requested)
                    run.save_if_due(learner, requested)
            run.end_phase()
    return run.result()


class _Run:
    """A training that is going on: its position, and the best weights so far."""

    def __init__(self, job: Job, keeper: Keeper, ranks: Ranks) -> None:
        self.job, self.keeper, self.ranks = job, keeper, ranks
        self.work = Work()
        self.position = Position()
        self.best: dict[str, Tensor] = {}  # what learns in any phase, and `logits` on validation; on the CPU
        self.restored: dict[str, Tensor] = {}
        self.pending: list[tuple[Position, np.ndarray, Tensor]] = []  # steps whose losses nobody has looked at
        self.stop_votes = 0.0
        frozen = job.frozen(min(phase.first_group for phase in job.plan.phases))
        self.moving = {name: tensor for name, tensor in job.network.state_dict().items() if name not in frozen}
        self._restore()
        self.started = time.monotonic() - self.position.seconds
        self.epoch_begun = self.started
        self.epoch_seconds = 0.0  # of the last one

    def _restore(self) -> None:
        data = self.ranks.from_first(self.keeper.load() if self.ranks.is_first else None)
        if data is None:
            return
        self.position, tensors = parse(data)
        for name, tensor in self.moving.items():
            tensor.copy_(tensors.pop(f"network/{name}"))
        self.restored = tensors
        best = self.keeper.load_best(self.position.best_epoch) if self.ranks.is_first else None
        if (best := self.ranks.from_first(best)) is not None:
            self.best = load(best)
        say(
            f"going on after {self.position.steps_done:,} steps, in epoch {len(self.position.history) + 1} "
            f"of {self.job.plan.epochs}"
        )

    def progress(self) -> AbstractContextManager[TrainingProgress]:
        """Shows how the training gets on."""
        steps = self.job.plan.epochs * num_steps(len(self.job.train), self.job.plan.batch_size)
        if not self.ranks.is_first:
            return nullcontext(TrainingProgress(steps, 0, lambda _: None, math.inf))
        return training_progress(steps, done_steps=self.position.steps_done)

    def phase(self) -> Phase | None:
        """What is to be done next; None: nothing more."""
        phases = self.job.plan.phases
        return phases[self.position.phase] if self.position.phase < len(phases) else None

    def begin(self, phase: Phase) -> Learner:
        """The phase's learner, where it was left."""
        stream = stream_for(self.job, phase, self.work)
        learner = Learner(self.job, phase, stream, self.ranks)
        if self.restored:
            learner.load(self.restored)
            self.restored = {}
        return learner

    def remaining_batches(self) -> Iterator[np.ndarray]:
        """The rows of each batch of the present epoch that was not learned yet."""
        self.epoch_begun = time.monotonic()  # the filling of caches is no part of an epoch
        order = epoch_order(self.job, len(self.position.history))
        for batch in split_in_batches(len(order), self.job.plan.batch_size)[self.position.step :]:
            yield order[batch]

    def count(self, rows: np.ndarray, sums: Tensor, learner: Learner, progress: TrainingProgress) -> None:
        """A step was made."""
        self.position = dataclasses.replace(
            self.position, step=self.position.step + 1, steps_done=self.position.steps_done + 1
        )
        self.pending.append((self.position, rows, sums))
        self.work.steps += 1
        if learner.stream.part == "whole":
            self.work.whole_forwards += len(rows)
        else:
            self.work.rest_forwards += len(rows)
        progress.step(len(rows), sums[0] / len(rows), sums[1] / len(rows))
        if len(self.pending) >= _STEPS_BETWEEN_LOOKS[self.job.device.type]:
            self._look()

    def _look(self) -> None:
        """Add up the losses of the steps since the last look."""
        for made, rows, sums in self.pending:
            loss_sum, num_correct, votes = sums.tolist()
            if not math.isfinite(loss_sum):
                raise TrainingError(self._diagnosis(made, rows, loss_sum))
            self.stop_votes += votes
            self.position = dataclasses.replace(
                self.position,
                loss_sum=self.position.loss_sum + loss_sum,
                num_correct=self.position.num_correct + int(num_correct),
            )
        self.pending.clear()

    def _diagnosis(self, made: Position, rows: np.ndarray, loss_sum: float) -> str:
        names = ", ".join(self.job.train.sha256s[row][:12] for row in rows[:8])
        return (
            f"the loss is {loss_sum} in epoch {len(made.history) + 1}, batch {made.step} (step {made.steps_done}); "
            f"its examples begin with {names} (SHA-256). Try a lower "
            "`finetune.learning_rate`, or set `finetune.gradient_clip`; the last saved state is kept"
        )

    def save_if_due(self, learner: Learner, requested: Callable[[], Stopped | None]) -> None:
        """Save now and then; and at once where any rank was asked to stop, which is then obeyed.

        Only where no loss is left to be looked at: all ranks come there at the same steps.
        """
        stops = self.stop_votes > 0
        if self.pending or not (stops or self.keeper.is_due()):
            return
        self._save(learner)
        if stops:
            raise requested() or Stopped(15)

    def _save(self, learner: Learner) -> None:
        if self.ranks.is_first:
            network = {f"network/{name}": tensor for name, tensor in self.moving.items()}
            position = dataclasses.replace(self.position, seconds=time.monotonic() - self.started)
            self.keeper.save(position, network | learner.tensors(), self.best)

    def end_epoch(self, phase: Phase, learner: Learner, requested: Callable[[], Stopped | None]) -> None:
        """Validate, write down how the epoch went, and keep the weights if they are the best so far."""
        self._look()
        with learner.average.in_place():
            logits = self._validation_logits(learner.stream, requested)
            if logits is not None:
                history = (*self.position.history, self._scored(phase, learner, logits))
                best = best_epoch(history)
                if best == len(history):
                    self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.moving.items()}
                    self.best["logits"] = torch.from_numpy(logits)
        if logits is None:
            self._save(learner)
            raise requested() or Stopped(15)
        self.epoch_seconds = time.monotonic() - self.epoch_begun
        if self.ranks.is_first:
            say(_line(history[-1], self.job.plan.epochs))
            self.keeper.publish(history)
        self.position = dataclasses.replace(
            self.position, epoch=self.position.epoch + 1, step=0, loss_sum=0.0, num_correct=0, history=history,
            best_epoch=best, seconds=time.monotonic() - self.started,
        )  # fmt: skip

    def _scored(self, phase: Phase, learner: Learner, logits: np.ndarray) -> Epoch:
        scored = metrics.score(metrics.softmax(logits), self.job.val.labels)
        return Epoch(
            epoch=len(self.position.history) + 1,
            learning_rate=phase.learning_rate * learner.learning_rate(self.position),
            train_loss=self.position.loss_sum / len(self.job.train),
            train_accuracy=self.position.num_correct / len(self.job.train),
            val_loss=metrics.negative_log_likelihood(scored),
            val_accuracy=metrics.accuracy(scored),
        )

    @torch.inference_mode()
    def _validation_logits(self, stream: Stream, requested: Callable[[], Stopped | None]) -> np.ndarray | None:
        """(n, num_classes) float32; each rank computes some batches, whole, and all get all.

        None: the process, which trains alone, was asked to stop.
        """
        stream.logits.eval()
        count, size = len(self.job.val), self.job.plan.batch_size
        extents = self.job.val_extents
        order = np.arange(count) if extents is None else extents.argsort(kind="stable")
        logits = torch.zeros(count, self.job.num_classes, device=self.job.device)
        for start in range(self.ranks.index * size, count, self.ranks.count * size):
            if self.ranks.count == 1 and requested():
                return None
            rows = order[start : start + size]
            with autocast(self.job.device, self.job.precision):
                logits[torch.from_numpy(rows).to(logits.device)] = stream.logits(stream.val(rows)).float()
            self.work.val_forwards += len(rows)
        found = np.asarray(self.ranks.tree_sum(logits).cpu().numpy())
        if np.isnan(found).any():
            raise TrainingError(
                f"the network's logits on validation are not numbers after epoch {len(self.position.history) + 1}, "
                "though the losses of training are. Try a lower `finetune.learning_rate`; the last saved state is kept"
            )
        return found

    def is_over(self) -> bool:
        """Whether no further epoch is to be made, though the plan has some."""
        history, settings = self.position.history, self.job.settings
        if self.job.stopped_after is not None:
            return len(history) >= self.job.stopped_after
        patience = settings.early_stopping_epochs
        is_last = self.position.phase == len(self.job.plan.phases) - 1
        since_best = len(history) - best_epoch(history) if history else 0
        if patience is not None and is_last and min(self.position.epoch, since_best) >= patience:
            return True
        if settings.max_minutes is None or not history:
            return False
        ends = time.monotonic() - self.started + self.epoch_seconds
        told = self.ranks.from_first(b"over" if ends > 60 * settings.max_minutes else b"")  # one clock for all
        return bool(told)

    def end_phase(self) -> None:
        """Go to the next phase, or to the end."""
        is_cut = self.position.epoch < self.job.plan.phases[self.position.phase].epochs
        following = len(self.job.plan.phases) if is_cut else self.position.phase + 1
        self.position = dataclasses.replace(self.position, phase=following, epoch=0)

    def result(self) -> Fitted:
        """The best epoch's weights, and all that was seen."""
        logits = self.best.pop("logits").numpy()
        rest = {name: tensor.detach().cpu() for name, tensor in self.job.network.state_dict().items()}
        return Fitted(
            weights=rest | self.best,
            best_epoch=self.position.best_epoch,
            history=self.position.history,
            temperature=metrics.fit_temperature(logits, self.job.val.labels),
            work=self.work,
        )


def epoch_order(job: Job, epoch: int) -> np.ndarray:
    """(n,) int64: which example comes when in an epoch, whatever the order in which they were given.

    With `finetune.class_balance: sampling` each place is drawn with replacement, every class with the same chance.
    """
    order = _drawn_order(job, epoch)
    return order if job.train_extents is None else _in_batches_of_like(job, epoch, order, job.train_extents)


def _in_batches_of_like(job: Job, epoch: int, order: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """An order whose batches have examples of about one extent: sorted in pools of several batches, and these batches
    in another order. What is left over for the last batch stays there."""
    size = job.plan.batch_size
    starts = range(0, len(order), _BATCHES_IN_POOL * size)
    pools = [order[start : start + _BATCHES_IN_POOL * size] for start in starts]
    alike = np.concatenate([pool[extents[pool].argsort(kind="stable")] for pool in pools])
    whole = len(order) // size
    turns = uniforms(job.seed, "batches", epoch, np.arange(whole, dtype=np.uint64), 1)[:, 0].argsort(kind="stable")
    return np.concatenate([alike[: whole * size].reshape(whole, size)[turns].reshape(-1), alike[whole * size :]])


def _drawn_order(job: Job, epoch: int) -> np.ndarray:
    keys = job.train.keys
    if job.settings.class_balance != "sampling":
        return np.asarray(uniforms(job.seed, "order", epoch, keys, 1)[:, 0].argsort(kind="stable"))
    known = keys.argsort(kind="stable")
    counts = np.bincount(job.train.labels)
    chances = np.cumsum(1 / counts[job.train.labels[known]])
    places = np.arange(len(keys), dtype=np.uint64)
    drawn = uniforms(job.seed, "sample", epoch, places, 1)[:, 0] * chances[-1]
    return np.asarray(known[np.searchsorted(chances, drawn, side="right").clip(max=len(known) - 1)])


def best_epoch(history: Iterable[Epoch]) -> int:
    """The number of the best epoch so far: validation accuracy, then validation loss, then the earliest."""
    return min(history, key=lambda row: (-row.val_accuracy, row.val_loss, row.epoch)).epoch


def split_in_batches(num_examples: int, batch_size: int) -> list[slice]:
    """Slices that cover all examples; a last batch of one joins the one before (batch norm needs two)."""
    starts = list(range(0, num_examples, batch_size))
    if len(starts) > 1 and num_examples - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], num_examples], strict=True)]


@contextmanager
def _device_explained() -> Iterator[None]:
    """torch says what a device cannot do, and refuses a kernel whose result changes from run to run, in words for those
    who write networks."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(
            "the GPU has not enough memory for a batch; set `finetune.shards` to 2, 4, … (the same batch, computed in "
            "parts), or a smaller `finetune.batch_size`"
        ) from None
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise TrainingError(
            f"this model cannot be trained repeatably on a GPU: {operation} has no deterministic implementation there; "
            "set `finetune.device` to cpu, or choose another `finetune.model`"
        ) from None


def _line(row: Epoch, epochs: int) -> str:
    return (
        f"epoch {row.epoch:>3}/{epochs}  train loss {row.train_loss:.4f}  accuracy {row.train_accuracy:.4f}  "
        f"val loss {row.val_loss:.4f}  accuracy {row.val_accuracy:.4f}"
    )
