"""Comparison, evidence and serving check: what a registration rests on, and that it refuses without."""

import io
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from importlib.metadata import version as version_of
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refit import paths
from refit.data import changes
from refit.errors import EvidenceError, WorkspaceError
from refit.files import sha256_of_file
from refit.gate import evidence
from refit.gate.checks import Labels
from refit.gate.comparison import Comparison
from refit.gate.decide import decide
from refit.gate.evidence import Bundle
from refit.gate.golden import NUM_GOLDEN
from refit.gate.statistics import median_interval
from refit.model.card import read_card
from refit.params import load_params, public
from refit.records import read_record
from refit.registry import probe, tracking
from refit.registry.provenance import Provenance
from refit.registry.records import Version
from refit.reports.comparison import comparison_markdown
from refit.scoring import metrics
from refit.scoring.evaluation import Evaluation
from tasks import compare as comparing
from tasks import register
from tasks.compare import compare
from tasks.register import find_registered, register_candidate

from .conftest import ANSWERED, ROOT, change_params
from .test_tracking import client


def stored_evidence(version: Version) -> Bundle:
    digest = version.tags[tracking.EVIDENCE_TAG]
    data = tracking.read_file(load_params().register, f"runs:/{version.run_id}/evidence/{digest}.json")
    return evidence.opened(data, digest, version.uri)


def test_the_bundle_names_everything_a_decision_rests_on(trained: Path) -> None:
    version = register_candidate().version
    bundle = stored_evidence(version)
    card = read_card(paths.MODEL_CARD)
    assert bundle.content_digest == version.tags["refit.content_digest"]
    assert bundle.lineage.weights_sha256 == card.weights_sha256 == sha256_of_file(paths.MODEL_WEIGHTS)
    assert bundle.dvc_lock_sha256 == sha256_of_file(paths.LOCK)
    assert bundle.environment == card.environment
    assert bundle.environment.pillow == version_of("pillow")
    assert bundle.params == public(load_params())
    assert bundle.comparison.champion is None
    assert bundle.comparison.verdict == version.tags["refit.verdict"]
    assert bundle.model_files["artifacts/model.safetensors"] == card.weights_sha256
    assert bundle.files["golden.json"] == sha256_of_file(paths.GOLDEN)
    check = bundle.serving_check
    assert check.largest_probability_error < 1e-4
    assert check.milliseconds_per_image > 0
    assert check.peak_megabytes > 50
    assert re.search(r"/code/refit_[0-9a-f]{12}/model/classifier\.py$", check.versions["code"])
    assert str(trained) not in json.dumps(bundle.params)


def test_without_a_comparison_nothing_is_registered(trained: Path) -> None:
    paths.COMPARISON.unlink()
    with pytest.raises(EvidenceError, match=r"no registration without evidence: reports/comparison\.json is missing"):
        register_candidate()
    assert client().search_model_versions() == []


def test_a_comparison_of_other_weights_is_no_evidence(trained: Path) -> None:
    comparison = json.loads(paths.COMPARISON.read_text())
    comparison["candidate"]["weights_sha256"] = "0" * 64
    paths.COMPARISON.write_text(json.dumps(comparison))
    with pytest.raises(EvidenceError, match="about another model"):
        register_candidate()


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize("changed", ["artifacts/model.safetensors", "code/refit_*/model/classifier.py"])
def test_a_model_that_comes_back_changed_is_not_registered(
    trained: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tracking.download

    def damaged(uri: str, folder: Path) -> Path:
        found = original(uri, folder)
        for file in found.glob(changed):
            file.write_bytes(file.read_bytes() + b"#")
        return found

    monkeypatch.setattr(tracking, "download", damaged)
    with pytest.raises(EvidenceError, match=r"does not hold the bytes .*: artifacts/model\.safetensors|code that was"):
        register_candidate()
    assert client().search_model_versions() == []


def test_a_model_that_answers_otherwise_is_not_registered(trained: Path) -> None:
    golden = json.loads(paths.GOLDEN.read_text())
    golden["images"][0]["probabilities"] = golden["images"][0]["probabilities"][::-1]
    paths.GOLDEN.write_text(json.dumps(golden))
    with pytest.raises(EvidenceError, match="does not say what the trained model said: 1 of "):
        register_candidate()
    assert client().search_model_versions() == []


def test_a_model_that_does_not_load_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="models:/nobody/1 cannot be used: "):
        probe.ask(probe.Question(probe.Packed(tmp_path), [], "models:/nobody/1"))


ANSWERS_IN_BATCHES = """
import json, os, sys
request = json.loads(sys.stdin.readline())
answer = {"classes": ["a"], "probabilities": [], "seconds_to_load": 1, "peak_megabytes": 1, "versions": {}}
open(request["answer"], "w").write(json.dumps(answer))
os.write(request["replies"], b"batch\\nbatch\\nanswered\\n")
sys.stdin.read()
"""


def test_each_batch_has_the_time_that_an_answer_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child, waited, select = tmp_path / "child.py", [], probe.select.select
    child.write_text(ANSWERS_IN_BATCHES)
    monkeypatch.setattr(probe, "_CHILD", child)
    monkeypatch.setattr(probe, "_SECONDS_AT_MOST", 60)
    monkeypatch.setattr(probe.select, "select", lambda *args: waited.append(args[3]) or select(*args))
    assert probe.ask(probe.Question(probe.Packed(tmp_path), [], "it")).classes == ("a",)
    assert waited[-3:] == [60, 60, 60]


def test_a_model_takes_as_long_as_itself_on_a_busy_machine(trained: Path) -> None:
    """Two real processes, timed in turns, beside one that wants the whole machine."""
    files = [Path(name) for name in pd.read_parquet(paths.PREDICTIONS, columns=["path"])["path"]]
    question = probe.Question(probe.Bare(paths.MODEL_WEIGHTS, paths.MODEL_CARD), files, "it")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            one, other = probe.ask_both(question, question)
        finally:
            busy.kill()
    assert np.array_equal(one.probabilities, other.probabilities)
    assert one.milliseconds.shape == other.milliseconds.shape
    _, low, high = median_interval(one.milliseconds / other.milliseconds, 0.95)
    limit = load_params().gate.max_latency_ratio
    assert low < limit
    assert high > 1 / limit


def test_a_process_that_loads_a_model_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    passed_on = probe.without_secrets("/tmp/home")
    assert "secret" not in passed_on.values()
    assert passed_on["HOME"] == "/tmp/home"
    assert passed_on["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("damage", ["bytes", "digest", "format", "key", "verdict", "check", "files", "json"])
def test_a_bundle_that_is_not_whole_is_refused(damage: str, finished: Path) -> None:
    bundle = whole_bundle(finished)
    data = evidence.canonical(bundle)
    assert evidence.opened(data, evidence.digest_of(data), "x") == bundle
    content = json.loads(data)
    match damage:
        case "format":
            content["format"] = 2
        case "key":
            del content["lineage"]
        case "verdict":
            content["comparison"]["verdict"] = None
        case "check":
            content["serving_check"]["labels_equal"] = False
        case "files":
            content["files"] = {}
    data = b"{" if damage == "json" else json.dumps(content).encode()
    digest = "0" * 64 if damage == "digest" else evidence.digest_of(data)
    with pytest.raises(EvidenceError):
        evidence.opened(data + b" " if damage == "bytes" else data, digest, "x")


def whole_bundle(finished: Path) -> Bundle:
    card = read_card(finished / paths.MODEL_CARD)
    evaluation = read_record(finished / paths.EVALUATION, Evaluation, EvidenceError)
    return Bundle(
        format=1, model_name="pets", content_digest="0", lineage=evidence.Digests(*"1234567"),
        git=evidence.GitState("none", "unknown", "0"), dvc_lock_sha256="0", environment=card.environment,
        packages_sha256="0", seed=17, params={"finetune": {"epochs": 1}}, metrics=evaluation.overall,
        comparison=read_record(finished / paths.COMPARISON, Comparison, EvidenceError), serving_check=ANSWERED,
        model_files={"a": "0"}, files={"b": "0"},
    )  # fmt: skip


def test_predictions_of_other_images_are_no_evidence(trained: Path) -> None:
    predictions = pd.read_parquet(paths.PREDICTIONS)
    predictions.iloc[1:].to_parquet(paths.PREDICTIONS)
    with pytest.raises(EvidenceError, match="is not about the test examples"):
        compare()
    paths.PREDICTIONS.unlink()
    with pytest.raises(WorkspaceError, match=r"data/predictions\.parquet missing"):
        compare()


def test_a_test_image_that_changed_since_is_no_evidence(trained: Path) -> None:
    path = Path(pd.read_parquet(paths.PREDICTIONS)["path"].iloc[-1])
    shutil.copy(next(other for other in path.parent.glob("*.png") if other.name != path.name), path)
    with pytest.raises(EvidenceError, match="was changed after it was validated"):
        compare()
    path.unlink()
    with pytest.raises(EvidenceError, match=rf"{path} was changed after it was validated, or is gone: .*`dvc pull`"):
        compare()


def test_the_example_of_a_candidate_that_is_gone_is_said(trained: Path) -> None:
    path = Path(pd.read_parquet(paths.ACCEPTED)["path"].iloc[0])
    path.unlink()
    with pytest.raises(EvidenceError, match=rf"{path} was changed after it was validated, or is gone"):
        register_candidate()


@pytest.mark.usefixtures("no_processes")
def test_a_class_of_the_source_that_vanished_is_rejected_unless_it_was_given_up(trained: Path) -> None:
    """All of its images were unreadable: neither the model nor the accepted images know of it."""
    manifest = pd.read_parquet(paths.MANIFEST)
    unreadable = manifest.head(3).assign(label="bird", error="not an image")
    pd.concat([manifest, unreadable], ignore_index=True).to_parquet(paths.MANIFEST)
    comparison = compare()
    assert comparison.verdict == "reject"
    assert comparison == read_record(paths.COMPARISON, Comparison, EvidenceError)
    [check] = [check for check in comparison.checks if check.name == "class bird"]
    assert "the candidate does not know it, the data source has it" in check.reason
    change_params(trained / "params.yaml", {"validate.retired_labels": ["bird"]})
    assert not [check for check in compare().checks if check.name == "class bird"]
    change_params(trained / "params.yaml", {"validate.retired_labels": [], "validate.labels": ["cat", "dog"]})
    assert not [check for check in compare().checks if check.name == "class bird"], "it was never wanted"


def answer(classes: str, probabilities: np.ndarray) -> probe.Answer:
    return probe.Answer(tuple(classes), probabilities, np.full(24, 5.0), 1.0, 100.0, {})


def test_two_models_speak_of_the_same_classes() -> None:
    """The candidate knows a, c, d; the champion knew a, b, c, of which b was given up."""
    labels = Labels(tuple("abcd"), frozenset("acd"), frozenset("b"))
    test = pd.DataFrame({"label": ["a", "c", "d", "b"], "group": ""})
    new = np.array([[0.7, 0.1, 0.2], [0.1, 0.3, 0.6], [0.1, 0.2, 0.7], [0.3, 0.2, 0.5]])
    old = np.array([[0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    lasting = labels.lasting(frozenset("abc"))
    candidate = comparing._side(answer("acd", new), new.T, test, labels, lasting, 10)
    champion = comparing._side(answer("abc", old), old.T, test, labels, lasting, 10)
    assert candidate.scored.labels.tolist() == champion.scored.labels.tolist() == [0, 2, 3, 1]
    assert candidate.scored.predicted.tolist() == [0, 3, 3, 3]
    assert candidate.among.tolist() == [0, 2, 2, 0], "d is new"
    assert champion.scored.predicted.tolist() == [1, 2, 0, 1]
    assert champion.among.tolist() == [0, 2, 0, 0], "b was given up"
    unknown = -np.log(metrics.SMALLEST_PROBABILITY)
    assert candidate.scored.loss == pytest.approx([*-np.log([0.7, 0.3, 0.7]), unknown])
    assert champion.scored.loss == pytest.approx([*-np.log([0.2, 0.8]), unknown, -np.log(0.8)])
    stranger = comparing._side(answer("d", new[:, 2:]), new[:, 2:].T, test, labels, lasting, 10)
    assert stranger.among.tolist() == [-1] * 4, "none of these it can say"


def test_a_probability_that_is_no_number_stays_one_for_the_gate_to_refuse() -> None:
    labels = Labels(tuple("ab"), frozenset("ab"), frozenset())
    test = pd.DataFrame({"label": ["a", "b"], "group": ""})
    broken = np.array([[0.9, 0.1], [0.2, np.nan]])
    side = comparing._side(answer("ab", broken), broken.T, test, labels, labels.source, 10)
    with pytest.raises(EvidenceError, match="not numbers"):
        decide(side, None, labels, [], load_params(ROOT / "params.yaml").gate, 10, 17)


def test_the_probabilities_of_all_images_are_never_in_memory_at_once(project: Path) -> None:
    names = [f"{index:03d}" for index in range(100)]
    probabilities = np.random.default_rng(0).dirichlet(np.ones(100), 20_000)  # 16 MB
    test = pd.DataFrame({"label": np.random.default_rng(0).choice(names, 20_000), "group": ""})
    paths.PREDICTIONS.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(probabilities, columns=[f"p:{name}" for name in names]).to_parquet(paths.PREDICTIONS)
    labels = Labels(tuple(names), frozenset(names), frozenset())
    known = probe.Answer(tuple(names), probabilities[:0], np.full(24, 5.0), 1.0, 100.0, {})
    tracemalloc.start()
    try:
        side = comparing._side(known, comparing._stored_probabilities(names), test, labels, labels.source, 10)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
    assert (side.scored.predicted == probabilities.argmax(axis=1)).all()


def test_a_registry_that_is_down_is_not_a_registry_without_champion(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refit.errors import TrackingUnavailableError

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = paths.COMPARISON.read_bytes()
    with pytest.raises(TrackingUnavailableError):
        compare()
    assert paths.COMPARISON.read_bytes() == before


@pytest.mark.usefixtures("no_probe")
def test_new_settings_of_the_gate_renew_the_evidence_of_the_same_version(trained: Path) -> None:
    first = register_candidate().version
    change_params(trained / "params.yaml", {"gate.min_accuracy": 0.99})
    with pytest.raises(EvidenceError, match="other settings"):
        register_candidate()
    compare()
    second = register_candidate()
    assert not second.is_new
    assert second.version.version == first.version
    assert second.version.tags[tracking.EVIDENCE_TAG] != first.tags[tracking.EVIDENCE_TAG]
    assert stored_evidence(second.version).comparison.gate["min_accuracy"] == 0.99
    assert register_candidate().version == second.version, "and nothing is renewed without need"


@pytest.mark.usefixtures("no_probe")
def test_what_is_registered_is_found_without_a_new_comparison(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_registered() is None
    first = register_candidate()
    found = find_registered()
    assert found is not None
    assert (found.version, found.is_new) == (first.version, False)
    monkeypatch.setattr(register, "git_state", lambda: Provenance("f" * 40, False, ""))
    assert find_registered() is None, "a clean commit that it does not name"
    monkeypatch.setattr(register, "git_state", lambda: Provenance("f" * 40, True, "a difference"))
    assert find_registered() is not None, "a dirty one is not worth a new registration"
    change_params(trained / "params.yaml", {"gate.min_accuracy": 0.99})
    assert find_registered() is None, "the gate has other settings"
    change_params(trained / "params.yaml", {"gate.min_accuracy": load_params().gate.min_accuracy})
    paths.COMPARISON.unlink()
    assert find_registered() is None, "what lies here would be about another comparison, or nothing"


@pytest.mark.usefixtures("no_probe")
def test_a_new_champion_asks_for_a_new_comparison(trained: Path) -> None:
    first = register_candidate().version
    settings = load_params().register
    client().create_registered_model(settings.model_name)
    made = client().create_model_version(settings.model_name, first.source, first.run_id)
    client().set_registered_model_alias(settings.model_name, tracking.CHAMPION, made.version)
    assert find_registered() is None


def table(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "sha256", "label", "split"])


def test_what_changed_in_the_data_is_told_by_content() -> None:
    before = table(("a", "1", "cat", "train"), ("b", "2", "cat", "test"), ("c", "3", "dog", "train"))
    after = table(("x", "1", "dog", "test"), ("b", "2", "cat", "test"), ("d", "4", "dog", "val"))
    found = changes.data_changes(before, after)
    assert {name: change.count for name, change in found.items()} == {
        "added": 1, "removed": 1, "relabelled": 1, "moved_to_another_split": 1, "tested_but_trained_on_before": 1,
    }  # fmt: skip
    assert found["relabelled"].examples == ("x: cat -> dog",)
    assert found["added"] == changes.Change(count=1, by_label={"dog": 1}, examples=("d",))


def test_what_changed_in_the_settings() -> None:
    assert changes.params_changes({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}}) == {
        "a.c": (2, 4),
        "d": (3, None),
    }


def test_images_are_kept_for_the_next_comparison(trained: Path) -> None:
    kept = pd.read_csv(io.StringIO(paths.EXAMPLES.read_text()), dtype=str)
    accepted = pd.read_parquet(paths.ACCEPTED)
    assert changes.data_changes(kept, accepted)["added"].count == 0
    assert list(kept.columns) == ["path", "sha256", "label", "split"]
    golden = json.loads(paths.GOLDEN.read_text())
    assert 0 < len(golden["images"]) <= NUM_GOLDEN
    assert np.array([image["probabilities"] for image in golden["images"]]).sum(axis=1) == pytest.approx(1)


def test_the_summary_says_the_verdict_first(trained: Path) -> None:
    comparison = read_record(paths.COMPARISON, Comparison, EvidenceError)
    text = comparison_markdown(comparison, "pets")
    assert text.startswith("## The candidate ")
    assert "`refit review`, with the candidate's number" in text
    assert comparison.reasons[0] in text


def test_a_verdict_that_was_written_over_the_checks_is_never_believed(trained: Path) -> None:
    """[An edited verdict showed a green "passed" above a red check.]"""
    comparison = json.loads(paths.COMPARISON.read_text())
    assert comparison["verdict"] != "pass"
    for edited in ({"verdict": "pass"}, {"reasons": ["all is well"]}, {"checks": []}):
        paths.COMPARISON.write_text(json.dumps(comparison | edited))
        with pytest.raises(EvidenceError, match=r"does not follow from the checks|not those of the checks"):
            register_candidate()
    assert client().search_model_versions() == []
