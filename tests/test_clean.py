"""`refit clean`: what goes, what stays, and that everything that stays can be had again from the remotes alone."""

import json
import os
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.clean import survey
from flows.cli import main
from flows.tools import commits, objects
from refit.gate.decide import Check, Decision
from refit.params import load_params
from refit.registry import retention, tracking
from refit.registry.records import Version
from tasks import compare as comparing
from tasks import promote

from .conftest import commit_all
from .services import dvc, environment, run
from .test_promote import Killed, candidate, champion, copied
from .test_tracking import client

DAYS_OLD = 3


def version(number: int, aliases: tuple[str, ...] = (), name: str = "pets-candidates", **tags: str) -> Version:
    return Version(name, str(number), f"run-{number}", tags, aliases)


def test_the_newest_what_has_an_alias_and_what_was_released_stays() -> None:
    candidates = [version(9), version(10, ("candidate",)), version(2), version(1), version(3)]
    releases = [version(1, name="pets", **{"refit.candidate": "models:/pets-candidates/2"})]
    assert retention.reasons(candidates, releases, 2) == {
        "10": "candidate", "9": "one of the newest 2", "2": "released as models:/pets/1",
    }  # fmt: skip


def test_a_version_that_was_made_outside_of_git_needs_no_commit(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tuple(retention.Kept(f"models:/pets/{commit}", commit, "a release") for commit in ("none", "unknown", ""))
    monkeypatch.setattr(retention, "survey", lambda *_arguments: retention.Survey(kept, (), ()))
    monkeypatch.setattr(commits, "run_branches", lambda: [])
    monkeypatch.setattr(commits, "tips", lambda: {"f" * 40})
    asked: list[set[str]] = []
    monkeypatch.setattr(objects, "unused", lambda needed, _is_cloud: asked.append(needed) or ())
    assert survey(1, is_cloud=False).kept == kept
    assert asked == [{"f" * 40}]


@pytest.fixture
def story(trained: Path, monkeypatch: pytest.MonkeyPatch, no_processes: None) -> dict[str, str]:
    """Five candidates, each of data of its own on a branch of its own; 1 and 3 were released, then 1 again. By number:
    what their data says."""
    passing = Decision("pass", (Check("accuracy", "pass", "fine", 0.0),), None)
    monkeypatch.setattr(comparing, "decide", lambda *_arguments: passing)
    env = environment(trained.parent)
    (trained / ".dvc" / "config").unlink()
    commit_all(trained, monkeypatch, "params.yaml", "dvc.yaml", "dvc.lock")
    run("git", "init", "--quiet", "--bare", str(trained.parent / "origin.git"), cwd=trained, env=env)
    run("git", "remote", "add", "origin", str(trained.parent / "origin.git"), cwd=trained, env=env)
    dvc("init", "--quiet", "--force", cwd=trained, env=env)
    (trained / "dvc.yaml").write_text("stages: {}\n")
    dvc("remote", "add", "--quiet", "--default", "storage", str(trained.parent / "storage"), cwd=trained, env=env)
    from dvc.repo import Repo

    said = {}
    for number in range(1, 6):
        photos = trained / "photos"
        photos.mkdir(exist_ok=True)
        (photos / "same.txt").write_text("of all")
        (photos / "own.txt").write_text(f"of {number}")
        with Repo() as repo:
            repo.add("photos")
            repo.push()
        run("git", "checkout", "--quiet", "-B", f"retrain/{number}", cwd=trained, env=env)
        run("git", "add", "photos.dvc", ".gitignore", ".dvc", "dvc.yaml", cwd=trained, env=env)
        run("git", "commit", "--quiet", "--message", str(number), cwd=trained, env=env)
        run("git", "push", "--quiet", "origin", f"retrain/{number}", cwd=trained, env=env)
        assert candidate(number / 10) == str(number)
        said[str(number)] = f"of {number}"
        if number in (1, 3):
            promote.promote(str(number), "good")
    promote.rollback("1", "was better")
    run("git", "checkout", "--quiet", "--detach", cwd=trained, env=env)
    for number in range(1, 6):
        run("git", "branch", "--quiet", "-D", f"retrain/{number}", cwd=trained, env=env)
    (trained / ".refit" / "cache" / "decoded-old").mkdir(parents=True)
    (trained / ".refit" / "cache" / "decoded-old" / "rows.bin").write_bytes(b"x" * 1000)
    grow_old(trained)
    return said


def grow_old(project: Path) -> None:
    """All objects were written days ago."""
    then = time.time() - DAYS_OLD * 24 * 3600
    for folder in (project / ".dvc" / "cache", project.parent / "storage"):
        for file in folder.rglob("*"):
            os.utime(file, (then, then))


def clean(*arguments: str) -> Any:
    result = CliRunner().invoke(main, ["clean", "--keep", "1", "--cloud", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_what_is_kept_can_be_had_again_from_the_remotes_alone_and_the_rest_is_gone(
    story: dict[str, str], trained: Path
) -> None:
    for file in (trained.parent / "storage").rglob("*"):
        os.utime(file)
    assert clean("--dry-run")["data"]["remote"]["objects"] == 0, "younger than a day"
    tag = ("pets-candidates", "5", "refit.git_commit")
    commit = client().get_model_version(*tag[:2]).tags[tag[2]]
    client().set_model_version_tag(*tag, "0" * 40)
    result = CliRunner().invoke(main, ["clean", "--keep", "1"])
    assert result.exit_code == 8
    assert "nothing was removed: models:/pets-candidates/5 stays, and this repository lacks its commit" in result.stderr
    assert len(client().search_model_versions("name='pets-candidates'")) == 5
    client().set_model_version_tag(*tag, commit)
    grow_old(trained)

    # What is kept can be had again, and the rest is gone.
    env = environment(trained.parent)
    storage = trained.parent / "storage"
    before = sorted(storage.rglob("*"))
    plan = clean("--dry-run")
    assert [one["uri"] for one in plan["registry"]["versions"]] == [f"models:/pets-candidates/{n}" for n in (2, 4)]
    assert plan["branches"] == ["retrain/4", "retrain/2"]
    assert plan["data"]["remote"] == {"objects": 4, "bytes": plan["data"]["cache"]["bytes"]}, "a list and a file each"
    assert plan["bytes"] > 2_000_000, "two models, their runs, and data"
    assert sorted(storage.rglob("*")) == before
    assert len(client().search_model_versions("name='pets-candidates'")) == 5
    weights = list((trained / "mlruns").rglob("model.safetensors"))

    done = clean()
    assert done["registry"] == plan["registry"]
    assert done["bytes"] == plan["bytes"]
    left = {str(found.version) for found in client().search_model_versions("name='pets-candidates'")}
    assert left == {"1", "3", "5"}
    assert len(list((trained / "mlruns").rglob("model.safetensors"))) == len(weights) - 2, "the files too"
    assert (champion().version, len(promote.past_decisions().entries)) == ("1", 3)
    for number in ("1", "3", "5"):
        commit = client().get_model_version("pets-candidates", number).tags["refit.git_commit"]
        clone = trained.parent / f"clone-{number}"
        run("git", "clone", "--quiet", str(trained.parent / "origin.git"), str(clone), cwd=trained.parent, env=env)
        run("git", "checkout", "--quiet", commit, cwd=clone, env=env)
        dvc("pull", cwd=clone, env=env)
        assert (clone / "photos" / "own.txt").read_text() == story[number]
        assert (clone / "photos" / "same.txt").read_text() == "of all"
        case = promote.review(number)
        assert case.bundle.git.commit == commit, "its evidence too"
    assert not (trained / ".refit" / "cache" / "decoded-old").exists()
    again = clean()
    assert (again["registry"]["versions"], again["branches"], again["bytes"]) == ([], [], 0)


def test_a_cleaning_that_was_killed_is_finished_by_repeating_it_and_takes_nothing_from_others(
    committed: Path, no_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that deletes in turn, before and after it took effect."""
    from mlflow.entities import ViewType
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking import MlflowClient

    for mark in (0.1, 0.2, 0.3):
        candidate(mark)
    settings = load_params().register
    home = client().get_experiment_by_name(settings.experiment).experiment_id
    abandoned = client().create_run(home, start_time=1).info.run_id
    client().set_terminated(abandoned)
    others = client().create_experiment("of somebody else")
    their_run = client().create_run(others).info.run_id
    their_model = client().create_logged_model(others, name="theirs").model_id
    for delete, name in ((client().delete_run, their_run), (client().delete_logged_model, their_model)):
        delete(name)
    client().delete_experiment(others)
    deletions = (
        *((MlflowClient, name) for name in ("delete_logged_model", "delete_run", "delete_model_version")),
        *((SqlAlchemyStore, name) for name in ("_hard_delete_logged_model", "_hard_delete_run")),
    )

    def clean_here(number: int, took_effect: bool) -> int:
        """How many calls there were; the process was killed at one of them."""
        calls = 0

        def wrapped(original: Any) -> Any:
            def call(*arguments: Any) -> None:
                nonlocal calls
                calls += 1
                if calls != number or took_effect:
                    original(*arguments)
                if calls == number:
                    raise Killed

            return call

        with monkeypatch.context() as patch, suppress(Killed):
            for owner, name in deletions:
                patch.setattr(owner, name, wrapped(getattr(owner, name)))
            retention.remove(settings, retention.survey(settings, keep=2))
        return calls

    copied(committed, "counted")
    num_calls = clean_here(0, took_effect=True)
    assert num_calls == 7, "a version with a run and a model, and another run: marked, freed"
    for number, took_effect in product(range(1, num_calls + 1), (False, True)):
        copied(committed, f"{number}-{took_effect}")
        clean_here(number, took_effect)
        found = retention.survey(settings, keep=2)
        assert retention.remove(settings, found)
        left = client().search_model_versions("name='pets-candidates'")
        assert {str(one.version) for one in left} == {"2", "3"}, number
        assert len(client().search_runs([home], run_view_type=ViewType.ALL)) == 2, number
        assert len(list(Path("mlruns").rglob("model.safetensors"))) == 2, number
        store = SqlAlchemyStore(tracking.tracking_uri(settings), "mlruns")
        assert store._get_deleted_logged_models() == [their_model]
        assert client().get_run(their_run).info.lifecycle_stage == "deleted"
        assert retention.survey(settings, keep=2).runs == ()


def test_on_a_server_files_are_not_gone(committed: Path, no_processes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for mark in (0.1, 0.2):
        candidate(mark)
    settings = load_params().register
    run = client().create_run(client().get_experiment_by_name(settings.experiment).experiment_id, start_time=1)
    client().set_terminated(run.info.run_id)
    monkeypatch.setattr(retention, "database_of", lambda _uri: None)
    found = retention.survey(settings, keep=2)
    assert (found.versions, found.runs) == ((), (run.info.run_id,))
    assert not retention.remove(settings, found)
    assert retention.remove(settings, retention.survey(settings, keep=2)), "nothing was left to go"
