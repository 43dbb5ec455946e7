"""What does the orchestration cost? The same digits job by bare stage calls, by `dvc repro` and by the flow.

The job is all of it: the stages, the comparison with the champion and the registration in MLflow, which the first two
ways do by `refit register`.

    python benchmarks/overhead.py [--rounds 3] [--epochs 15] [--json FILE]          (14 minutes on two slow cores)

Each round takes the ways in turn, each in a new clone of this repository's last commit: first with nothing cached,
then once more in the same clone. The flow runs with a temporary Prefect server of its own and with one that runs
already. Then the scheduled form, `retrain --branch` in a new clone, when nothing is new. Markdown tables go to
standard output, a line per run to standard error, and FILE gets every number.

Seconds are of the whole process; CPU seconds are of the process and all that it started and waited for, to which
those of the running server come. Overhead is what passes outside the stages' own processes, which note their time
themselves: on a busy machine two trainings differ by more than the orchestration costs. Databases are made
beforehand, since a machine pays for them once.
"""

import argparse
import dataclasses
import os
import re
import resource
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from refit.errors import WorkspaceError, run_stage
from refit.files import publish_json
from refit.paths import STAGE_OUTPUTS

ROOT = Path(__file__).resolve().parents[1]
JOB_SECONDS = 60
TARGET = 0.05  # of the job
SECONDS_TO_START = 240  # a slow machine's first start of a server
LAST_TASKS = {"register", "look for news"}  # of a retraining, and of one with nothing to do
IMPORTS = ("flows.retrain", "dvc.repo", "mlflow", "torch")

_RETRAIN = [sys.executable, "-m", "flows", "retrain"]
_REPRO, _REGISTER = "python -m dvc repro", "python -m flows register"
_COMMANDS = {
    "stages": ["sh", "-c", " && ".join([*(f"python -m tasks.{stage}" for stage in STAGE_OUTPUTS), _REGISTER])],
    "dvc": ["sh", "-c", f"{_REPRO} && {_REGISTER}"],
    "flow, own server": _RETRAIN,
    "flow, running server": _RETRAIN,
}
_UNCHANGED = {**_COMMANDS, "dvc": ["sh", "-c", _REPRO]}
_DECODED = re.compile(r"(?:decode|read \w+): ([\d,]+) done")
_EPOCH = re.compile(r"epoch +\d+/")

# A sitecustomize.py: every Python process reads it. The stages' processes leave a line when they end.
_CLOCK = """\
import atexit, os, resource, sys, time
if "-m" in sys.orig_argv and sys.orig_argv[-1] in os.environ["BENCHMARK_STAGES"].split():
    began = time.perf_counter()
    def note():
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        with open(os.environ["BENCHMARK_CLOCK"], "a") as file:
            print(time.perf_counter() - began, sum(one.ru_utime + one.ru_stime for one in usage), file=file)
    atexit.register(note)
"""


@dataclass(frozen=True)
class Run:
    """One process, from start to end."""

    way: str
    state: str  # cold, unchanged, scheduled
    seconds: float
    cpu_seconds: float
    stage_seconds: float  # of these, within the stages' processes
    stage_cpu_seconds: float
    load: float  # of the machine in the minute before
    work: dict[str, int]  # stages that ran, images that they decoded, epochs that they trained
    phases: dict[str, float]  # of a flow, in seconds; but for what runs beside, they add up to `seconds`

    @property
    def outside(self) -> float:
        """Seconds outside the stages' processes."""
        return self.seconds - self.stage_seconds

    @property
    def cpu_outside(self) -> float:
        """CPU seconds outside the stages' processes."""
        return self.cpu_seconds - self.stage_cpu_seconds


@dataclass(frozen=True)
class Place:
    """The temporary folder, its servers and settings."""

    folder: Path
    origin: Path  # the repository to clone
    env: dict[str, str]
    server: int  # process group
    server_url: str

    def env_for(self, way: str) -> dict[str, str]:
        return self.env | ({"PREFECT_API_URL": self.server_url} if way == "flow, running server" else {})

    def database_for(self, way: str) -> Path:
        return self.folder / ("server" if way == "flow, running server" else "prefect") / "prefect.db"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15, help="so many that the stages take about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="refit-overhead-") as folder, prepared(Path(folder), arguments) as place:
        imports = {name: [seconds_to_import(name, place) for _ in range(arguments.rounds)] for name in IMPORTS}
        runs = [run for number in range(arguments.rounds) for run in one_round(place, number)]
        runs += scheduled(place, arguments.rounds)
    tables = (seconds_table(runs), overhead_table(runs), phases_table(runs), work_table(runs), imports_table(imports))
    print("\n\n".join(tables))
    if arguments.json is not None:
        publish_json(arguments.json, {"runs": [dataclasses.asdict(run) for run in runs], "imports": imports})


@contextmanager
def prepared(folder: Path, arguments: argparse.Namespace) -> Iterator[Place]:
    """A repository to clone, databases for Prefect and MLflow, and a running Prefect server."""
    env = environment(folder)
    origin = folder / "origin"
    quietly("git", "clone", "--quiet", str(ROOT), str(origin), cwd=folder, env=env)
    set_epochs(origin, arguments.epochs, env)
    new_database = "import mlflow; mlflow.MlflowClient('sqlite:///mlflow.db').search_experiments()"
    took(lambda: quietly(sys.executable, "-c", new_database, cwd=folder, env=env), "an MLflow database")
    upgrade = (sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes")
    took(lambda: quietly(*upgrade, cwd=folder, env=env), "a Prefect database")
    with prefect_server(folder, env) as (server, url):
        yield Place(folder, origin, env, server, url)


def environment(folder: Path) -> dict[str, str]:
    """No setting of the machine, but its PATH; and code is byte-compiled as usual."""
    foreign = ("PREFECT_", "MLFLOW_", "REFIT_", "DVC_", "GIT_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    home = folder / "home"
    home.mkdir()
    clock = folder / "clock"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(_CLOCK)
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(clock),
        "BENCHMARK_STAGES": " ".join(f"tasks.{stage}" for stage in STAGE_OUTPUTS),
        "BENCHMARK_CLOCK": str(clock / "log"),
        "HOME": str(home),
        "PREFECT_HOME": str(folder / "prefect"),
        "DO_NOT_TRACK": "1",
        **{f"GIT_{role}_{what}": "refit@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }


@contextmanager
def prefect_server(folder: Path, env: dict[str, str]) -> Iterator[tuple[int, str]]:
    """A Prefect server with a home of its own: its process group and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    settings = env | {"PREFECT_HOME": str(folder / "server"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    url = f"http://127.0.0.1:{port}/api"
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        ) as server,
    ):
        try:
            took(lambda: wait_for(f"{url}/health", server), "a Prefect server with a new database")
            yield server.pid, url
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def wait_for(health: str, server: "subprocess.Popen[bytes]") -> None:
    """Until the server answers.

    Raises:
        WorkspaceError: it does not.
    """
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urlopen(health, timeout=5).close()  # noqa: S310
            return
        except (URLError, OSError):
            if server.poll() is not None or time.monotonic() > deadline:
                raise WorkspaceError("the Prefect server does not start") from None
            time.sleep(0.5)


def one_round(place: Place, number: int) -> Iterator[Run]:
    """Every way cold, then once more. The bare stages know nothing of the last time: they would do it all again."""
    for way, command in _COMMANDS.items():
        clone = new_clone(place, place.origin, f"{way.replace(', ', '-').replace(' ', '-')}-{number}")
        shutil.copy(place.folder / "mlflow.db", clone)
        yield measured(way, "cold", command, clone, place)
        if way != "stages":
            yield measured(way, "unchanged", _UNCHANGED[way], clone, place)


def scheduled(place: Place, rounds: int) -> Iterator[Run]:
    """`retrain --branch` in new clones of a bare repository with a DVC remote, when the last run knows it all."""
    seed, bare = new_clone(place, place.origin, "seed"), place.folder / "origin.git"
    storage = ("remote", "add", "--default", "storage", str(place.folder / "storage"))
    quietly(sys.executable, "-m", "dvc", *storage, cwd=seed, env=place.env)
    set_epochs(seed, 1, place.env)  # how long the training took is not in question
    quietly("git", "clone", "--quiet", "--bare", str(seed), str(bare), cwd=place.folder, env=place.env)
    database = shutil.copy(place.folder / "mlflow.db", place.folder / "scheduled.db")
    there = dataclasses.replace(place, env=place.env | {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"})
    command = [*_RETRAIN, "--branch"]
    quietly(*command, cwd=new_clone(place, bare, "scheduled"), env=there.env)
    for number in range(rounds):
        for way in ("flow, own server", "flow, running server"):
            clone = new_clone(place, bare, f"scheduled-{way[6:9]}-{number}")
            yield measured(way, "scheduled", command, clone, there, expected="Nothing to do: ")


def measured(way: str, state: str, command: list[str], folder: Path, place: Place, expected: str = "") -> Run:
    """Run a command and take its measures.

    Raises:
        WorkspaceError: it failed, or did not say what is expected.
    """
    load = os.getloadavg()[0]
    clock = Path(place.env["BENCHMARK_CLOCK"])
    clock.write_text("")
    served_before, used_before = cpu_of_group(place.server), cpu_of_children()
    began, ticks = time.time(), time.perf_counter()
    output = quietly(*command, cwd=folder, env=place.env_for(way))
    seconds = time.perf_counter() - ticks
    used = cpu_of_children() - used_before
    if way == "flow, running server":
        used += cpu_of_group(place.server) - served_before
    if expected not in output:
        raise WorkspaceError(f"{way}, {state}: did not say {expected!r}: {output[-2000:]}")
    phases = phases_of(place.database_for(way), began, seconds) if way.startswith("flow") else {}
    in_stages = [[float(number) for number in line.split()] for line in clock.read_text().splitlines()]
    run = Run(
        way,
        state,
        seconds,
        used,
        sum(wall for wall, _ in in_stages),
        sum(cpu for _, cpu in in_stages),
        load,
        {"stages": len(in_stages)} | work_in(output),
        phases,
    )
    print(run, file=sys.stderr, flush=True)
    return run


def work_in(output: str) -> dict[str, int]:
    """How many images were decoded and epochs trained, as the output tells."""
    decoded = sum(int(number.replace(",", "")) for number in _DECODED.findall(output))
    return {"decodes": decoded, "epochs": len(_EPOCH.findall(output))}


def phases_of(database: Path, began: float, seconds: float) -> dict[str, float]:
    """Where a flow's seconds went, from the times that Prefect noted of its newest run."""
    with closing(sqlite3.connect(database)) as connection:
        run_id, start = connection.execute("SELECT id, start_time FROM flow_run ORDER BY created DESC").fetchone()
        tasks = task_seconds(connection, run_id)
    before = as_seconds(start) - began
    in_stages = sum(tasks.pop(stage, 0.0) for stage in STAGE_OUTPUTS)
    beside = {"clean up, beside": tasks.pop("clean up", 0.0)}  # the only task that nothing waits for, but at the end
    rest = seconds - before - in_stages - sum(tasks.values())
    return {"imports and server": before, "stage tasks": in_stages, **tasks, "rest": rest, **beside}


def task_seconds(connection: sqlite3.Connection, run_id: str) -> dict[str, float]:
    """What each task of a flow run took, once the server has noted the last of them.

    Raises:
        WorkspaceError: it does not, in ten seconds.
    """
    for _ in range(20):
        rows = connection.execute("SELECT name, start_time, end_time FROM task_run WHERE flow_run_id = ?", [run_id])
        noted = {name: (start, end) for name, start, end in rows}
        if not LAST_TASKS.isdisjoint(noted) and all(start and end for start, end in noted.values()):
            return {name: as_seconds(end) - as_seconds(start) for name, (start, end) in noted.items()}
        time.sleep(0.5)
    raise WorkspaceError(f"Prefect has not noted the end of the tasks: {noted}")


def as_seconds(moment: str) -> float:
    """A time in Prefect's database, in seconds since 1970."""
    return datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()


def seconds_to_import(name: str, place: Place) -> float:
    """Of a new process that imports a module and ends."""
    began = time.perf_counter()
    quietly(sys.executable, "-c", f"import {name}", cwd=place.origin, env=place.env)
    return time.perf_counter() - began


def new_clone(place: Place, origin: Path, name: str) -> Path:
    """A clone in which nothing has run."""
    quietly("git", "clone", "--quiet", str(origin), name, cwd=place.folder, env=place.env)
    return place.folder / name


def set_epochs(repository: Path, epochs: int, env: dict[str, str]) -> None:
    """Change `finetune.epochs` and commit all."""
    file = repository / "params.yaml"
    file.write_text(re.sub(r"(?m)^  epochs: \d+", f"  epochs: {epochs}", file.read_text()))
    quietly("git", "commit", "--quiet", "--allow-empty", "--all", "--message", "benchmark", cwd=repository, env=env)


def quietly(*command: str, cwd: Path, env: dict[str, str]) -> str:
    """Run a command; give what it said.

    Raises:
        WorkspaceError: it failed.
    """
    result = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode != 0:
        raise WorkspaceError(f"{' '.join(command)} failed: {result.stdout[-2000:]}")
    return result.stdout


def took(act: Callable[[], object], what: str) -> None:
    """Act, and say how long that took."""
    began = time.perf_counter()
    act()
    print(f"{what}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


def cpu_of_children() -> float:
    """CPU seconds of the processes that have ended here, with all that they waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cpu_of_group(group: int) -> float:
    """CPU seconds of a process group until now."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()  # state, parent, group, ...; see proc(5)
        except OSError:  # it has ended meanwhile
            continue
        ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def select(runs: list[Run], way: str, state: str) -> list[Run]:
    """In the order of the rounds."""
    return [run for run in runs if (run.way, run.state) == (way, state)]


def kinds(runs: list[Run]) -> list[tuple[str, str]]:
    """Every state and way that was measured, in the order of the tables."""
    return [
        (state, way) for state in ("cold", "unchanged", "scheduled") for way in _COMMANDS if select(runs, way, state)
    ]


def seconds_table(runs: list[Run]) -> str:
    """What each way took; the ratio to the bare stages is taken round by round."""
    lines = [
        "| | way | seconds, median | range | in stages | CPU seconds, median | range "
        "| seconds / bare stages, each round |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    bare = select(runs, "stages", "cold")
    for state, way in kinds(runs):
        these = select(runs, way, state)
        ratios = [run.seconds / base.seconds for run, base in zip(these, bare, strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios) if state == "cold" else ""
        inside = statistics.median(run.stage_seconds for run in these)
        walls, cpus = middle([run.seconds for run in these]), middle([run.cpu_seconds for run in these])
        lines.append(f"| {state} | {way} | {walls} | {inside:.1f} | {cpus} | {each} |")
    return "\n".join(lines)


def overhead_table(runs: list[Run]) -> str:
    """What passes outside the stages, less what also does with bare stages (a shell, processes that end)."""
    lines = [
        "| cold, outside the stages | seconds, each round | median | CPU seconds, each round | median "
        f"| of a {JOB_SECONDS}-second job: seconds, CPU |",
        "|---|---|---:|---|---:|---:|",
    ]
    bare = select(runs, "stages", "cold")
    for way in [way for way in _COMMANDS if way != "stages"]:
        pairs = list(zip(select(runs, way, "cold"), bare, strict=True))
        walls = [run.outside - base.outside for run, base in pairs]
        lines.append(overhead_line(way, walls, [run.cpu_outside - base.cpu_outside for run, base in pairs]))
    lines.append(f"| target | | {JOB_SECONDS * TARGET:.1f} | | | {TARGET:.0%} |")
    return "\n".join(lines)


def overhead_line(what: str, walls: list[float], cpus: list[float]) -> str:
    """A line of overhead_table."""
    each = [", ".join(f"{value:.1f}" for value in values) for values in (walls, cpus)]
    medians = [statistics.median(values) for values in (walls, cpus)]
    shares = ", ".join(f"{median / JOB_SECONDS:.0%}" for median in medians)
    return f"| {what} | {each[0]} | {medians[0]:.1f} | {each[1]} | {medians[1]:.1f} | {shares} |"


def phases_table(runs: list[Run]) -> str:
    """Where the flows' seconds go, medians over the rounds."""
    flows = [(state, way) for state, way in kinds(runs) if way.startswith("flow")]
    last = ("rest", "clean up, beside")
    names = [*dict.fromkeys(name for run in runs for name in run.phases if name not in last), *last]
    lines = [f"| flow: seconds, median | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for state, way in flows:
        these = select(runs, way, state)
        cells = [
            f"{statistics.median(run.phases[name] for run in these):.1f}" if name in these[0].phases else ""
            for name in names
        ]
        lines.append(f"| {state}, {way[6:]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def work_table(runs: list[Run]) -> str:
    """What was done; where the rounds differ, every number."""
    names = list(runs[0].work)
    lines = [f"| | way | {' | '.join(names)} |", f"|---|---|{'---:|' * len(names)}"]
    for state, way in kinds(runs):
        counts = [sorted({run.work[name] for run in select(runs, way, state)}) for name in names]
        lines.append(f"| {state} | {way} | {' | '.join(', '.join(map(str, found)) for found in counts)} |")
    return "\n".join(lines)


def imports_table(imports: dict[str, list[float]]) -> str:
    """A new process that only imports a module."""
    lines = ['| `python -c "import …"` | seconds, median | range |', "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {name} | {middle(seconds)} |" for name, seconds in imports.items())])


def middle(values: list[Any]) -> str:
    """Median and range, as two cells."""
    return f"{statistics.median(values):.1f} | {min(values):.1f} to {max(values):.1f}"


if __name__ == "__main__":
    run_stage(main)
