"""The number format and the threads of a training: by params.yaml, by a card, or by a probe that is asked once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from refit.training import arithmetic
from refit.training.arithmetic import Arithmetic, choose_arithmetic
from refit.training.choices import Pinned, available_cores, pin
from refit.training.determinism import be_deterministic

from .trainings import settings, tiny_network


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_deterministic(1, "cpu")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def choose(**changes: Any) -> Arithmetic:
    chosen = settings(**{"precision": "auto", "num_threads": "auto"} | changes)
    network = tiny_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = choose_arithmetic(network, torch.rand(16, 3, 16, 16), chosen, True, {"cpu": "x"})
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    return found


def test_what_params_yaml_says_is_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_times", None)
    assert (choose(precision="bf16", num_threads=3).precision, choose(precision="bf16", num_threads=3).num_threads) == (
        "bf16", 3,
    )  # fmt: skip


def test_a_card_wins_over_params_yaml() -> None:
    pin(Path(), Pinned(precision="bf16", num_threads=5))
    found = choose(precision="fp32", num_threads=1)
    assert (found.precision, found.num_threads) == ("bf16", 5)


def times_of(busy: float = 1.0, **times: float) -> Any:
    """As if a step took so long, by number format; a second thread is worth `second`. Steps in bf16 meet other
    processes, which make them `busy` times longer on the clock and change nothing of their work."""

    def measured(network: object, inputs: object, precision: str, num_threads: int, learns: bool) -> arithmetic._Times:
        work = times[precision]
        clock = work * (times["second"] if num_threads > 1 else 1.0)
        return arithmetic._Times(clock * (busy if precision == "bf16" else 1.0), work)

    return measured


@pytest.mark.parametrize(
    ("times", "precision", "threads"),
    [
        ({"fp32": 1.0, "bf16": 0.5, "second": 0.5}, "bf16", 2),
        ({"fp32": 1.0, "bf16": 0.9, "second": 0.6}, "fp32", 2),
        ({"fp32": 1.0, "bf16": 0.5, "second": 5.0}, "bf16", 1),
        ({"fp32": 0.001, "bf16": 0.0017, "second": 0.9}, "fp32", 1),
        ({"fp32": 1.0, "bf16": 0.5, "second": 5.0, "busy": 3.0}, "bf16", 1),
    ],
)
def test_only_what_is_clearly_faster_is_taken_and_the_answer_stays(
    times: dict[str, float], precision: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "available_cores", lambda: 2)
    monkeypatch.setattr(arithmetic, "_times", times_of(**times))
    found = choose()
    assert (found.precision, found.num_threads) == (precision, threads)
    assert f"{times['bf16'] / times['fp32']:.2f} of one with fp32" in found.reason
    monkeypatch.setattr(arithmetic, "_times", None)
    assert choose() == found


def test_shards_have_a_thread_each() -> None:
    assert choose(shards=2).num_threads == 1


def test_a_real_probe_answers() -> None:
    assert choose().num_threads in {1, available_cores()}
