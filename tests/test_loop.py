"""The training loop on a tiny network: what it learns, keeps and repeats. No stage, no file but caches."""

import dataclasses
import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from refit.errors import ParamsError, TrainingError
from refit.modality.contract import LayerGroup
from refit.training import loop, optimizer
from refit.training.determinism import be_deterministic
from refit.training.loop import Fitted, best_epoch, epoch_order, fit, split_in_batches
from refit.training.optimizer import adamw, learning_rate_at
from refit.training.plan import Facts, make_plan, num_steps
from refit.training.shards import cut, tree_sum
from refit.training.state import Epoch, Keeper

from . import trainings
from .trainings import FEED, GROUPS, HEAD, examples, job, settings, tiny_network


@pytest.fixture(autouse=True)
def deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_deterministic(1, "cpu")
    monkeypatch.chdir(tmp_path)


def run(**changes: Any) -> Fitted:
    return fit(job(**changes))


def equal(left: Fitted, right: Fitted) -> bool:
    return left.history == right.history and all(
        torch.equal(left.weights[name], right.weights[name]) for name in left.weights
    )


def test_it_learns() -> None:
    fitted = run(epochs=8)
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss
    assert max(row.val_accuracy for row in fitted.history) > 0.9


def test_the_same_again_gives_the_same_bits() -> None:
    torch.manual_seed(99)  # the state of torch's generator must not matter
    first = run()
    torch.manual_seed(100)
    torch.rand(7)
    assert equal(first, run())


@pytest.mark.parametrize("changes", [{}, {"class_balance": "sampling"}, {"strategy": "head"}])
def test_the_order_in_which_examples_come_does_not_matter(changes: dict[str, Any]) -> None:
    turned = examples(order=range(89, -1, -1))
    assert equal(run(**changes), run(train=turned, **changes))


def test_another_seed_gives_another_result() -> None:
    assert not equal(run(seed=1), run(seed=2))


def test_dropout_is_repeatable_too() -> None:
    first, second = (run(network=tiny_network(dropout=0.5)) for _ in range(2))
    assert equal(first, second)


RECIPES: list[dict[str, Any]] = [
    {"strategy": "head"},
    {"strategy": "head", "views": 3},
    {"strategy": "lp_ft"},
    {"strategy": "staged"},
    {"freeze_until": "0"},
    {"layer_decay": 0.5, "head_learning_rate_factor": 3.0},
    {"ema_decay": 0.9},
    {"mixup": 0.2},
    {"cutmix": 1.0},
    {"mixup": 0.2, "cutmix": 1.0},
    {"gradient_clip": 0.1},
    {"class_balance": "weights"},
    {"class_balance": "sampling"},
    {"shards": 4},
    {"precision": "bf16"},
    {"batch_size": "auto", "learning_rate": "auto", "strategy": "auto"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_each_recipe_learns_something_of_its_own_and_again_the_same(recipe: dict[str, Any]) -> None:
    fitted = run(train=examples(80), **recipe)  # 27, 27 and 26 of the classes
    assert np.isfinite([row.train_loss for row in fitted.history]).all()
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss
    assert equal(fitted, run(train=examples(80), **recipe))
    assert not equal(fitted, run(train=examples(80)))


def test_a_frozen_backbone_does_not_move_and_the_head_does() -> None:
    network = tiny_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fitted = run(network=network, strategy="head")
    for name, tensor in before.items():
        assert torch.equal(fitted.weights[name], tensor) == (name not in HEAD), name


def test_a_part_can_be_frozen() -> None:
    network = tiny_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fitted = run(network=network, freeze_until="0")
    for name, tensor in before.items():
        assert torch.equal(fitted.weights[name], tensor) == name.startswith(("0.", "1.")), name


@pytest.mark.parametrize("text", ["soon", "nan", "-1"])
def test_how_often_to_save_is_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_STATE_SECONDS", text)
    with pytest.raises(ParamsError, match=f"REFIT_STATE_SECONDS is '{text}'"):
        Keeper("f" * 64)


def test_frozen_layers_run_once_for_each_example_and_view() -> None:
    first = run(strategy="head", views=3, epochs=6)
    assert first.work.frozen_forwards == 3 * 90  # the 30 of validation are among these
    assert first.work.rest_forwards == 6 * 90
    again = run(strategy="head", views=3, epochs=2, learning_rate=0.001)
    assert again.work.frozen_forwards == 0
    changed = run(strategy="head", views=3, epochs=2, feed=dataclasses.replace(FEED, digest="other changes"))
    assert changed.work.frozen_forwards == 90  # the second view; the first is the example as it is
    grown = run(strategy="head", views=3, train=examples(95))
    assert grown.work.frozen_forwards == 3 * 5
    few = run(strategy="head", views=8, epochs=2, seed=9)
    assert few.work.frozen_forwards == 90  # views that no epoch reads are not computed


def test_an_example_is_decoded_once_and_never_where_its_features_are_known() -> None:
    decoded: list[int] = []
    run(train=examples(decoded=decoded.append), strategy="lp_ft")
    for_trying = {0, 1}  # what a network makes of two examples shows where it can be cut
    assert sorted(decoded) == [*sorted(for_trying), *range(30, 90)]  # the first 30 are those of validation
    decoded.clear()
    run(train=examples(decoded=decoded.append), strategy="head")
    assert set(decoded) <= for_trying


def test_what_the_cache_holds_changes_nothing() -> None:
    cold = run(strategy="head", views=2)
    hot = run(strategy="head", views=2)
    os.environ["REFIT_CACHE_GB"] = "0"
    try:
        without = run(strategy="head", views=2)
    finally:
        del os.environ["REFIT_CACHE_GB"]
    assert equal(cold, hot)
    assert equal(cold, without)


def test_a_network_that_cannot_be_cut_is_trained_all_the_same() -> None:
    class Twisted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = tiny_network()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if float(inputs.sum()) == 0.123:  # no tracing goes past that
                return inputs
            return self.layers[6](self.layers[:6](inputs) * 1.0 + 0 * self.layers[6].bias.sum())  # type: ignore

    groups = [LayerGroup(g.name, tuple(f"layers.{name}" for name in g.parameters)) for g in GROUPS]
    fitted = run(network=Twisted(), groups=groups, strategy="head")
    assert fitted.work.frozen_forwards in (0, 90)
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss


def test_the_weights_kept_are_those_of_the_best_epoch() -> None:
    fitted = run(learning_rate=0.3, epochs=6, ema_decay=0.5)
    network = tiny_network().eval()
    network.load_state_dict(fitted.weights)
    inputs, labels = trainings.pictures(30)
    with torch.inference_mode():
        logits = network(FEED.network_input(torch.from_numpy(inputs)))
    accuracy = (logits.argmax(1).numpy() == labels).mean()
    assert accuracy == fitted.history[fitted.best_epoch - 1].val_accuracy
    assert accuracy == max(row.val_accuracy for row in fitted.history)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.5)], 2),
        ([(0.7, 1.0), (0.7, 0.9), (0.7, 0.95)], 2),
        ([(0.7, 1.0), (0.7, 1.0)], 1),
    ],
)
def test_the_best_epoch(rows: list[tuple[float, float]], expected: int) -> None:
    history = [
        Epoch(epoch=number, learning_rate=0, train_loss=0, train_accuracy=0, val_loss=loss, val_accuracy=accuracy)
        for number, (accuracy, loss) in enumerate(rows, start=1)
    ]
    assert best_epoch(history) == expected


@pytest.mark.parametrize("shards", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(shards: int) -> None:
    network = tiny_network()
    network[6].bias.data.fill_(float("nan"))  # type: ignore[index, union-attr, operator]
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 1, batch 1 .*begin with 0{10}.*learning_rate"):
        run(network=network, shards=shards)


def test_a_device_that_runs_ahead_names_the_step_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loop._STEPS_BETWEEN_LOOKS, "cpu", 16)
    network = tiny_network()
    network[6].bias.data.fill_(float("nan"))  # type: ignore[index, union-attr, operator]
    with pytest.raises(TrainingError, match=r"epoch 1, batch 1 \(step 1\); its examples begin with 0{10}"):
        run(network=network)


def test_a_device_that_runs_ahead_saves_after_short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loop._STEPS_BETWEEN_LOOKS, "cpu", 16)
    monkeypatch.setenv("REFIT_STATE_SECONDS", "0")
    saved: list[int] = []
    monkeypatch.setattr(Keeper, "save", lambda _self, position, *_: saved.append(position.epoch))
    fit(job(epochs=3), Keeper("f" * 64))
    assert saved == [1, 2, 3]


def test_early_stopping() -> None:
    fitted = run(learning_rate=1e-9, epochs=20, early_stopping_epochs=3)
    assert len(fitted.history) == fitted.best_epoch + 3 < 20


def test_a_budget_of_time_ends_between_epochs_and_can_be_repeated() -> None:
    short = run(max_minutes=1e-9, epochs=20)
    assert len(run(max_minutes=1e-9, epochs=20, early_stopping_epochs=1).history) == 1
    assert len(short.history) == 1
    assert equal(run(max_minutes=1e9, epochs=20, stopped_after=1), short)


def test_the_filling_of_caches_is_no_part_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which only decoding takes time, a second for an example: no epoch takes any."""
    seconds: list[int] = []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(len(seconds))))
    assert len(run(train=examples(decoded=seconds.append), max_minutes=100 / 60, epochs=5).history) == 5
    assert len(seconds) > 50


def test_a_budget_of_steps_is_kept() -> None:
    with pytest.raises(ParamsError, match="less than an epoch for each phase: 2 of 6"):
        run(max_steps=3, strategy="lp_ft")
    assert run(max_steps=18, strategy="lp_ft").work.steps <= 18
    fitted = run(max_steps=18, epochs=20)
    assert fitted.work.steps == 18
    assert len(fitted.history) == 3


class Unrepeatable(nn.Module):
    """Refuses as torch does where it has no deterministic kernel."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(
            "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, …"
        )


def test_a_network_that_cannot_be_trained_repeatably_is_said_to_be_so() -> None:
    network = tiny_network()
    network[2] = Unrepeatable()  # type: ignore[operator]
    expected = (
        "adaptive_max_pool2d_backward_cuda has no deterministic implementation there; set `finetune.device` to cpu"
    )
    with pytest.raises(TrainingError, match=expected):
        run(network=network)


def test_the_workspace_of_cublas_is_fixed_unless_the_user_has_done_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    be_deterministic(1, "cpu")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    be_deterministic(1, "cpu")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_at(step, 100, 0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate_at(0, 10, 0.0) == 1


@pytest.mark.parametrize(
    ("count", "size", "expected"), [(10, 5, [5, 5]), (11, 5, [5, 6]), (12, 5, [5, 5, 2]), (3, 5, [3]), (1, 5, [1])]
)
def test_no_batch_of_one(count: int, size: int, expected: list[int]) -> None:
    assert [piece.stop - piece.start for piece in split_in_batches(count, size)] == expected
    assert num_steps(count, size) == len(expected)


def test_a_rate_for_each_depth_and_no_decay_of_norms() -> None:
    plan = make_plan(
        Facts(num_train=90, num_classes=3, is_pretrained=True), GROUPS, settings(strategy="full", layer_decay=0.5)
    )
    chosen = settings(head_learning_rate_factor=10.0, layer_decay=0.5)
    made, rates = adamw(tiny_network(), GROUPS, plan.phases[0], chosen)
    found = {(rate, group["weight_decay"]): len(group["params"]) for rate, group in
             zip(rates, made.param_groups, strict=True)}  # fmt: skip
    assert found == {
        (0.01, 0.01): 1, (0.01, 0.0): 3, (0.02, 0.01): 1, (0.02, 0.0): 1, (0.2, 0.01): 1, (0.2, 0.0): 1,
    }  # fmt: skip


def test_the_average_of_the_weights_starts_fast_and_is_swapped_in_for_a_while() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    average = optimizer.Average({"x": parameter}, 0.9)
    parameter.data.fill_(1.0)
    average.update(0)
    assert average.averages["x"].item() == pytest.approx(0.9)  # (1 + 0) / (10 + 0) of the old is left
    with average.in_place():
        assert parameter.item() == pytest.approx(0.9)
    assert parameter.item() == 1.0


def test_sampling_balances_the_classes() -> None:
    rare = examples(99, order=[*range(0, 99, 3), *range(1, 99, 3), 2, 5, 8])
    drawn = np.concatenate([
        rare.labels[epoch_order(job(train=rare, class_balance="sampling"), epoch)] for epoch in range(40)
    ])  # fmt: skip
    assert np.bincount(drawn) / len(drawn) == pytest.approx(1 / 3, abs=0.03)


# Plans


FACTS = Facts(num_train=1000, num_classes=3, is_pretrained=True)


def test_a_plan_says_why() -> None:
    plan = make_plan(FACTS, GROUPS, settings(strategy="auto", batch_size="auto", learning_rate="auto"))
    assert plan.strategy == "lp_ft"
    assert [phase.first_group for phase in plan.phases] == [2, 0]
    for name in ("strategy lp_ft", "batch_size", "learning_rate"):
        assert any(reason.startswith(name) for reason in plan.reasons), name
    scratch = make_plan(Facts(num_train=9, num_classes=3, is_pretrained=False), GROUPS, settings(strategy="auto"))
    assert scratch.strategy == "full"


def test_a_plan_says_what_rests_while_layers_are_frozen() -> None:
    said = make_plan(FACTS, GROUPS, settings(strategy="lp_ft", mixup=0.2)).reasons
    assert "mixup: not in phase head, which learns on kept features" in said
    assert not make_plan(FACTS, GROUPS, settings(strategy="full", mixup=0.2)).reasons


def test_the_heads_own_rate_counts_where_it_does_not_learn_alone() -> None:
    chosen = settings(strategy="lp_ft", head_learning_rate_factor=10.0)
    rates = [
        adamw(tiny_network(), GROUPS, phase, chosen)[1][-1] / phase.learning_rate
        for phase in make_plan(FACTS, GROUPS, chosen).phases
    ]
    assert rates == pytest.approx([1.0, 10.0])


def test_staged_unfreezes_from_the_top() -> None:
    plan = make_plan(FACTS, GROUPS, settings(strategy="staged", epochs=5))
    assert [(phase.first_group, phase.epochs) for phase in plan.phases][1:] == [(1, 2), (0, 3)]


@pytest.mark.parametrize(("name", "first"), [("0", 1), ("3", 2), ("3.0", 2)])
def test_a_module_to_freeze_may_be_a_group_or_a_part_of_one(name: str, first: int) -> None:
    assert make_plan(FACTS, GROUPS, settings(freeze_until=name)).phases[0].first_group == first


@pytest.mark.parametrize(("name", "words"), [("layer9", "no module of this network"), ("6", "nothing would learn")])
def test_a_module_that_cannot_be_frozen(name: str, words: str) -> None:
    with pytest.raises(ParamsError, match=f"{words}.*from the input on: 0, 3"):
        make_plan(FACTS, GROUPS, settings(freeze_until=name))


# Shards


@pytest.mark.parametrize(("count", "shards"), [(16, 4), (15, 4), (9, 4), (8, 4), (7, 4), (3, 4), (2, 4), (5, 1)])
def test_shards_cover_a_batch_and_none_has_a_single_example(count: int, shards: int) -> None:
    pieces = cut(count, shards)
    assert len(pieces) == shards
    assert list(itertools.chain(*(range(count)[piece] for piece in pieces))) == list(range(count))
    assert all(piece.stop - piece.start != 1 for piece in pieces)


def test_a_tree_adds_neighbours_first() -> None:
    values = [torch.tensor([number], dtype=torch.float32) for number in (1.0, 1e8, -1e8, 1.0)]
    assert tree_sum(iter(values)).item() == 0.0  # one after the other it would be 1
    assert loop.Ranks().tree_sum(values[0]) is values[0]


def test_shards_without_batch_norm_are_gradient_accumulation() -> None:
    def plain() -> nn.Module:
        network = tiny_network()
        network[1] = nn.Identity()  # type: ignore[operator]
        return network

    groups = (LayerGroup("0", ("0.weight", "0.bias")), *GROUPS[1:])
    whole, cut_up = (run(network=plain(), groups=groups, shards=shards, epochs=1) for shards in (1, 4))
    for name, tensor in whole.weights.items():
        assert torch.allclose(tensor, cut_up.weights[name], atol=1e-4), name
