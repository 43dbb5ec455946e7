"""Do the embedded base checkpoints earn their place? Few labelled digits or texts, from the base and from scratch.

    refit use image                 # or text
    dvc repro validate fetch
    python benchmarks/base_vs_scratch.py [--json FILE]          (8 minutes on one slow core)

Each seed draws 10 training images, or 20 texts, of each class; the same network learns from them, once from the base
and once from random weights, with the same examples, order, augmentation, new head and epochs. Each start has its
own short list of learning rates; validation chooses, by the mean over the seeds, and only the chosen runs ever see
the test split. Two Markdown tables go to standard output, a line per run to standard error, and FILE gets the
numbers of every run.
"""

import argparse
import contextlib
import dataclasses
import io
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measuring.refit_job import feed_of, job_of, read_project
from safetensors.torch import load_file
from torch import Tensor

from refit import paths
from refit.checkpoint.backbone import load_backbone
from refit.errors import CheckpointError, DataError, run_stage
from refit.files import publish_json, sha256_of_file
from refit.modality.contract import Opaque
from refit.model.classifier import predict_logits
from refit.params import Finetune
from refit.records import as_plain
from refit.scoring import metrics
from refit.training.determinism import be_deterministic, environment, uniforms
from refit.training.examples import Examples
from refit.training.job import Feed, Job
from refit.training.loop import Fitted, fit

SEEDS = {"image": range(5), "text": range(3)}
BUDGETS = {"image": (20, 40), "text": (20,)}  # epochs
BATCH_SIZE = 32
PER_CLASS = {"image": 10, "text": 20}
LEARNING_RATES = {
    "image": {"base": (0.001, 0.002), "scratch": (0.004, 0.01, 0.02)},
    "text": {"base": (0.001,), "scratch": (0.001, 0.002)},
}


@dataclass(frozen=True)
class Problem:
    """All that the runs share."""

    train: Examples  # the whole split; each seed draws from it
    val: Examples
    test: Examples
    num_classes: int
    modality_name: str
    preprocessing: Opaque
    feed: Feed
    base_weights: dict[str, Tensor]
    base_uri: str
    settings: Finetune  # less epochs and learning rate

    @property
    def seeds(self) -> range:
        """Each draws its own examples."""
        return SEEDS[self.modality_name]

    @property
    def budgets(self) -> tuple[int, ...]:
        """Epochs."""
        return BUDGETS[self.modality_name]

    @property
    def rates(self) -> dict[str, tuple[float, ...]]:
        """Learning rates to try, by start."""
        return LEARNING_RATES[self.modality_name]


@dataclass(frozen=True)
class Setup:
    """What tells one run from another."""

    epochs: int
    start: str  # base or scratch
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Run:
    """One training, before anybody has looked at the test split."""

    setup: Setup
    fitted: Fitted
    seconds: float  # of training, with validation after each epoch

    @property
    def val_accuracy(self) -> float:
        """Of the epoch that was kept."""
        return self.fitted.history[self.fitted.best_epoch - 1].val_accuracy


@dataclass(frozen=True)
class Arm:
    """One start under one budget, at the learning rate that validation chose."""

    epochs: int
    start: str
    learning_rate: float
    test_accuracies: tuple[float, ...]  # in the order of the seeds
    seconds: float  # median over the seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers of every run")
    target: Path | None = parser.parse_args().json

    device = be_deterministic(num_threads=1, device="cpu")
    with contextlib.redirect_stdout(io.StringIO()):  # the stages' own progress would bury the tables
        problem = read_problem()
        runs = [run_one(problem, setup) for setup in setups(problem)]
        arms = [choose(problem, runs, epochs, start) for epochs in problem.budgets for start in problem.rates]
    print(f"{arms_table(arms)}\n\n{differences_table(arms)}")
    if target is not None:
        publish_json(
            target, raw_numbers(runs, arms) | {"base": problem.base_uri, "environment": as_plain(environment(device))}
        )


def read_problem() -> Problem:
    """The images, the base and the settings, as the stages left them.

    Raises:
        DataError, CheckpointError: a stage has not run, or there is no base to speak of.
    """
    for path in (paths.ACCEPTED, paths.BASE_CARD, paths.BASE_WEIGHTS):
        if not path.is_file():
            raise DataError(f"{path} is missing; run `dvc repro validate fetch` in the project's root folder first")
    project = read_project()
    params, card = project.params, project.base
    if not card.num_tensors or sha256_of_file(paths.BASE_WEIGHTS) != card.sha256:
        raise CheckpointError(
            f"{paths.BASE_WEIGHTS} does not hold the pretrained weights of {paths.BASE_CARD}; "
            f"`refit use {params.data.modality}` and run `dvc repro fetch`"
        )
    train, val, test = (project.split(name) for name in ("train", "val", "test"))
    return Problem(
        train=train,
        val=val,
        test=test,
        num_classes=len(project.classes),
        modality_name=params.data.modality,
        preprocessing=project.preprocessing,
        feed=feed_of(params, project.preprocessing),
        base_weights=load_file(paths.BASE_WEIGHTS),
        base_uri=card.uri,
        settings=dataclasses.replace(params.finetune, strategy="full", batch_size=BATCH_SIZE),
    )


def draw_few(examples: Examples, per_class: int, seed: int) -> Examples:
    """Keep `per_class` examples of each class; which ones depends on the seed and on their content only.

    Raises:
        DataError: a class has fewer.
    """
    table = pd.DataFrame({"label": examples.labels, "draw": uniforms(seed, "few", 0, examples.keys, 1)[:, 0]})
    if table["label"].value_counts().min() < per_class:
        raise DataError(f"a class has fewer than {per_class} training examples")
    rows = table.sort_values("draw").groupby("label").head(per_class).index.to_numpy()
    sha256s = tuple(examples.sha256s[row] for row in rows)
    return Examples(sha256s, examples.labels[rows], examples.shelf, lambda indices: examples.prepare(rows[indices]))


def setups(problem: Problem) -> Iterator[Setup]:
    """Every run; the starts take turns, so that a busy machine slows both."""
    for epochs in problem.budgets:
        for seed in problem.seeds:
            for start, rates in problem.rates.items():
                for rate in rates:
                    yield Setup(epochs, start, rate, seed)


def run_one(problem: Problem, setup: Setup) -> Run:
    """Train once; the test split is not touched."""
    job = job_for(problem, setup)
    began = time.perf_counter()
    fitted = fit(job)
    run = Run(setup, fitted, time.perf_counter() - began)
    print(f"{setup}: val accuracy {run.val_accuracy:.4f}, {run.seconds:.1f} s", file=sys.stderr, flush=True)
    return run


def job_for(problem: Problem, setup: Setup) -> Job:
    """The training, with the network at its start. The head is new in both starts, and equal."""
    few = draw_few(problem.train, PER_CLASS[problem.modality_name], setup.seed)
    settings = dataclasses.replace(problem.settings, epochs=setup.epochs, learning_rate=setup.learning_rate)
    splits, kind = (few, problem.val), problem.modality_name
    job = job_of(kind, settings, splits, problem.feed, problem.num_classes, setup.seed, problem.preprocessing)
    if setup.start == "base":
        load_backbone(job.network, problem.base_weights, job.groups[-1].parameters, kind, problem.base_uri)
    return job


def choose(problem: Problem, runs: list[Run], epochs: int, start: str) -> Arm:
    """Take the learning rate with the best mean validation accuracy, the lowest among equals, and test its runs."""
    by_rate = {
        rate: [run for run in runs if run.setup in {Setup(epochs, start, rate, seed) for seed in problem.seeds}]
        for rate in problem.rates[start]
    }
    rate = max(by_rate, key=lambda rate: statistics.mean(run.val_accuracy for run in by_rate[rate]))
    return Arm(
        epochs,
        start,
        rate,
        tuple(accuracy_on_test(problem, run) for run in by_rate[rate]),
        statistics.median(run.seconds for run in by_rate[rate]),
    )


def accuracy_on_test(problem: Problem, run: Run) -> float:
    """Accuracy of a run's weights on the whole test split."""
    network = job_for(problem, run.setup).network
    network.load_state_dict(run.fitted.weights, strict=True)
    inputs = torch.from_numpy(problem.test.rows.gather(np.arange(len(problem.test))))
    with torch.inference_mode():
        logits = predict_logits(network, inputs, problem.feed.network_input, BATCH_SIZE)
    return metrics.accuracy(metrics.score(metrics.softmax(logits), problem.test.labels))


def differences(arms: list[Arm], epochs: int) -> list[float]:
    """Base less scratch, for each seed."""
    base, scratch = (
        next(arm for arm in arms if (arm.epochs, arm.start) == (epochs, start)) for start in ("base", "scratch")
    )
    return [ours - theirs for ours, theirs in zip(base.test_accuracies, scratch.test_accuracies, strict=True)]


def arms_table(arms: list[Arm]) -> str:
    """The chosen runs, a line for each budget and start."""
    lines = [
        "| epochs | start | learning rate | mean test accuracy | range over seeds | seconds per run |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for arm in arms:
        low, high = min(arm.test_accuracies), max(arm.test_accuracies)
        mean = statistics.mean(arm.test_accuracies)
        lines.append(
            f"| {arm.epochs} | {arm.start} | {arm.learning_rate:g} | {mean:.1%} | {low:.1%} to {high:.1%} "
            f"| {arm.seconds:.1f} |"
        )
    return "\n".join(lines)


def differences_table(arms: list[Arm]) -> str:
    """How much better the base is, seed by seed, in percentage points."""
    lines = ["| epochs | base less scratch, each seed (points) | mean | min |", "|---:|---|---:|---:|"]
    for epochs in dict.fromkeys(arm.epochs for arm in arms):
        points = [100 * difference for difference in differences(arms, epochs)]
        each = ", ".join(f"{value:+.1f}" for value in points)
        lines.append(f"| {epochs} | {each} | {statistics.mean(points):+.1f} | {min(points):+.1f} |")
    return "\n".join(lines)


def raw_numbers(runs: list[Run], arms: list[Arm]) -> dict[str, Any]:
    """Every run without its weights, and what was chosen."""
    return {
        "examples_per_class": PER_CLASS,
        "batch_size": BATCH_SIZE,
        "runs": [
            dataclasses.asdict(run.setup)
            | {"best_epoch": run.fitted.best_epoch, "val_accuracy": run.val_accuracy, "seconds": run.seconds}
            for run in runs
        ],
        "chosen": [dataclasses.asdict(arm) for arm in arms],
        "differences": {str(epochs): differences(arms, epochs) for epochs in dict.fromkeys(arm.epochs for arm in arms)},
    }


if __name__ == "__main__":
    run_stage(main)
