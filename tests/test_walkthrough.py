"""The walk-through of docs/reviewers.md, word for word: accounts, a training, a decision, a prediction."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest

from .conftest import ROOT
from .servers import free_port
from .services import clone, environment, origin, run

__all__ = ["origin"]  # a fixture

DIGEST = "216ea2ddf8d7"
"""The page's example; a person types what `refit review` has shown."""


def commands(page: str, heading: str) -> list[str]:
    """What a section of a page tells to type, without the remarks."""
    section = (ROOT / page).read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    typed = re.findall(r"^\$ (.+)$", section, re.MULTILINE)
    return [re.sub(r"  +# .*$", "", line) for line in typed]


class Shell:
    """A shell that stays open, as a person's does."""

    def __init__(self, cwd: Path, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash"],
            cwd=cwd,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def type(self, command: str) -> tuple[int, str]:
        """Exit code and what is shown."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{command}\necho; echo done $?\n")
        stdin.flush()
        said: list[str] = []
        for line in stdout:
            if ended := re.fullmatch(r"done (\d+)\n", line):
                return int(ended[1]), "".join(said)
            said.append(line)
        raise AssertionError(f"the shell ended: {''.join(said)}")

    def close(self) -> None:
        """End it, and the server that it started."""
        self.type("kill %1; wait")
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture
def shell(origin: Path, tmp_path: Path) -> Iterator[Shell]:
    folder = clone(origin, tmp_path / "project")
    shutil.copy(ROOT / "params.yaml", folder)
    env = environment(tmp_path)
    changed = run("git", "status", "--porcelain", cwd=folder, env=env)
    if changed:
        run("git", "commit", "--quiet", "--all", "--message", "params as they are shipped", cwd=folder, env=env)
    opened = Shell(folder, {**env, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5", "PYTHONPATH": str(folder)})
    opened.type(f'refit() {{ {ROOT / ".venv/bin/python"} -m flows "$@"; }}')
    yield opened
    opened.close()


def test_the_walk_through_works_as_it_is_written(shell: Shell) -> None:
    """[With model and experiment of one name, as in params.yaml, the pipeline's account got 403 on `runs/create`.]"""
    from urllib.request import urlopen

    port, digest, shown = free_port(), "", {}
    for command in commands("docs/reviewers.md", "A walk-through"):
        typed = command.replace("5000", str(port)).replace(DIGEST, digest)
        if typed.startswith("mlflow server"):
            shell.type(f"{typed.removesuffix('&')} > server.log 2>&1 &")
            for _ in range(600):
                try:
                    urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except (URLError, OSError):
                    shell.type("sleep 0.5")
            continue
        status, said = shell.type(typed)
        assert status == 0, f"{typed}\n{said}"
        if typed.startswith("refit review"):
            (digest,) = set(re.findall(r"--evidence ([0-9a-f]{12})", said))
        shown[" ".join(typed.split()[:2])] = said
    assert "models:/digits/1 is the champion" in shown["refit promote"]
    assert "ann: the first one" in shown["refit history"]
    assert "trained by trainer" in shown["refit review"]
    assert "the code that ran is that of the commit" in shown["refit review"]
    assert "Gate        pass" in shown["refit retrain"]
    rows = [line for line in shown["refit predict"].splitlines() if ",3,0." in line]
    assert len(rows) > 150, shown["refit predict"][:2000]
