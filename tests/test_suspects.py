"""Labels that look wrong: who judges them, what is listed, and what an answer does."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refit import paths
from refit.data.label_errors import read_answers, suspects
from refit.errors import DataError
from refit.scoring.linear import out_of_fold

from .conftest import change_params


def clouds(count: int = 300, wrong: int = 15, width: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three clouds of points: features, labels, of which the first few are wrong, and the true ones."""
    draws = np.random.default_rng(1)
    true = np.arange(count) % 3
    features = draws.normal(size=(count, width)) + 4 * np.eye(width)[true]
    given = true.copy()
    given[:wrong] = (true[:wrong] + 1) % 3
    return features.astype(np.float16), given, true


def test_nobody_judges_the_label_that_it_has_learnt() -> None:
    """With as many columns as rows any labels can be learnt by heart; random ones cannot be guessed."""
    draws = np.random.default_rng(2)
    features, labels = draws.normal(size=(200, 200)), draws.integers(0, 2, 200)
    guessed = out_of_fold(features, labels, np.arange(200), 2, seed=1).argmax(axis=1) == labels
    assert 0.35 < guessed.mean() < 0.65


def test_nobody_judges_who_has_learnt_the_label_of_one_of_its_cluster() -> None:
    """Four pictures of each of fifty parts: the labels of whole parts are random, so that none can be guessed."""
    draws = np.random.default_rng(4)
    parts = np.repeat(np.arange(50), 4)
    features, labels = draws.normal(size=(50, 200))[parts], draws.integers(0, 2, 50)[parts]
    by_row, by_part = (
        (out_of_fold(features, labels, clusters, 2, seed=1).argmax(axis=1) == labels).mean()
        for clusters in (np.arange(200), parts)
    )
    assert by_row > 0.9
    assert 0.3 < by_part < 0.7


def test_planted_errors_are_found_and_little_else() -> None:
    features, given, true = clouds()
    found = suspects(given, out_of_fold(features, given, np.arange(300), 3, seed=17))
    assert set(found["row"][: 2 * 15]) >= set(range(13)), "nearly all of them, first"
    wrong = found[found["row"] < 15]
    assert len(wrong) >= 0.8 * len(found)
    assert (wrong["suggested"].to_numpy() == true[wrong["row"]]).all()
    assert found["score"].is_monotonic_increasing


def test_a_clean_set_has_hardly_a_suspect() -> None:
    features, given, _ = clouds(wrong=0)
    assert len(suspects(given, out_of_fold(features, given, np.arange(300), 3, seed=17))) <= 3


@pytest.mark.parametrize(
    ("labels", "num_classes"),
    [([0, 0, 0, 0, 0, 0, 1], 2), ([0, 1], 3), ([0, 0, 1, 1], 4), ([2] * 30 + [0] * 30, 3)],
)
def test_rare_and_absent_classes_are_judged(labels: list[int], num_classes: int) -> None:
    given = np.array(labels)
    features = np.random.default_rng(3).normal(size=(len(given), 4))
    probabilities = out_of_fold(features, given, np.arange(len(given)), num_classes, seed=1)
    assert np.allclose(probabilities.sum(axis=1), 1.0)
    assert set(suspects(given, probabilities)["row"]) <= set(range(len(given)))


def test_columns_that_say_nothing_do_no_harm() -> None:
    features, given, _ = clouds()
    flat = np.concatenate([features, np.full((len(given), 3), 7.0)], axis=1)
    seen, expected = (out_of_fold(rows, given, np.arange(300), 3, 17) for rows in (flat, features))
    assert np.allclose(seen, expected, atol=1e-6)


def listed() -> pd.DataFrame:
    return pd.read_csv(paths.LABEL_SUSPECTS, dtype={"given": str, "suggested": str})


def answer(*rows: str) -> None:
    paths.LABEL_ANSWERS.write_text("\n".join(["sha256,label,reason,who", *rows]) + "\n")


def test_the_stage_lists_what_was_planted_and_asks_once(trained: Path) -> None:
    """Cats and dogs have another tint: even features of random weights tell them apart."""
    from tasks import suspects as stage

    accepted = pd.read_parquet(paths.ACCEPTED)
    planted = accepted.groupby("split").head(2).index
    accepted.loc[planted, "label"] = accepted.loc[planted, "label"].map({"cat": "dog", "dog": "cat"})
    accepted.to_parquet(paths.ACCEPTED)
    before = {path: path.read_bytes() for path in (paths.ACCEPTED, paths.MODEL_WEIGHTS, paths.EVALUATION)}
    outputs = paths.STAGE_OUTPUTS["suspects"]
    stage.main()
    first, found = [path.read_bytes() for path in outputs], listed()
    assert list(found.columns) == ["path", "sha256", "split", "given", "suggested", "score"]
    of_train = accepted.loc[planted][lambda rows: rows["split"] == "train"]
    assert set(of_train["sha256"]) <= set(found["sha256"])
    assert (found["given"] != found["suggested"]).all()
    page = paths.LABEL_SUSPECTS_REPORT.read_text()
    assert "please look" in page
    assert page.count("data:image/png;base64,") == min(len(found), 50)

    stage.main()
    assert [path.read_bytes() for path in outputs] == first
    assert {path: path.read_bytes() for path in before} == before, "it changes nothing else"

    right, wrong = of_train.iloc[0], of_train.iloc[1]
    answer(f"{right.sha256},{right.label},it is one,Ada", f"{wrong.sha256},bird,look at its wings,Ada")
    stage.main()
    left = set(listed()["sha256"])
    assert not {right.sha256, wrong.sha256} & left
    assert len(left) == len(found) - 2
    page = paths.LABEL_SUSPECTS_REPORT.read_text()
    assert "2 more would be listed, but somebody has answered" in page
    assert "look at its wings" in page, "until the data says so too"
    assert "it is one" not in page


def test_of_a_large_set_a_part_is_looked_at(trained: Path) -> None:
    from tasks import suspects as stage

    accepted = pd.read_parquet(paths.ACCEPTED)
    pd.concat([accepted, accepted], ignore_index=True).to_parquet(paths.ACCEPTED)
    change_params(Path("params.yaml"), {"suspects.max_examples": 100, "suspects.shown": 0})
    stage.main()
    page = paths.LABEL_SUSPECTS_REPORT.read_text()
    assert f"of {2 * (accepted['split'] == 'test').sum():,}" in page
    assert "<img" not in page


def test_no_test_example_may_be_among_those_that_are_looked_at(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import suspects as stage

    monkeypatch.setattr(stage, "_chosen", lambda accepted, _: accepted[accepted["split"] != "test"])
    stage.main()
    assert "test" not in set(listed()["split"])


def test_who_only_guesses_is_not_heard(trained: Path) -> None:
    from tasks import suspects as stage

    predictions = pd.read_parquet(paths.PREDICTIONS)
    predictions.assign(**{"p:cat": 0.9, "p:dog": 0.1}).to_parquet(paths.PREDICTIONS)
    stage.main()
    assert "test" not in set(listed()["split"])
    assert "a guess: not heard" in paths.LABEL_SUSPECTS_REPORT.read_text()


def test_where_the_network_cannot_be_cut_only_the_test_is_looked_at(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    from tasks import suspects as stage

    monkeypatch.setattr(stage, "embed", lambda *_: None)
    stage.main()
    assert set(listed()["split"]) <= {"test"}
    assert "so train and val were not looked at" in paths.LABEL_SUSPECTS_REPORT.read_text()
    assert load_file(paths.FEATURES)["rows"].shape == (0, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sha256,label,reason,who\nabc,cat,it is,Ada\n", "row 1, sha256: must be a SHA-256"),
        (f"sha256,label,reason,who\n{'0' * 64},cat,,Ada\n", "row 1, reason: must not be empty"),
        (f"sha256,label\n{'0' * 64},cat\n", "columns must be sha256,label,reason,who"),
        (f"sha256,label,reason,who\n{'0' * 64},cat,x,Ada\n{'0' * 64},dog,x,Bob\n", "row 1"),
        ("", "cannot be read as a table"),
    ],
)
def test_an_answer_that_says_nothing_is_refused(project: Path, text: str, expected: str) -> None:
    (project / "data").mkdir()
    paths.LABEL_ANSWERS.write_text(text)
    with pytest.raises(DataError, match=expected):
        read_answers(paths.LABEL_ANSWERS)


def test_without_a_file_there_is_no_answer(project: Path) -> None:
    assert list(read_answers(paths.LABEL_ANSWERS).columns) == ["sha256", "label", "reason", "who"]


def test_the_projection_is_the_same_for_ever() -> None:
    import torch

    from refit.training import embedding

    rows = torch.arange(600, dtype=torch.float32).reshape(1, 600) / 600
    short = embedding._short(rows)
    assert (short.shape, short.dtype) == ((1, embedding.WIDTH), np.float16)
    signs = embedding._signs(600).to(torch.int8).numpy()
    assert hashlib.sha256(signs.tobytes()).hexdigest()[:16] == "f8e39c56d79085ab"
