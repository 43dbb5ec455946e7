"""The rules: which rows are rejected and why, and when the set stops the run."""

import base64
import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from refit import paths
from refit.data.changes import run_changes
from refit.data.classes import require_classes
from refit.data.exceptions import read_exceptions
from refit.data.findings import listed
from refit.data.labels import same_looking, similar
from refit.errors import DataError
from refit.params import Params, load_params, read_yaml
from refit.reports.changes import changes_markdown, changes_page
from refit.reports.validation import shelves_of
from tasks import ingest, validate
from tasks.validate import judge, summarize

from .conftest import ROOT, draw, write_image_folder
from .test_ingest import bad_files


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A good row of a manifest; another number is another picture."""
    return {
        "path": f"data/{number}.png",
        "label": "cat" if number % 2 else "dog",
        "split": ("train", "val", "test")[number // 2 % 3],
        "sha256": f"{number:064x}",
        "content_sha256": f"{number:064x}",
        "bytes": 10,
        "width": 24,
        "height": 20,
        "mode": "RGB",
        "format": "PNG",
        "frames": 1,
        "brightness": 120.0,
        "contrast": 40.0,
        "sharpness": 30.0,
        "profile": "",
        "warnings": "",
        "group": "",
        "signature": b"",
        "error": None,
        "rule": "unreadable" if changes.get("error") else "",
    } | changes


def manifest(*changed: dict[str, Any], good: int = 60) -> pd.DataFrame:
    rows = [row(number) for number in range(good)] + [row(1000 + n, **changes) for n, changes in enumerate(changed)]
    return pd.DataFrame(rows).astype({"error": "string"})


def test_a_good_set_passes_whole(project: Path) -> None:
    verdict = judge(manifest(), load_params())
    assert verdict.failures == ()
    assert len(verdict.accepted) == 60
    assert verdict.rejected.empty


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"error": "empty file"}, "empty file"),
        ({"width": 3}, "side outside 8 to 20000 pixels: width is 3"),
        ({"height": 30000}, "side outside 8 to 20000 pixels: height is 30000"),
        ({"mode": "I"}, "pixel format is not one of `image.validate.modes`: mode is I"),
        ({"label": "cow"}, "label is not one of `validate.labels`: label is cow"),
        ({"content_sha256": f"{4:064x}", "split": "test", "label": "dog"}, "duplicate: the same as data/4.png"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(
    edit_params: Callable[..., Params], changes: dict[str, Any], reason: str
) -> None:
    rules = edit_params(validate__labels=["cat", "dog"])
    verdict = judge(manifest(changes), rules)
    assert list(verdict.rejected["reason"]) == [reason]
    assert len(verdict.accepted) == 60
    assert verdict.failures == ()


def test_a_row_may_break_several_rules(project: Path) -> None:
    verdict = judge(manifest({"width": 3, "mode": "F"}), load_params())
    assert "width is 3" in verdict.rejected["reason"].iloc[0]
    assert "mode is F" in verdict.rejected["reason"].iloc[0]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            [{"content_sha256": f"{4:064x}", "label": "cat"}],
            "the same content has two labels (2 examples), for instance data/1000.png: the same as data/4.png "
            "(dog, this one cat)",
        ),
        (
            [{"error": "empty file"}] * 5,
            "5 of 65 examples are rejected (7.7%, `validate.max_rejected_fraction` allows 5.0%)",
        ),
        ([{"label": "cow"}], "too few train examples in 1 of 3 classes (cow: 0; `validate.min"),
        ([{"label": "cow"}], "add examples, set other shares in `data.test_fraction` and `data.val_fraction`, or give"),
    ],
)
def test_the_set_stops_the_run(project: Path, changed: list[dict[str, Any]], expected: str) -> None:
    verdict = judge(manifest(*changed), load_params())
    assert expected in "; ".join(verdict.failures)


def test_one_class_is_not_enough(project: Path) -> None:
    only_cats = manifest()[lambda table: table["label"] == "cat"]
    assert "at least two classes are needed, found 1 (cat)" in judge(only_cats, load_params()).failures


def test_a_required_label_without_images_stops_the_run(edit_params: Callable[..., Params]) -> None:
    rules = edit_params(validate__labels=["cat", "dog", "eel"])
    assert judge(manifest(), rules).failures == (
        "class eel has no examples: mend or add examples, or move the label from `validate.labels` to "
        "`validate.retired_labels`",
    )


EELS = [{"label": "eel", "error": "empty file"}, {"label": "eel", "width": 2}, {"label": "eel", "width": 3}]


def test_a_class_cannot_vanish(edit_params: Callable[..., Params]) -> None:
    rules = edit_params(validate__max_rejected_fraction=0.5)
    assert judge(manifest(*EELS), rules).failures == (
        "class eel has no accepted example among 3, mostly for the reason: side outside 8 to 20000 pixels: width is 2 "
        "(data/1001.png): mend the examples, or put the label under `validate.retired_labels` if it is given up on "
        "purpose",
    )
    many = [{"label": f"eel {number}", "error": "empty file"} for number in range(10)]
    assert "eel 7 has no accepted example" in judge(manifest(*many), rules).failures[0]
    assert "(data/1007.png) and 2 more: mend" in judge(manifest(*many), rules).failures[0]


def test_a_retired_class_may_vanish(edit_params: Callable[..., Params]) -> None:
    rules = edit_params(validate__retired_labels=["eel"])
    verdict = judge(manifest(*EELS), rules)
    assert verdict.failures == ()
    assert set(verdict.rejected["reason"]) == {"label is one of `validate.retired_labels`"}


def test_images_of_a_retired_class_are_left_out_and_count_neither_way(edit_params: Callable[..., Params]) -> None:
    rules = edit_params(validate__retired_labels=["eel"], validate__min_examples_per_class__val=1)
    eels = [{"label": "eel"}] * 50 + [{"label": "eel", "content_sha256": f"{4:064x}"}]
    verdict = judge(manifest(*eels), rules)
    assert verdict.failures == ()
    assert set(verdict.accepted["label"]) == {"cat", "dog"}
    bad = [{"label": "cat", "error": "empty file"}] * 4  # of 64 expected ones: 6 %, though of all 115 only 3 %
    assert "4 of 64 examples are rejected (6.2%" in judge(manifest(*eels, *bad), rules).failures[0]


def test_a_file_without_a_label_is_no_class(project: Path) -> None:
    stray = {"label": "", "error": "not inside a class folder"}
    assert judge(manifest(stray), load_params()).failures == ()


def test_a_class_that_is_not_allowed_may_vanish(edit_params: Callable[..., Params]) -> None:
    rules = edit_params(validate__labels=["cat", "dog"])
    assert judge(manifest({"label": "eel", "error": "empty file"}), rules).failures == ()


def test_a_class_of_the_champion_cannot_vanish() -> None:
    def check(accepted: list[str], retired: list[str]) -> None:
        require_classes(["ant", "bee", "cat"], accepted, retired, "the champion models:/pets/3")

    check(["cat", "bee", "ant", "eel"], [])
    check(["cat"], ["ant", "bee"])
    with pytest.raises(
        DataError, match=r"the champion models:/pets/3 knows ant, of which .* under `validate\.retired_labels`"
    ):
        check(["cat"], ["bee"])


def test_a_manifest_of_another_version_is_refused(project: Path) -> None:
    with pytest.raises(DataError, match=r"run `dvc repro -f ingest`"):
        judge(manifest().drop(columns="group"), load_params())
    with pytest.raises(DataError, match="column split"):
        judge(manifest({"split": "dev"}), load_params())


def test_the_digests_name_the_data_and_its_split(project: Path) -> None:
    rules = load_params()

    def digests(table: pd.DataFrame) -> tuple[str, str]:
        summary = summarize(table, judge(table, rules), rules)
        return summary.data_digest, summary.split_digest

    data, split = digests(manifest())
    assert digests(manifest().sample(frac=1, random_state=1)) == (data, split), "the order of rows is no content"
    moved = manifest()
    moved.loc[0, "split"] = "val"
    assert digests(moved) == (data, digests(moved)[1])
    assert digests(moved)[1] != split
    relabelled = manifest()
    relabelled.loc[0, "label"] = "cat"
    assert digests(relabelled)[0] != data


def run_stages(edit_params: Callable[..., Params], **changes: Any) -> None:
    edit_params(data__source="data/images", **changes)
    ingest.main()
    validate.main()


def test_bad_files_are_reported_and_the_rest_goes_on(images: Path, edit_params: Callable[..., Params]) -> None:
    write_image_folder(images, per_class=60)
    bad = bad_files(images / "cat")
    run_stages(edit_params, validate__max_rejected_fraction=0.2, validate__min_examples_per_class__val=1)
    rejected = pd.read_parquet(paths.REJECTED)
    assert {Path(path).name for path in rejected["path"]} == set(bad)
    assert rejected["reason"].str.len().min() > 0
    page = paths.VALIDATION_REPORT.read_text()
    assert "empty.jpg" in page
    assert "a page saved as a picture" in page
    assert len(pd.read_parquet(paths.ACCEPTED)) == 120


def test_when_the_run_stops_the_report_is_there_and_nothing_to_train_on(
    images: Path, edit_params: Callable[..., Params]
) -> None:
    (images / "lone").mkdir()
    draw(77).save(images / "lone" / "only.png")
    paths.ACCEPTED.parent.mkdir(exist_ok=True)
    paths.ACCEPTED.write_text("of an earlier run")
    with pytest.raises(DataError, match=r"lone: [01].*All that was found: reports/validation.html"):
        run_stages(edit_params)
    assert not paths.ACCEPTED.exists()
    summary = json.loads(paths.VALIDATION_SUMMARY.read_text())
    assert not summary["passed"]
    assert summary["failures"]
    assert "stopped the run" in paths.VALIDATION_REPORT.read_text()


def test_what_the_report_shows_is_escaped(images: Path, edit_params: Callable[..., Params]) -> None:
    (images / "cat" / "<script>alert(1)<").mkdir(parents=True)
    (images / "cat" / "<script>alert(1)<" / "x.png").write_bytes(b"x")
    with pytest.raises(DataError):
        run_stages(edit_params, validate__max_rejected_fraction=0.0)
    assert "<script>alert" not in paths.VALIDATION_REPORT.read_text()


def test_the_page_shows_what_clashes_side_by_side_and_ends_somewhere(project: Path) -> None:
    clash = [
        {"path": f"data/{n}b.png", "content_sha256": f"{n:064x}", "label": ("cat", "dog")[n % 2]} for n in range(20)
    ]
    damaged = [{"path": f"data/cut{n}.png", "error": "damaged image", "rule": "damaged"} for n in range(50)]
    table = manifest(*clash, *damaged)
    findings = listed(judge(table, load_params()).findings, table)
    shelves = {shelf.rule: shelf for shelf in shelves_of(findings, table)}
    two = shelves["two_labels"]
    assert [one.path for one in two.groups[0]] == ["data/0b.png", "data/0.png"]
    assert len(two.groups) == 12
    assert two.num_hidden == 40 - 24
    assert (len(shelves["damaged"].lines), shelves["damaged"].num_hidden) == (40, 10)
    (of_the_set,) = shelves["too_many_rejected"].lines
    assert of_the_set.path == ""
    assert "are rejected" in of_the_set.says


def test_pictures_on_the_page_are_ours_and_of_the_bytes_that_were_judged(
    images: Path, edit_params: Callable[..., Params]
) -> None:
    hidden = b"<script>alert(1)</script>"
    shutil.copy(images / "cat/000.png", images / "cat/copy.png")
    large = draw(50, 300, 200)
    large.save(images / "cat/large.jpg", comment=hidden)
    (images / "cat/large.jpg").write_bytes((images / "cat/large.jpg").read_bytes() + hidden)
    shutil.copy(images / "cat/large.jpg", images / "cat/large2.jpg")
    edit_params(data__source="data/images", validate__min_examples_per_class={"train": 1, "val": 1, "test": 1})
    ingest.main()
    manifest = pd.read_parquet(paths.MANIFEST)
    (images / "cat/copy.png").write_bytes(b"something else now")
    with contextlib.suppress(DataError):
        validate.main()
    page = paths.VALIDATION_REPORT.read_text()
    shown = re.findall(r'src="data:image/(?:jpeg|png);base64,([^"]+)" alt="data/images/([^"]+)"', page)
    contents = [base64.b64decode(address) for address, _ in shown]
    assert {"cat/000.png", "cat/large.jpg", "cat/large2.jpg"} <= {path for _, path in shown}
    assert hidden not in b"".join(contents)
    assert {max(Image.open(io.BytesIO(content)).size) for content in contents} == {24, 144}
    assert "not here any more" in page
    findings = json.loads(paths.FINDINGS.read_text())
    assert {"cat/copy.png", "cat/large2.jpg"} <= {one["path"].removeprefix("data/images/") for one in findings}
    assert set(findings[0]) == {"rule", "policy", "reason", "path", "label", "split", "sha256", "twin"}
    assert {one["sha256"] for one in findings if one["path"]} <= set(manifest["sha256"])


def test_what_changed_since_the_last_run() -> None:
    before = manifest()[["path", "sha256", "label", "split"]].assign(rule="")
    after = before.copy()
    after.loc[0, "label"], after.loc[1, "rule"], after.loc[2, "path"] = "eel", "blank", "data/renamed.png"
    after.loc[3, "split"] = "train" if before.loc[3, "split"] == "val" else "val"
    after = after[after["path"] != "data/5.png"]
    found = run_changes(before, after)
    assert {name: kind.count for name, kind in found.kinds.items()} == {
        "added": 0, "removed": 1, "relabelled": 1, "moved": 1, "newly_rejected": 1, "accepted_again": 0,
    }  # fmt: skip
    assert found.kinds["relabelled"].some[0].says == "dog -> eel"
    assert (found.appeared, found.vanished) == (("eel",), ())
    assert run_changes(after, before).vanished == ("eel",)
    text = changes_markdown(found, "photos")
    assert "59 examples (before: 60): 0 added, 1 removed, 1 relabelled, 1 moved to another split, 1 rejected" in text
    assert "- rejected now: data/1.png: blank" in text
    assert "data/renamed.png" not in text
    page = changes_page(found, {"data/0.png": "data:image/png;base64,xx"})
    assert "dog -&gt; eel" in page
    assert 'src="data:image/png;base64,xx"' in page


def test_the_accepted_set_is_described_for_catalogues_and_loaders(
    images: Path, edit_params: Callable[..., Params], caplog: pytest.LogCaptureFixture
) -> None:
    import mlcroissant

    run_stages(edit_params, validate__min_examples_per_class={"train": 1, "val": 1, "test": 1})
    assert str(paths.CROISSANT) in read_yaml(ROOT / "dvc.yaml")["stages"]["validate"]["outs"]
    described = mlcroissant.Dataset(str(paths.CROISSANT))
    assert "not standard" not in caplog.text
    assert {warning.split('"')[1].split("/")[-1] for warning in described.metadata.ctx.issues.warnings} == {
        "citeAs", "datePublished", "license",
    }, "what does not follow from the data"  # fmt: skip
    accepted = pd.read_parquet(paths.ACCEPTED)
    records = list(described.records("examples"))
    assert [one["examples/path"].decode() for one in records] == list(accepted["path"])
    assert {one["examples/width"] for one in records} == {24}
    assert [one["labels/name"] for one in described.records("labels")] == ["cat", "dog"]


def test_labels_that_may_be_one_are_named(project: Path) -> None:
    assert same_looking(["Cats", "Cats ", "cats", "с\u0430t", "cat", "dog", "dog\u200b", "ｄｏｇ"]) == [
        ("Cats", "Cats "),
        ("cat", "с\u0430t"),
        ("dog", "dog\u200b", "ｄｏｇ"),
    ]
    counts = {
        "cat": 90, "cats": 3, "Dog": 7, "dog": 9, "berry": 4, "berries": 1, "t-shirt": 4, "t shirt": 3, "elephant": 90,
        "elepant": 2, "elephnat": 1, "class_1": 9, "class_2": 1, "mouse": 50, "moose": 60, "car": 1, "glass": 4,
    }  # fmt: skip
    assert similar(counts) == [
        ("berry", "berries", "a plural"),
        ("cat", "cats", "a plural"),
        ("dog", "Dog", "case or signs"),
        ("elephant", "elepant", "one letter"),
        ("elephant", "elephnat", "one letter"),
        ("t-shirt", "t shirt", "case or signs"),
    ]
    verdict = judge(manifest(*[{"label": "dog "}, {"label": "cats"}]), load_params())
    assert "labels that look the same are different classes: 'dog' (30 examples), 'dog ' (1 examples); rename them" in (
        verdict.failures
    )
    said = verdict.findings.set_index("rule")["reason"]
    assert said["similar_labels"] == "'cat' (30 examples) and 'cats' (1) may be one: they differ in a plural"


def test_a_thousand_names_are_compared_at_once() -> None:
    names = {f"species number {chr(97 + n // 26)}{chr(97 + n % 26)} of a kind": 1 for n in range(676)}
    assert similar(names) == []


def test_rare_classes_and_names_that_collide_are_reported(edit_params: Callable[..., Params]) -> None:
    few = [{"label": "cow", "split": split} for split in ("train", "val", "test")]
    names = [
        {"path": "data/Straße.png"},
        {"path": "data/STRASSE.png"},
        {"path": "data/u\u0308.png"},
        {"path": "data/ü.png"},
    ]
    rules = edit_params(validate__max_imbalance=5.0, validate__min_examples_per_class={"train": 1, "val": 1, "test": 1})
    verdict = judge(manifest(*few, *names), rules)
    assert verdict.failures == ()
    said = verdict.findings.set_index("rule")
    assert said["reason"]["imbalance"].startswith(
        "1 of 3 classes have less than 1/5 of the train examples of cat (11): cow: 1; add examples"
    )
    assert list(said.loc["colliding_names", "twin"]) == ["data/Straße.png", "data/u\u0308.png"]


def exceptions_of(*rows: tuple[int, str]) -> pd.DataFrame:
    lines = [f"{number:064x},{rule},looked at,Ada" for number, rule in rows]
    paths.EXCEPTIONS.parent.mkdir(exist_ok=True)
    paths.EXCEPTIONS.write_text("\n".join(["sha256,rule,reason,who", *lines, ""]))
    return read_exceptions(paths.EXCEPTIONS, ["side", "two_labels", "damaged"])


def test_what_a_person_has_looked_at_has_no_consequence(project: Path) -> None:
    clash = {"content_sha256": f"{4:064x}", "label": "cat"}
    table = manifest({"width": 3}, clash, {"error": "damaged image", "rule": "damaged"})
    known = exceptions_of((1000, "side"), (1001, "two_labels"), (4, "two_labels"), (1002, "damaged"))
    verdict = judge(table, load_params(), known)
    assert verdict.failures == ()
    assert list(verdict.rejected["rule"]) == ["excused"], "what cannot be read cannot be used, whoever says so"
    assert len(verdict.accepted) == 62


def test_an_exception_that_is_not_needed_any_more_is_reported(project: Path) -> None:
    verdict = judge(manifest(), load_params(), exceptions_of((4, "side")))
    assert list(verdict.findings["rule"]) == ["unused_exception"]
    assert (
        "nothing found any more for 000000000000…, side (looked at, Ada); take it out" in verdict.findings["reason"][0]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sha256,rule,reason,who\nabc,side,x,Ada\n", "row 1, sha256: must be a SHA-256"),
        (f"sha256,rule,reason,who\n{0:064x},sied,x,Ada\n", "row 1, rule: is no rule of params.yaml"),
        (f"sha256,rule,reason,who\n{0:064x},side,,Ada\n", "row 1, reason: must not be empty"),
        ("a,b\n1,2\n", "columns must be sha256,rule,reason,who"),
        ("", "cannot be read as a table"),
    ],
)
def test_a_list_of_exceptions_that_says_nothing_is_refused(project: Path, text: str, expected: str) -> None:
    paths.EXCEPTIONS.parent.mkdir(exist_ok=True)
    paths.EXCEPTIONS.write_text(text)
    with pytest.raises(DataError, match=expected):
        read_exceptions(paths.EXCEPTIONS, ["side"])
