"""How good are the recipes? Accuracy over seeds of ways to fine-tune, on a folder of photos.

    python benchmarks/recipes.py --photos FOLDER --base FILE --model mobilenet_v2 [--test FOLDER] [--per-class 60]
                                 [--epochs 4] [--seeds 5] [--rivals hf_trainer … --peers PYTHON] [--json FILE]

Fine-tuning from given weights against scratch; the head alone, all layers, first the one and then the other. Each seed
draws its own training and validation photos (and its test, where --test gives no folder), and its own randomness of the
training; every recipe gets the same ones. Each recipe has a short list of learning rates; *validation* chooses, by the
mean over the seeds. Test photos choose nothing. The last recipe leaves strategy, rate and batch size to Refit. Rivals
are those of training.py; as shipped they keep their own rate.

A Markdown table goes to standard output (means with Student's intervals over the seeds; differences are paired by
seed), a line per run to standard error, and FILE gets every number with the conditions.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from measuring import photos
from measuring.pairs import of_mean, table
from measuring.place import Peers, Place, Row, Trained, conditions, prepare
from measuring.refit_project import Setting
from training import REFIT, ROWS

from refit.errors import run_stage
from refit.files import publish_json

RIVALS = {row.module for row in ROWS} - {"refit"}


Rate = float | Literal["auto"]  # of AdamW, at its peak


@dataclass(frozen=True)
class Recipe:
    """A way to fine-tune, with the learning rates that validation chooses from."""

    name: str
    learning_rates: tuple[Rate, ...]
    strategy: str = "full"
    from_scratch: bool = False
    row: Row = REFIT


OF_REFIT = (
    Recipe("all layers, from the base", (0.0003, 0.001)),
    Recipe("all layers, from scratch", (0.001, 0.003), from_scratch=True),
    Recipe("head only", (0.003, 0.01), strategy="head"),
    Recipe("head, then all layers", (0.0003, 0.001), strategy="lp_ft"),
    Recipe("from the top, stage by stage", (0.0003, 0.001), strategy="staged"),
    Recipe("as `auto` chooses", ("auto",), strategy="auto"),
)


STRATEGIES = list(dict.fromkeys(recipe.strategy for recipe in OF_REFIT))


@dataclass(frozen=True)
class Run:
    """One training."""

    recipe: str
    learning_rate: Rate
    seed: int
    trained: Trained


def main() -> None:
    arguments = read_arguments()
    recipes = list(chosen_recipes(arguments))
    with tempfile.TemporaryDirectory(prefix="refit-recipes-", dir=arguments.work) as folder:
        runs = [run for seed in range(arguments.seeds) for run in runs_of_seed(seed, recipes, arguments, Path(folder))]
    print(recipes_table(recipes, runs))
    if arguments.json is not None:
        numbers = [dataclasses.asdict(run) for run in runs]
        publish_json(arguments.json, {"conditions": conditions(arguments.peers, vars(arguments)), "runs": numbers})


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", required=True, help="a folder of class folders")
    parser.add_argument("--test", type=Path, metavar="FOLDER", help="another, for the test; else a fifth of --photos")
    parser.add_argument("--num-photos", type=int, help="of --photos; else all")
    parser.add_argument("--per-class", type=int, help="at most so many training photos of each class")
    parser.add_argument("--base", type=Path, required=True, help="safetensors in torchvision's names")
    parser.add_argument("--model", required=True, help="torchvision's name")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES, help="of Refit's")
    parser.add_argument("--rivals", nargs="+", choices=sorted(RIVALS), default=[])
    parser.add_argument("--only-best-flags", action="store_true", help="leave out rivals as shipped")
    parser.add_argument("--workers", type=int, default=1, help="of the data loaders, in rivals' rows with best flags")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="the interpreter that has the rivals")
    parser.add_argument("--work", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number")
    arguments = parser.parse_args()
    if arguments.rivals and arguments.peers is None:
        parser.error("--rivals needs --peers: the interpreter that has them (see training.py)")
    return arguments


def chosen_recipes(arguments: argparse.Namespace) -> Iterator[Recipe]:
    """Refit's, then the rivals'."""
    for recipe in OF_REFIT:
        if recipe.strategy in arguments.strategies:
            yield recipe
    for row in ROWS:
        if row.module in arguments.rivals and (row.best_flags or not arguments.only_best_flags):
            yield Recipe(row.name, (0.0003, 0.001) if row.best_flags else (0.0003,), row=row)


def runs_of_seed(seed: int, recipes: Sequence[Recipe], arguments: argparse.Namespace, above: Path) -> Iterator[Run]:
    """Every recipe at every rate, on the photos that the seed draws."""
    folder = above / str(seed)
    folder.mkdir()
    draw = photos.Draw(arguments.num_photos, arguments.per_class, arguments.test, seed)
    photos.lay_out(arguments.photos, folder / "photos", draw)
    setting = Setting(
        base=arguments.base.resolve(),
        model=arguments.model,
        strategy="full",
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=0.001,  # each recipe has its own
        size=arguments.size,
        threads=arguments.threads,
        seed=seed,
    )
    peers = None if arguments.peers is None else Peers(arguments.peers, arguments.workers)
    from_base = prepare(folder, folder / "photos", setting, peers)
    from_scratch = from_base.from_scratch() if any(recipe.from_scratch for recipe in recipes) else from_base
    note(f"seed {seed}: {from_base.counts}")
    for recipe in recipes:
        for rate in recipe.learning_rates:
            trained = train(recipe, rate, seed, from_scratch if recipe.from_scratch else from_base)
            note(f"seed {seed}, {recipe.name}, {rate}: val {trained.val_accuracy:.3f}, test {trained.accuracy:.3f}")
            yield Run(recipe.name, rate, seed, trained)


def train(recipe: Recipe, rate: Rate, seed: int, place: Place) -> Trained:
    """Refit reads it from params.yaml, a rival from its job."""
    settings: dict[str, object] = {"finetune.strategy": recipe.strategy, "finetune.learning_rate": rate}
    if rate == "auto":
        settings["finetune.batch_size"] = "auto"
    else:
        place = dataclasses.replace(place, setting=dataclasses.replace(place.setting, learning_rate=rate))
    return place.train(recipe.row, seed, settings)


def recipes_table(recipes: Sequence[Recipe], runs: Sequence[Run]) -> str:
    """Each recipe at the rate that validation chose; differences to the first one."""
    chosen = {recipe.name: best_rate(recipe, runs) for recipe in recipes}
    first = chosen[recipes[0].name]
    lines = []
    for name, those in chosen.items():
        accuracies = [run.trained.accuracy for run in those]
        points = [
            100 * (run.trained.accuracy - other.trained.accuracy) for run, other in zip(those, first, strict=True)
        ]
        lines.append(
            [
                name,
                str(those[0].learning_rate),
                of_mean(accuracies).text(".3f"),
                f"{min(accuracies):.3f} to {max(accuracies):.3f}",
                "" if those is first else of_mean(points).text("+.1f"),
                f"{statistics.median(run.trained.usage.cpu_seconds for run in those):.1f}",
            ]
        )
    heading = ["recipe", "rate", "test accuracy", "range", f"less `{recipes[0].name}`, points", "CPU s"]
    num_test = len(first[0].trained.hits)
    return (
        f"{table(heading, lines)}\n\n{len(first)} seeds, {num_test} test photos; means with Student's interval at 95%."
    )


def best_rate(recipe: Recipe, runs: Sequence[Run]) -> list[Run]:
    """The recipe's runs at the rate with the highest mean accuracy on validation, in the order of the seeds."""
    by_rate = [
        [run for run in runs if (run.recipe, run.learning_rate) == (recipe.name, rate)]
        for rate in recipe.learning_rates
    ]
    return max(by_rate, key=lambda those: statistics.fmean(run.trained.val_accuracy for run in those))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_stage(main)
