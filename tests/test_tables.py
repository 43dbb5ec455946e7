"""Tables that nobody thought of: whatever is in one, it gives examples that can be used or not, or one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from refit.data.sources import list_examples
from refit.errors import DataError
from refit.params import SPLITS, Params
from tasks.validate import judge, summarize

from .conftest import write_image_folder
from .test_validate import row

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # to make a failure smaller takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

PATHS = st.sampled_from(
    ["cat/000.png", "cat/000.png", "dog/001.png", "../secret.png", "cat/../../secret.png", "/etc/passwd", "link.png",
     "", "cat", ".", "cat/none.png", "cat/\0.png", "a" * 300, "cat//000.png", "./cat/001.png", "~/x.png", "C:\\x.png",
     "ä.png", "loop/x.png"]
)  # fmt: skip
ODD = st.one_of(st.none(), st.floats(), st.integers(-5, 5), st.booleans(), st.text(max_size=5))
CELLS = {
    "path": st.one_of(PATHS, ODD),
    "label": st.one_of(st.sampled_from(["cat", "dog", "", " "]), ODD),
    "split": st.one_of(st.sampled_from(["train", "val", "test", "valid", "TEST", "dev", ""]), ODD),
    "group": st.one_of(st.sampled_from(["p1", "p2", ""]), ODD),
    "id": st.one_of(st.sampled_from(["r1", "r2", "../r3", ""]), ODD),
    "extra": ODD,
}


@st.composite
def tables(draw: Callable[..., Any]) -> dict[str, list[Any]]:
    columns = draw(st.lists(st.sampled_from(list(CELLS)), unique=True))
    if draw(st.integers(0, 3)):  # mostly those that are needed
        columns = list(dict.fromkeys(["path", "label", *columns]))
    count = draw(st.integers(0, 6))
    return {name: draw(st.lists(CELLS[name], min_size=count, max_size=count)) for name in columns}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_image_folder(tmp_path / "photos", per_class=3)
    (tmp_path / "secret.png").write_bytes(b"nobody's business")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop").symlink_to(folder / "loop")
    return folder


def write(folder: Path, table: dict[str, list[Any]], kind: str) -> Path:
    for name in ("labels.csv", "labels.jsonl", "labels.parquet"):
        (folder / name).unlink(missing_ok=True)
    file = folder / f"labels.{kind}"
    if kind == "jsonl":
        rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
        file.write_text("\n".join(json.dumps(each) for each in rows), errors="surrogatepass")
    elif kind == "csv":
        pd.DataFrame(table).to_csv(file, index=False, errors="replace")
    else:
        pd.DataFrame({name: pd.Series(values, dtype="str") for name, values in table.items()}).to_parquet(file)
    return file


@QUICK
@given(table=tables(), kind=st.sampled_from(["csv", "jsonl", "parquet"]))
def test_a_table_gives_examples_or_one_sentence(source: Path, table: dict[str, list[Any]], kind: str) -> None:
    try:
        file = write(source, table, kind)
    except (UnicodeEncodeError, ValueError):
        return  # no such table can be written
    said = ""
    try:
        examples = list_examples(source, source.parent / "unpacked")
    except DataError as error:
        said, examples = str(error), []
    if not examples:
        assert said
        assert "\n" not in said
        return
    assert {"path", "label"} <= set(table)
    for example in examples:
        if example.error is None:
            assert example.path.resolve().is_relative_to(source), example
            assert example.label
            assert example.split in (None, *SPLITS)
        elif example.path != file:
            assert "row" in example.error


ROWS = st.fixed_dictionaries(
    {},
    optional={
        "path": st.sampled_from(["data/a.png", "data/A.png", "data/b.png"]),
        "label": st.sampled_from(["cat", "dog", "cat ", "", "cow"]),
        "split": st.sampled_from(SPLITS),
        "sha256": st.sampled_from(["", "0" * 64, f"{4:064x}"]),
        "content_sha256": st.sampled_from([f"{4:064x}", f"{5:064x}"]),
        "group": st.sampled_from(["", "p1"]),
        "width": st.sampled_from([0, 1, 24, 10**6]),
        "height": st.sampled_from([1, 20, 10**6]),
        "brightness": st.sampled_from([0.0, 120.0, 255.0, float("inf")]),
        "contrast": st.sampled_from([0.0, 40.0]),
        "signature": st.sampled_from([b"", bytes(range(256)) * 20 + bytes(129)]),
        "warnings": st.sampled_from(["", "odd"]),
        "error": st.sampled_from([None, "damaged image"]),
    },
)


@settings(QUICK, max_examples=25)
@given(changes=st.lists(ROWS, max_size=12))
def test_every_row_is_accepted_or_rejected_with_a_reason(
    edit_params: Callable[..., Params], changes: list[Any]
) -> None:
    rows = [row(number) for number in range(24)]
    rows += [row(1000 + number, **({"width": 24} | one)) for number, one in enumerate(changes)]
    table = pd.DataFrame(rows).astype({"error": "string"})
    params = edit_params()
    verdict = judge(table, params)
    assert len(verdict.accepted) + len(verdict.rejected) == len(table)
    assert verdict.rejected["reason"].fillna("").ne("").all()
    assert verdict.rejected["rule"].ne("").all()
    assert not set(verdict.accepted["sha256"]) & {""}, "what has no digest cannot be verified when it is read"
    in_test = set(verdict.accepted.loc[verdict.accepted["split"] == "test", "content_sha256"])
    assert not in_test & set(verdict.accepted.loc[verdict.accepted["split"] == "train", "content_sha256"])
    summary = summarize(table, verdict, params)
    assert sum(rule.count for rule in summary.rules.values()) == len(verdict.findings)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("width", "x"), ("width", 1.5), ("sha256", 7), ("split", None), ("bytes", -1), ("label", None), ("rule", None),
        ("frames", float("nan")), ("brightness", "dark"),
    ],
)  # fmt: skip
def test_a_manifest_with_a_wrong_type_is_refused(edit_params: Callable[..., Params], column: str, values: Any) -> None:
    table = pd.DataFrame([row(number) for number in range(10)]).astype({"error": "string"})
    table[column] = [values] * 10
    with pytest.raises(DataError, match=r"not what this version writes .*run `dvc repro -f ingest`"):
        judge(table, edit_params())


def test_a_hundred_thousand_rows(source: Path, edit_params: Callable[..., Params]) -> None:
    names = ["cat/000.png", "dog/001.png", "../secret.png", "none.png"]
    write(source, {"path": names * 25_000, "label": ["cat", "dog"] * 50_000}, "csv")
    examples = list_examples(source, source.parent / "unpacked")
    assert len(examples) == 100_000
    assert sum(example.error is not None for example in examples) == 25_000
    table = pd.DataFrame([row(number) for number in range(100_000)]).astype({"error": "string"})
    verdict = judge(table, edit_params())
    assert len(verdict.accepted) == 100_000
    assert verdict.failures == ()
