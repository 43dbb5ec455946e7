"""A training is killed with SIGKILL at many points, started again, and ends with the same bits.

The points are real: a process of its own kills itself there. What is trained is tiny, so that there can be many.
"""

import hashlib
import io
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

FINGERPRINT = "ab" * 32


@dataclass(frozen=True)
class Kill:
    """SIGKILL at the `count`-th call of a function, before or after it."""

    target: str  # module:attribute path
    count: int
    after: bool = False


SAVES = [Kill("pathlib:Path.replace", count, after) for count in range(1, 11) for after in (False, True)]
STEPS = [Kill("torch.optim:AdamW.step", count, after) for count in (1, 2, 4, 5, 6, 9, 12) for after in (False, True)]
LOSSES = [Kill("torch.nn.functional:cross_entropy", count) for count in (1, 3, 10, 12)]
WRITES = [Kill("refit.training.state:save_file", count, after) for count in (1, 4, 9) for after in (False, True)]
REMOVALS = [Kill("pathlib:Path.unlink", count, after) for count in (1, 3, 8) for after in (False, True)]
EPOCHS = [Kill("refit.scoring.metrics:score", count, after) for count in (1, 2, 4) for after in (False, True)]
ENDS = [Kill("refit.scoring.metrics:fit_temperature", 1, after) for after in (False, True)]
CACHES = [
    *(Kill("refit.training.cache:_record_checksums", count, after) for count in (2, 5, 9) for after in (False, True)),
    *(Kill("zlib:crc32", count) for count in (1, 9, 40, 130)),
    *(Kill("os:utime", count, after) for count in (1, 2, 3) for after in (False, True)),
]
EVICTIONS = [
    *(Kill("pathlib:Path.rename", 1, after) for after in (False, True)),
    *(Kill("shutil:rmtree", count, after) for count in (1, 2) for after in (False, True)),
]

RECIPES: dict[str, dict[str, Any]] = {
    "full": {"strategy": "full"},
    "everything": {"strategy": "lp_ft", "epochs": 2, "ema_decay": 0.9, "mixup": 0.2, "views": 2, "gradient_clip": 1.0},
}


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that have torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["refit.training.loop", "tests.trainings"])
    return context


def child(folder: str, recipe: dict[str, Any], kill: Kill | None, environment: dict[str, str]) -> None:
    """Train in a folder; the digest of all that came out is written there."""
    os.chdir(folder)
    os.environ.update({"REFIT_STATE_SECONDS": "0", **environment})
    if kill is not None:
        arm(kill)
    from refit.training.determinism import be_deterministic
    from refit.training.loop import fit
    from refit.training.shards import started
    from refit.training.state import Keeper

    from . import trainings

    device = be_deterministic(1, "cpu")
    job = trainings.job(trainings.examples(40), val=trainings.examples(15), **recipe)
    keeper = Keeper(FINGERPRINT)
    with started("nothing", job.settings.shards, device) as ranks:
        fitted = fit(job, keeper, ranks)
    if ranks.is_first:
        buffer = io.BytesIO(repr((fitted.history, fitted.temperature, fitted.best_epoch)).encode())
        buffer.seek(0, io.SEEK_END)
        for name, tensor in sorted(fitted.weights.items()):
            buffer.write(name.encode() + tensor.contiguous().numpy().tobytes())
        Path("digest").write_text(hashlib.sha256(buffer.getvalue()).hexdigest())
        keeper.clear()


def arm(kill: Kill) -> None:
    import importlib

    module, _, path = kill.target.partition(":")
    owner = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == kill.count and not kill.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == kill.count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def train(
    context: ForkServerContext, folder: Path, recipe: dict[str, Any], kills: list[Kill | None], **environment: str
) -> list[int | None]:
    """Run as many ranks as there are `kills`, each killed at its own point or not; their exit codes."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank, kill in enumerate(kills):
        ranks = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(kills)), "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }  # fmt: skip
        started.append(context.Process(target=child, args=(str(folder), recipe, kill, ranks | environment)))
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in started]


def digest(folder: Path) -> str:
    return (folder / "digest").read_text()


@pytest.fixture(scope="module")
def never_killed(processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    digests = {}
    for name, recipe in RECIPES.items():
        folder = tmp_path_factory.mktemp(name)
        assert train(processes, folder, recipe, [None]) == [0]
        digests[name] = digest(folder)
        assert not (folder / ".refit/state" / FINGERPRINT).exists()
    return digests


@pytest.mark.parametrize("recipe", ["full", pytest.param("everything", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kills", [SAVES, STEPS, [*LOSSES, *WRITES], REMOVALS, [*EPOCHS, *ENDS], CACHES],
    ids=["saves", "steps", "losses", "removals", "epochs", "caches"],
)  # fmt: skip
def test_a_training_that_was_killed_ends_with_the_same_bits(
    recipe: str, kills: list[Kill], processes: ForkServerContext, never_killed: dict[str, str], tmp_path: Path
) -> None:
    """Each point once in a folder that is fresh or has the state and the caches of the kills before."""
    reached = 0
    for number, kill in enumerate(kills):
        folder = tmp_path / ("one after the other" if number % 2 else f"alone {number}")
        (code,) = train(processes, folder, RECIPES[recipe], [kill])
        if code == 0:  # the training was over before, and is begun anew for the next point
            assert digest(folder) == never_killed[recipe]
            (folder / "digest").unlink()
            continue
        assert code == -signal.SIGKILL
        reached += 1
        assert not (folder / "digest").exists()
        if number % 2 == 0:
            assert train(processes, folder, RECIPES[recipe], [None]) == [0]
            assert digest(folder) == never_killed[recipe]
    if len(kills) > 1:
        assert train(processes, tmp_path / "one after the other", RECIPES[recipe], [None]) == [0]
        assert digest(tmp_path / "one after the other") == never_killed[recipe]
    assert reached >= len(kills) / 2


@pytest.mark.parametrize("kill", EVICTIONS, ids=str)
def test_a_kill_while_caches_are_evicted(
    kill: Kill, processes: ForkServerContext, never_killed: dict[str, str], tmp_path: Path
) -> None:
    for number in range(2):
        other = tmp_path / f".refit/cache/decoded-{number}"
        other.mkdir(parents=True)
        (other / "rows.bin").write_bytes(b"\0" * 60_000)
    room = {"REFIT_CACHE_GB": "0.0001"}
    codes = train(processes, tmp_path, RECIPES["full"], [kill], **room)
    assert codes == [-signal.SIGKILL]
    assert train(processes, tmp_path, RECIPES["full"], [None], **room) == [0]
    assert digest(tmp_path) == never_killed["full"]


SHARDED = {"strategy": "full", "shards": 4, "epochs": 2}


def test_any_number_of_processes_gives_the_same_bits_and_a_run_goes_on_with_another_number(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    """S = 4: 40 examples make batches of 16, 16 and 8."""
    for ranks in (1, 2, 4):
        assert train(processes, tmp_path / f"{ranks}", SHARDED, [None] * ranks) == [0] * ranks
    expected = digest(tmp_path / "1")
    assert {digest(tmp_path / f"{ranks}") for ranks in (2, 4)} == {expected}
    for number, (first, then) in enumerate([(2, 1), (1, 2), (4, 2), (2, 2), (2, 4)]):
        for victim in sorted({0, first - 1}):
            folder = tmp_path / f"from {first} to {then} without {victim}"
            kills: list[Kill | None] = [None] * first
            kills[victim] = (
                Kill("torch.optim:AdamW.step", 2 + number) if number % 2 else Kill("pathlib:Path.replace", 2 + number)
            )
            if victim:  # only the first one writes
                kills[victim] = Kill("torch.optim:AdamW.step", 2 + number, after=True)
            codes = train(processes, folder, SHARDED, kills)
            assert codes[victim] == -signal.SIGKILL
            assert 0 not in codes  # nobody goes on alone
            assert train(processes, folder, SHARDED, [None] * then) == [0] * then
            assert digest(folder) == expected


# The twelfth step is the last of an epoch: what comes in it is obeyed in the validation.
@pytest.mark.parametrize(
    ("number", "code", "step"), [(signal.SIGTERM, 143, 7), (signal.SIGINT, 130, 7), (signal.SIGTERM, 143, 12)]
)
def test_a_training_that_is_told_to_stop_saves_first(
    number: signal.Signals,
    code: int,
    step: int,
    processes: ForkServerContext,
    never_killed: dict[str, str],
    tmp_path: Path,
) -> None:
    tmp_path.joinpath("signal").write_text(str(int(number)))
    asked = processes.Process(target=told_to_stop, args=(str(tmp_path), int(number), step))
    asked.start()
    asked.join(60)
    assert asked.exitcode == code
    assert (tmp_path / ".refit/state" / FINGERPRINT / "state.safetensors").exists()
    assert train(processes, tmp_path, RECIPES["full"], [None]) == [0]
    assert digest(tmp_path) == never_killed["full"]


def told_to_stop(folder: str, number: int, step_of_signal: int) -> None:
    """As `child`, but a signal comes in a step, and no save is due."""
    import torch

    original = torch.optim.AdamW.step
    calls = 0

    def step(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step_of_signal:
            os.kill(os.getpid(), number)
        return original(self, *args)

    torch.optim.AdamW.step = step  # type: ignore[method-assign, assignment]
    child(folder, RECIPES["full"], None, {"REFIT_STATE_SECONDS": "1000"})


def cut_off(state: Path) -> None:
    state.write_bytes(state.read_bytes()[:-100])


def without_sense(state: Path) -> None:
    state.write_bytes(len(b"[1,2]").to_bytes(8, "little") + b"[1,2]")


def without_text(state: Path) -> None:
    header = b'{"__metadata__": {"position": "\xff"}}'
    state.write_bytes(len(header).to_bytes(8, "little") + header)


def without_its_best(state: Path) -> None:
    cut_off(next(state.parent.glob("best-*")))


@pytest.mark.parametrize("damage", [cut_off, without_sense, without_text, without_its_best])
def test_a_damaged_state_is_not_used(
    damage: Callable[[Path], None], processes: ForkServerContext, never_killed: dict[str, str], tmp_path: Path
) -> None:
    train(processes, tmp_path, RECIPES["full"], [Kill("torch.optim:AdamW.step", 8)])
    state = tmp_path / ".refit/state" / FINGERPRINT / "state.safetensors"
    damage(state)
    assert train(processes, tmp_path, RECIPES["full"], [None]) == [0]
    assert digest(tmp_path) == never_killed["full"]
