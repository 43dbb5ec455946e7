"""What is measured of Refit without its rivals: a second run, later epochs, saving, memory.

Each function prints a table and gives every number.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import photos, refit_project
from .pairs import abba, of_median, table
from .place import Place, Row, environment, prepare
from .processes import Usage, measure
from .refit_project import FINETUNE, IMPORTS, Setting

_PASSES = 4


def again(place: Place, num_rounds: int) -> list[dict[str, Any]]:
    """A second run in the same folder with another learning rate of the head; both less the imports."""
    usages: dict[str, list[Usage]] = {"first": [], "second": [], "imports": []}
    for number in range(num_rounds):
        project = refit_project.copy_of(place.project, place.folder / f"again-{number}")
        usages["imports"].append(_measured(place, IMPORTS, project))
        usages["first"].append(_measured(place, FINETUNE, project))
        refit_project.configure(project, {"finetune.learning_rate": place.setting.learning_rate / 2})
        usages["second"].append(_measured(place, FINETUNE, project))
    rows = []
    for what, name in (("cpu_seconds", "CPU seconds"), ("seconds", "seconds")):
        values = {step: [getattr(one, what) for one in those] for step, those in usages.items()}
        ratios = [(one - base) / (two - base) for one, two, base in zip(*values.values(), strict=True)]
        rows.append([name, *(f"{statistics.median(those):.1f}" for those in values.values()), of_median(ratios).text()])
    print(table(["", *usages, "first / second, imports apart"], rows))
    return _plain(usages)


def later_epochs(place: Place, num_pairs: int) -> list[dict[str, Any]]:
    """Passes over the training photos without a network, against ImageFolder, transforms and a DataLoader."""
    job = place.write_job(place.folder / "passes.json", Row("", ""), 0, place.folder / "none")
    commands = {
        "Refit": [sys.executable, "-m", "measuring.refit_passes", str(_PASSES)],
        "ImageFolder": [place.peers_python, "-m", "peers.passes", str(job), str(_PASSES)],
    }
    speeds: dict[str, dict[int, dict[str, float]]] = {name: {} for name in commands}
    for pair, name in abba("Refit", "ImageFolder", num_pairs):
        is_refit = name == "Refit"
        cwd = refit_project.copy_of(place.project, place.folder / f"passes-{pair}") if is_refit else place.folder
        speeds[name][pair] = json.loads(place.run(commands[name], cwd).splitlines()[-1])
        _note(f"{name}: {speeds[name][pair]}")
    rows = []
    for which in ("first", "later"):
        ours, theirs = ([speeds[name][pair][which] for pair in range(num_pairs)] for name in commands)
        ratio = of_median([our / their for our, their in zip(ours, theirs, strict=True)]).text()
        rows.append([f"{which} pass", *(f"{statistics.median(values):,.0f}" for values in (ours, theirs)), ratio])
    print(table(["photos a second", *commands, "ratio"], rows))
    return [{"row": name, "pair": pair, **speed} for name, those in speeds.items() for pair, speed in those.items()]


def saving(place: Place, num_pairs: int, state_seconds: float | None) -> list[dict[str, Any]]:
    """Pairs of runs that save every `state_seconds` (None: as it comes, once a minute), and never."""
    usages: dict[str, list[Usage]] = {"saving": [], "not saving": []}
    for pair, name in abba("saving", "not saving", num_pairs):
        project = refit_project.copy_of(place.project, place.folder / f"{name.replace(' ', '-')}-{pair}")
        seconds = state_seconds if name == "saving" else refit_project.NEVER
        more = {} if seconds is None else {refit_project.SECONDS_BETWEEN_STATES: str(seconds)}
        usages[name].append(_measured(place, FINETUNE, project, more_environment=more))
    rows = []
    for what, name in (("cpu_seconds", "CPU seconds"), ("seconds", "seconds")):
        values = [[getattr(one, what) for one in those] for those in usages.values()]
        shares = [100 * (1 - without / with_it) for with_it, without in zip(*values, strict=True)]
        rows.append([name, *(f"{statistics.median(those):.1f}" for those in values), of_median(shares).text(".1f")])
    print(table(["", *usages, "share that saving takes, %"], rows))
    return _plain(usages)


def memory(folder: Path, setting: Setting, sizes: Sequence[int], limit_seconds: float) -> list[dict[str, Any]]:
    """One epoch, or as far as the limit goes: what a growing set needs shows in the first steps."""
    usages: dict[int, Usage] = {}
    for size in sizes:
        inside = folder / str(size)
        inside.mkdir()
        photos.lay_out_synthetic(inside / "photos", size, setting.size)
        place = prepare(inside, inside / "photos", dataclasses.replace(setting, epochs=1), None)
        usages[size] = _measured(place, FINETUNE, place.project, limit_seconds)
    rows = [
        [*(f"{number:,.0f}" for number in (size, one.own_mb, one.peak_rss_mb, one.seconds)), str(not one.was_ended)]
        for size, one in usages.items()
    ]
    print(table(["photos", "own memory, MB", "with mapped files, MB", "seconds", "ran to its end"], rows))
    return [{"num_photos": size, **dataclasses.asdict(one)} for size, one in usages.items()]


def _measured(
    place: Place,
    command: list[str],
    project: Path,
    limit_seconds: float | None = None,
    more_environment: Mapping[str, str] | None = None,
) -> Usage:
    env = environment(project, place.setting.threads) | dict(more_environment or {})
    usage = measure(command, project, env, project.with_suffix(".log"), limit_seconds)
    _note(f"{project.name}: {usage}")
    return usage


def _plain(usages: dict[str, list[Usage]]) -> list[dict[str, Any]]:
    return [
        {"row": name, "pair": pair, **dataclasses.asdict(one)}
        for name, those in usages.items()
        for pair, one in enumerate(those)
    ]


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
