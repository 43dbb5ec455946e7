"""How fast is fine-tuning, and how good is what comes out? Refit against HF Trainer, fastai, Lightning, timm.

    uv venv peers-venv
    uv pip install --python peers-venv --compile-bytecode --constraint requirements.lock --group peers
    python benchmarks/training.py TASK --peers peers-venv/bin/python --photos FOLDER [--base FILE] [--json FILE]
    python benchmarks/training.py TASK --peers peers-venv/bin/python --texts FOLDER --base FOLDER [--json FILE]

Tasks:

    full            fine-tune all layers, 3 epochs, each row in pairs with Refit
    head            train the output layer only, 10 epochs, each row in pairs with Refit
    again           Refit's second run with another learning rate of the head, against its first
    later-epochs    passes over the photos without a network: Refit's against ImageFolder and transforms
    saving          the share of Refit's time that saving its state takes
    memory          memory of Refit's training as the set grows: 1,000, 10,000, 100,000 synthetic photos
    gpu             photos a second on a GPU, against the same loop on a batch that stays there

All get the same photos (Refit's accepted table), base weights, network, epochs, batch size, threads and seeds. Every
run is a new process in a new folder, in the order A B, B A, …; the ratio is taken within each pair. CPU seconds, wall
seconds and memory are of the whole process with its imports and children. Accuracy is on test photos that no row saw,
by one scorer, outside what is measured. How to read it: docs/benchmarks.md. Tables go to standard output, a line per
run to standard error, and FILE gets every number with the conditions.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import alone, photos, texts
from measuring.pairs import abba, of_mean, of_median, table
from measuring.place import Peers, Place, Row, Trained, conditions, prepare, random_weights
from measuring.refit_project import Setting

from refit.errors import run_stage
from refit.files import publish_json

EPOCHS = {"full": 3, "head": 10}
LEARNING_RATES = {"full": 0.0005, "head": 0.005}
OF_TEXTS = {"full": 0.00005, "head": 0.003}
MEASURES = (("cpu_seconds", "CPU s", 1), ("seconds", "wall s", 1), ("peak_rss_mb", "peak MB", 0))  # and digits

REFIT = Row("Refit", "refit")
ROWS = (
    Row("Refit again (A/A)", "refit"),
    Row("plain torch loop", "plain_loop"),
    Row("an engineer's day", "engineers_day", True),
    Row("HF Trainer, as shipped", "hf_trainer"),
    Row("HF Trainer, best flags", "hf_trainer", True),
    Row("fastai, as shipped", "fastai_learner"),
    Row("fastai, best flags", "fastai_learner", True),
    Row("Lightning, as shipped", "lightning_trainer"),
    Row("Lightning, best flags", "lightning_trainer", True),
    Row("timm, as shipped", "timm_loop"),
    Row("timm, best flags", "timm_loop", True),
    Row("torchvision reference, as shipped", "torchvision_reference"),
    Row("torchvision reference, best flags", "torchvision_reference", True),
)


ROWS_OF_TEXTS = (
    Row("Refit again (A/A)", "refit"),
    Row("HF Trainer, as shipped", "hf_texts"),
    Row("HF Trainer, best flags", "hf_texts", True),
)


@dataclass(frozen=True)
class Pair:
    """A rival beside Refit, with the same seed."""

    rival: Trained
    refit: Trained


def main() -> None:
    arguments = read_arguments()
    with tempfile.TemporaryDirectory(prefix="refit-training-", dir=arguments.work) as folder:
        numbers = measured(arguments, Path(folder))
    if arguments.json is not None:
        publish_json(arguments.json, {"conditions": conditions(arguments.peers, vars(arguments)), "runs": numbers})


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modules = list(dict.fromkeys(row.module for row in (*ROWS, *ROWS_OF_TEXTS)))
    parser.add_argument("task", choices=("full", "head", "again", "later-epochs", "saving", "memory", "gpu"))
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="a folder of class folders")
    parser.add_argument("--texts", type=Path, metavar="FOLDER", help="train.csv, val.csv, test.csv; for full and head")
    parser.add_argument("--num-texts", type=int, help="of train.csv; of the others, 200 and 600 at most")
    parser.add_argument("--test", type=Path, metavar="FOLDER", help="another, for the test; else a fifth of --photos")
    parser.add_argument("--num-photos", type=int, help="of --photos, with changed copies where there are fewer")
    parser.add_argument(
        "--base", type=Path, help="safetensors in torchvision's names (else random ones, made once); a folder for texts"
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--head-only", action="store_true", help="for later-epochs, saving, memory; head and again are")
    parser.add_argument("--epochs", type=int, help=f"else {EPOCHS}")
    parser.add_argument("--learning-rate", type=float, help=f"AdamW's, of Refit and best flags; else {LEARNING_RATES}")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, help="pixels (224), or tokens (128)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="of the data loaders, in the rows with best flags")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=modules, default=modules, help="`refit` is the A/A control")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="the interpreter that has the rivals")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="for memory")
    parser.add_argument("--limit-seconds", type=float, default=900, help="for memory: what takes longer is ended")
    parser.add_argument("--state-seconds", type=float, help="for saving: so often; else as it comes, once a minute")
    parser.add_argument("--work", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number")
    arguments = parser.parse_args()
    if arguments.texts is not None and (arguments.task not in ("full", "head") or arguments.base is None):
        parser.error("--texts goes with the tasks full and head, and with --base: the folder of a language model")
    if arguments.photos is None and arguments.texts is None and arguments.task not in ("memory", "gpu"):
        parser.error("--photos is needed: a folder of class folders")
    if arguments.peers is None and arguments.task in ("full", "head", "later-epochs"):
        parser.error("--peers is needed: the interpreter that has the rivals (see the top of this help)")
    return arguments


def measured(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Do the task: its table goes to standard output, its numbers back."""
    if arguments.task == "gpu":
        from measuring.gpu import report  # torch is loaded only where it is used

        return report(folder, arguments.pairs)
    setting = setting_of(arguments, folder)
    if arguments.task == "memory":
        return alone.memory(folder, setting, arguments.sizes, arguments.limit_seconds)
    if arguments.texts is not None:
        texts.lay_out(arguments.texts, folder / "photos", arguments.num_texts)
    else:
        photos.lay_out(arguments.photos, folder / "photos", photos.Draw(arguments.num_photos, test=arguments.test))
    peers = None if arguments.peers is None else Peers(arguments.peers, arguments.workers)
    place = prepare(folder, folder / "photos", setting, peers)
    if arguments.task == "again":
        return alone.again(place, arguments.pairs)
    if arguments.task == "later-epochs":
        return alone.later_epochs(place, arguments.pairs)
    if arguments.task == "saving":
        return alone.saving(place, arguments.pairs, arguments.state_seconds)
    rows = ROWS if arguments.texts is None else ROWS_OF_TEXTS
    return against_rivals(place, [row for row in rows if row.module in arguments.rows], arguments.pairs)


def setting_of(arguments: argparse.Namespace, folder: Path) -> Setting:
    strategy = "head" if arguments.head_only or arguments.task in ("head", "again") else "full"
    base = arguments.base and arguments.base.resolve()
    is_text = arguments.texts is not None
    model = json.loads((base / "config.json").read_text())["model_type"] if is_text else arguments.model
    return Setting(
        base=base or random_weights(model, folder / "random.safetensors"),
        model=model,
        strategy=strategy,
        epochs=arguments.epochs or EPOCHS[strategy],
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate or (OF_TEXTS if is_text else LEARNING_RATES)[strategy],
        size=arguments.size or (128 if is_text else 224),
        threads=arguments.threads,
        seed=0,
        modality="text" if is_text else "image",
    )


def against_rivals(place: Place, rows: Sequence[Row], num_pairs: int) -> list[dict[str, Any]]:
    """Each row in pairs with Refit."""
    for module in {row.module for row in rows} - {"refit"}:  # its byte code is made, and what is missing comes out
        place.run([place.peers_python, "-c", f"import peers.{module}"])
    pairs = {row: list(pairs_of(row, place, num_pairs)) for row in rows}
    print(rivals_table(pairs, place))
    return [
        {"row": row.name, "pair": number, "which": which, **dataclasses.asdict(getattr(pair, which))}
        for row, those in pairs.items()
        for number, pair in enumerate(those)
        for which in ("refit", "rival")
    ]


def pairs_of(row: Row, place: Place, num_pairs: int) -> Iterator[Pair]:
    """The number of a pair is its seed."""
    trained: dict[str, Trained] = {}
    for number, which in abba("refit", "rival", num_pairs):
        trained[which] = place.train(REFIT if which == "refit" else row, seed=number)
        print(f"{row.name}, pair {number}, {which}: {line(trained[which])}", file=sys.stderr, flush=True)
        if len(trained) == 2:
            yield Pair(**trained)
            trained = {}


def rivals_table(pairs: dict[Row, list[Pair]], place: Place) -> str:
    """Medians of each row, its ratios to Refit within pairs; the mean accuracy over the pairs' seeds."""
    setting = place.setting
    title = f"{setting.model}, {setting.strategy}, {place.counts['train']:,} examples, epochs: {setting.epochs}"
    measures = [cell for _, name, _ in MEASURES for cell in (name, "/ Refit's")]
    heading = [title, *measures, "own MB", f"accuracy on {place.counts['test']}", "less Refit's, points"]
    ours = [pair.refit for those in pairs.values() for pair in those]
    lines = [[REFIT.name, *cells_of(ours, [""] * len(MEASURES)), ""]]
    for row, those in pairs.items():
        ratios = [
            of_median([getattr(pair.rival.usage, what) / getattr(pair.refit.usage, what) for pair in those]).text()
            for what, _, _ in MEASURES
        ]
        points = of_mean([100 * (pair.rival.accuracy - pair.refit.accuracy) for pair in those])
        lines.append([row.name, *cells_of([pair.rival for pair in those], ratios), points.text("+.1f")])
    level = of_median([1.0] * len(those)).level
    how = f"Medians of {len(those)} pairs; ratios within pairs, with the sign test's interval at {level:.1%}."
    return f"{table(heading, lines)}\n\n{how} Accuracy: means over the pairs' seeds, with Student's interval at 95%."


def cells_of(trained: Sequence[Trained], ratios: Sequence[str]) -> list[str]:
    """A row's cells: each measure with its ratio, own memory, accuracy."""
    cells = []
    for (what, _, digits), ratio in zip(MEASURES, ratios, strict=True):
        cells += [f"{statistics.median(getattr(one.usage, what) for one in trained):,.{digits}f}", ratio]
    own = statistics.median(one.usage.own_mb for one in trained)
    return [*cells, f"{own:,.0f}", f"{statistics.fmean(one.accuracy for one in trained):.3f}"]


def line(trained: Trained) -> str:
    usage = trained.usage
    return (
        f"{usage.cpu_seconds:.1f} CPU s, {usage.seconds:.1f} s, {usage.peak_rss_mb:.0f} MB, own {usage.own_mb:.0f} MB, "
        f"load {usage.load:.1f}, accuracy {trained.accuracy:.3f}"
    )


if __name__ == "__main__":
    run_stage(main)
