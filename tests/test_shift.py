"""Whether new training examples look like the champion's: no false alarm, no miss, and what follows at the gate."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refit import paths
from refit.data.profile import Features, Profile, profile_of, publish_features, read_features
from refit.data.shift import FEWEST, Shift, psi, shift_since, two_sample_test
from refit.data.summary import RuleSummary, ValidationSummary
from refit.errors import WorkspaceError
from refit.files import sha256_of_file
from refit.gate.checks import verdict_of
from refit.gate.comparison import Comparison
from refit.gate.data_checks import leak_checks, shift_checks
from refit.params import ShiftSettings
from refit.records import parse_record, publish_record, read_record

from .conftest import change_params

SETTINGS = ShiftSettings(policy="hold", max_psi=0.25, max_auc=0.7, significance=0.01)
COLUMNS = ("label", "brightness", "width")


def pictures(count: int, seed: int, darker: float = 0.0, labels: str = "ab") -> tuple[pd.DataFrame, Features]:
    """A table of made-up training examples, and their features; the darker ones have other features too."""
    draws = np.random.default_rng(seed)
    names = [draws.bytes(32).hex() for _ in range(count)]
    brightness = draws.normal(100 - darker, 20, count)
    rows = draws.normal(size=(count, 16))
    rows[:, 0] += (brightness - 100) / 20
    table = pd.DataFrame(
        {
            "sha256": names, "label": draws.choice(list(labels), count), "brightness": brightness,
            "width": np.full(count, 28), "split": "train",
        }
    )  # fmt: skip
    return table, Features("base", tuple(names), rows.astype(np.float16))


def shift_of(new: int, seed: int = 1, darker: float = 0.0, labels: str = "ab", source: str = "base") -> Shift:
    """From 300 pictures to the same with `new` more."""
    before, seen = pictures(300, 1000 + seed)
    more, also_seen = pictures(new, seed, darker, labels)
    features = Features(source, seen.sha256s + also_seen.sha256s, np.concatenate([seen.rows, also_seen.rows]))
    profile = profile_of(before, COLUMNS, seen)
    return shift_since(profile, list(before["sha256"]), pd.concat([before, more]), features, seed=17)


def found(shift: Shift) -> list[str]:
    return [check.reason for check in shift_checks(shift, SETTINGS) if check.verdict != "pass"]


def test_sets_that_are_alike_raise_no_alarm() -> None:
    """Of ten draws from one distribution none is reported: chance alone would do it in one of a hundred."""
    assert [found(shift_of(new, seed)) for seed in range(5) for new in (20, 150)] == [[]] * 10


def test_darker_pictures_are_told_by_brightness_and_features() -> None:
    (reason,) = found(shift_of(60, darker=60.0))
    assert "brightness of new examples (PSI" in reason
    assert "features, which tell new examples from old ones (AUC" in reason
    assert "label" not in reason


def test_another_share_of_classes_and_a_new_class_are_told() -> None:
    for labels in ("aaaaaaab", "abc"):
        (reason,) = found(shift_of(100, labels=labels))
        assert "label of new examples (PSI" in reason
        assert "brightness" not in reason


def test_a_few_odd_pictures_among_many_are_new_ones_all_the_same() -> None:
    shift = shift_of(25, darker=60.0)
    sizes = {(question.name, question.of): question.size for question in shift.questions}
    assert sizes["brightness", "new"] > 10 * sizes["brightness", "all"]


def test_what_cannot_be_asked_is_said() -> None:
    assert shift_of(FEWEST - 1).remarks[0].startswith("19 training examples are new: too few")
    assert "another base checkpoint" in shift_of(60, source="other").remarks[0]
    nothing = shift_of(0)
    assert (nothing.num_new, {question.size for question in nothing.questions}) == (0, {0.0})
    (check,) = shift_checks(nothing, SETTINGS)
    assert check.verdict == "pass"


@pytest.mark.parametrize(("policy", "verdict"), [("warn", "pass"), ("hold", "hold"), ("reject", "reject")])
def test_the_policy_says_what_follows(policy: str, verdict: str) -> None:
    settings = dataclasses.replace(SETTINGS, policy=policy)
    (check,) = shift_checks(shift_of(60, darker=60.0), settings)
    assert check.verdict == verdict
    assert ("it is only said" in check.reason) == (policy == "warn")
    assert shift_checks(shift_of(60, darker=60.0), dataclasses.replace(SETTINGS, policy="off")) == []
    assert shift_checks(None, settings) == []


def test_a_word_that_was_not_there_counts() -> None:
    before, features = pictures(50, 1)
    after = before.assign(label="z", sha256=[f"{row:064x}" for row in range(50)])
    shift = shift_since(profile_of(before, ["label"], features), list(before["sha256"]), after, features, 1)
    assert max(question.size for question in shift.questions) > 3


def test_the_index_is_that_of_the_literature() -> None:
    assert psi(np.array([500, 500]), np.array([500, 500])) == 0
    expected = (0.6 - 0.5) * np.log(0.6 / 0.5) + (0.4 - 0.5) * np.log(0.4 / 0.5)
    assert psi(np.array([5000, 5000]), np.array([6000, 4000])) == pytest.approx(expected, rel=1e-3)


def test_p_values_of_equal_sets_are_uniform() -> None:
    values = []
    for seed in range(40):
        draws = np.random.default_rng(seed)
        values.append(two_sample_test(draws.normal(size=(40, 8)), draws.normal(size=(30, 8)), draws)[1])
    assert 0.3 < np.mean(values) < 0.7
    assert (np.array(values) < 0.05).sum() <= 6


def test_a_profile_is_small_and_comes_back_whole(tmp_path: Path) -> None:
    table, features = pictures(2000, 1)
    profile = profile_of(table, COLUMNS, features)
    assert profile.features.shape == (500, 16)
    publish_record(tmp_path / "profile.json", profile)
    data = (tmp_path / "profile.json").read_bytes()
    assert parse_record(data, Profile, WorkspaceError, "here") == profile
    assert len(data) < 30_000
    assert profile.columns["width"].counts == (0, 2000, 0), "one value, and what is below and above it"


def test_features_come_back_and_others_are_refused(tmp_path: Path) -> None:
    features = pictures(5, 1)[1]
    publish_features(tmp_path / "f", features)
    again = read_features(tmp_path / "f")
    assert (again.source, again.sha256s) == (features.source, features.sha256s)
    assert (again.rows == features.rows).all()
    (tmp_path / "f").write_bytes(b"no safetensors")
    with pytest.raises(WorkspaceError, match="dvc repro -f suspects"):
        read_features(tmp_path / "f")


def validation(policy: str, count: int) -> ValidationSummary:
    rules = {"leak": RuleSummary(policy, "leak", count)} if count else {}
    return ValidationSummary(True, (), 9, 9, 0, rules, {}, "", "")


@pytest.mark.parametrize(
    ("policy", "count", "verdict"),
    [("reject", 3, None), ("error", 0, None), ("warn", 0, None), ("warn", 3, "hold"), ("off", 0, "hold")],
)
def test_a_known_leak_holds_the_gate(policy: str, count: int, verdict: str | None) -> None:
    checks = leak_checks(validation(policy, count), policy)  # type: ignore[arg-type]
    assert (verdict_of(checks) if checks else None) == verdict
    assert not checks or "`validate.rules.leak: reject`" in checks[0].reason


def test_a_leak_that_was_trained_on_holds_the_gate_whatever_the_rule_says_by_now() -> None:
    assert verdict_of(leak_checks(validation("warn", 3), "reject")) == "hold"


# In a project


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("policy", ["warn", "reject"])
def test_pictures_of_the_test_that_were_trained_on_hold_the_gate(trained: Path, policy: str) -> None:
    from tasks import compare, validate

    change_params(trained / "params.yaml", {"validate.rules.leak": policy})
    manifest = pd.read_parquet(paths.MANIFEST)
    tested = manifest[manifest["split"] == "test"].head(3)
    copies = []
    for number, row in enumerate(tested.to_dict("records")):
        copy = Path(row["path"]).with_name(f"copy{number}.png")
        copy.write_bytes(Path(row["path"]).read_bytes() + b"\0")  # the same picture in other bytes
        copies.append({**row, "path": copy.as_posix(), "sha256": sha256_of_file(copy), "split": "train"})
    pd.concat([manifest, pd.DataFrame(copies)], ignore_index=True).to_parquet(paths.MANIFEST)
    validate.main()
    comparison = compare.compare()
    reasons = [check.reason for check in comparison.checks if check.name == "leak"]
    assert comparison.verdict != "pass" or not reasons
    assert len(reasons) == (policy == "warn")
    assert not reasons or "leak: 3 examples that were trained on" in reasons[0]


@pytest.mark.usefixtures("no_processes")
def test_the_comparison_tells_of_darker_pictures(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A champion, then many darker pictures: warned of on the page, in the record and in the evidence."""
    from tasks import compare
    from tasks.promote import promote
    from tasks.register import register_candidate

    candidate = register_candidate().version
    promote(candidate.version, "first", is_forced=True)
    again = compare.compare()
    assert again.shift is not None
    assert (again.shift.num_new, again.shift.remarks[0][:1]) == (0, "0")
    assert "training examples are new" in paths.COMPARISON_REPORT.read_text()

    accepted, features = pd.read_parquet(paths.ACCEPTED), read_features(paths.FEATURES)
    train = accepted[accepted["split"] == "train"]
    fresh = [f"{number:064x}" for number in range(len(train))]
    darker = train.assign(brightness=train["brightness"] / 2, sha256=fresh)
    pd.concat([accepted, darker], ignore_index=True).to_parquet(paths.ACCEPTED)
    rows = np.concatenate([features.rows, features.rows + np.float16(1)])
    publish_features(paths.FEATURES, Features(features.source, (*features.sha256s, *fresh), rows))
    change_params(trained / "params.yaml", {"gate.shift.policy": "hold"})
    comparison = compare.compare()
    (check,) = (check for check in comparison.checks if check.name == "shift")
    assert check.verdict == "hold"
    assert "brightness of new examples" in check.reason
    assert "features, which tell new examples from old ones" in check.reason
    page = paths.COMPARISON_REPORT.read_text()
    assert re.search(r'<td class="bad">brightness</td><td>\d+\.\d\d', page)
    assert check.reason.split(":")[0] in paths.COMPARISON_SUMMARY.read_text()
    assert read_record(paths.COMPARISON, Comparison, WorkspaceError) == comparison

    monkeypatch.setattr(compare.versions, "profile_of", lambda *_: None)
    older = compare.compare()
    assert older.shift is not None
    assert "was registered before versions had a profile" in older.shift.remarks[0]
