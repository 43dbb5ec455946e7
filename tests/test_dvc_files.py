"""A damaged file of DVC is named, with its line and the way out, whatever the command."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.tools import pipeline
from refit.errors import WorkspaceError

from .conftest import ROOT
from .services import environment, refit
from .test_cli import call, here, stage

__all__ = ["here", "stage"]  # fixtures

LOCK = """\
schema: '2.0'
stages:
  work:
    cmd: echo a > out
    outs:
    - path: out
      md5: 60b725f10c9c85c70d97880dfe8191b3
"""
CONFLICT = "<<<<<<< HEAD\n  a: 1\n=======\n  b: 2\n>>>>>>> theirs\n"

DAMAGES = [
    ("dvc.lock", LOCK + CONFLICT, "dvc.lock, line 8, is damaged: a merge conflict was left in it; `git checkout HEAD"),
    ("dvc.lock", "a: [1\nb", "dvc.lock, line 2, is damaged: no YAML ("),
    ("dvc.lock", LOCK[:60], "dvc.lock, line 5, is damaged: no YAML"),
    ("dvc.lock", "schema: '3.0'\nstages: {}\n", "dvc.lock is damaged: invalid schema version at schema"),
    ("dvc.lock", "schema: '2.0'\nstages:\n  work: 3\n", "line 3, is damaged: expected a dictionary at stages.work"),
    ("dvc.lock", LOCK.replace("60b", "- 60b"), "dvc.lock, line 7, is damaged: "),
    ("dvc.lock", "hello\n", "dvc.lock is damaged: expected a dictionary"),
    ("dvc.lock", "", "dvc.lock is damaged: required key not provided at schema; `git checkout HEAD dvc.lock` brings"),
    ("dvc.lock", "\udcff\udcfe", "dvc.lock is damaged: it is not utf-8"),
    ("dvc.yaml", "stages: 3\n", "dvc.yaml is damaged: expected a dictionary at stages"),
    ("dvc.yaml", CONFLICT, "dvc.yaml, line 1, is damaged: a merge conflict was left in it"),
    ("data/x.dvc", "outs:\n" + CONFLICT, "data/x.dvc, line 2, is damaged: a merge conflict was left in it"),
    ("data/x.dvc", "outs: 3\n", "data/x.dvc is damaged: expected a list at outs; `git checkout HEAD data/x"),
]


@pytest.fixture
def damaged(request: pytest.FixtureRequest, here: Path, stage: Callable[[str], None]) -> str:
    """A project with that damage; what is said of it."""
    stage("echo a > out")
    file, content, expected = request.param
    (here / file).parent.mkdir(exist_ok=True)
    (here / file).write_bytes(content.encode(errors="surrogateescape"))
    return expected


@pytest.mark.parametrize("damaged", DAMAGES, indirect=True, ids=lambda case: f"{case[0]}: {case[2][-20:]}")
def test_a_damaged_file_is_named_with_its_line_and_the_way_out(damaged: str) -> None:
    for command in ("status", "validate"):
        result = call(command)
        assert (result.exit_code, result.stderr.count("\n")) == (8, 1), result.output
        assert damaged in result.stderr
    acts: list[Callable[[], object]] = [pipeline.is_known]
    if not damaged.startswith("data/"):  # which a single stage does not read
        acts.append(lambda: pipeline.reproduce("work", lambda line: None))
    for act in acts:
        with pytest.raises(WorkspaceError) as caught:
            act()
        assert damaged in str(caught.value)


@pytest.mark.parametrize("damaged", [DAMAGES[0], DAMAGES[-1]], indirect=True, ids=["dvc.lock", "data/x.dvc"])
def test_the_whole_flow_says_it_before_it_starts(damaged: str, here: Path, tmp_path: Path) -> None:
    (here / "data" / "digits").mkdir(parents=True)
    said = refit("retrain", cwd=here, env=environment(tmp_path, PYTHONPATH=str(ROOT)), expected=8)
    assert damaged in said
    assert len(said.splitlines()) == 1


def test_a_lock_may_be_deleted_as_it_is_said(stage: Callable[[str], None], here: Path) -> None:
    stage("echo a > out")
    (here / "dvc.lock").write_text(LOCK + CONFLICT)
    with pytest.raises(WorkspaceError, match=r"dvc\.lock.*without it \(delete it\) all stages run again"):
        pipeline.require_readable()
    (here / "dvc.lock").unlink()
    assert pipeline.reproduce("work", lambda line: None)
