"""What follows a decision: a command, a health check against a real `mlflow models serve`, and the way back."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from click.testing import CliRunner, Result

from flows.cli import main
from refit.gate.golden import Golden, GoldenExample, disagreement
from refit.params import load_params
from refit.registry import tracking
from tasks import promote

from .conftest import ROOT, change_params
from .servers import free_port, serving
from .services import environment, prefect_api
from .test_promote import candidate, champion, passing

__all__ = ["passing", "prefect_api"]

pytestmark = pytest.mark.usefixtures("no_processes")

PAGE = (ROOT / "docs/serving.md").read_text()


def restart(port: int) -> str:
    """The page's script, on a port of ours. The second release cannot be started there."""
    (script,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    stop, start = script.split("\n", 1)
    start = start.replace("mlflow models", f"{sys.executable} -m mlflow models").replace("5001", str(port))
    return f"{stop}\ntest $REFIT_MODEL_VERSION != 2 || exit 3\n{start}"


EXAMPLES = Golden(("cat", "dog"), (GoldenExample(b"x", "cat", (0.9, 0.1)), GoldenExample(b"y", "dog", (0.2, 0.8))))
RIGHT = [{"cat": 0.90001, "dog": 0.09999}, {"dog": 0.8, "cat": 0.2}]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (RIGHT, None),
        (RIGHT[:1], "1 answers to 2 golden examples"),
        (
            [RIGHT[0], {"dog": 0.6, "cat": 0.4}],
            "golden example 1 has 'cat' with probability 0.4000 instead of 0.2000: another",
        ),
        ([RIGHT[0], {"dog": float("nan"), "cat": 0.2}], "golden example 1 has 'dog'"),
        ([RIGHT[0], {"dog": 0.8, "cow": 0.2}], "it knows the labels cow, dog instead of cat, dog"),
    ],
)
def test_another_version_is_known_by_its_answers(answers: list[dict[str, float]], expected: str | None) -> None:
    found = disagreement(EXAMPLES, answers, 0.0001)
    assert found is None if expected is None else expected in str(found)


def decide(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def promoted(number: str) -> Result:
    return decide("promote", number, "--reason", "good", "--force", "--evidence", promote.review(number).digest)


def history() -> list[tuple[str, str | None, str]]:
    return [(entry.move.kind, entry.move.to_version, entry.move.reason) for entry in promote.past_decisions().entries]


@pytest.fixture
def port(passing: Path) -> Iterator[int]:
    """A free port; whatever was started there is stopped."""
    port = free_port()
    yield port
    if (passing / "server.pid").exists():
        os.killpg(int((passing / "server.pid").read_text()), signal.SIGKILL)


def test_the_champion_goes_into_service_and_one_that_does_not_is_taken_back(passing: Path, port: int) -> None:
    (passing / "restart.sh").write_text(restart(port))
    url = f"http://127.0.0.1:{port}"
    change_params(Path("params.yaml"), {"deploy.command": "sh restart.sh", "deploy.health_url": url})
    first = promoted(candidate(0.7))
    assert first.exit_code == 0, first.output
    assert "models:/pets/1 is in service" in first.stderr
    assert serves(url)
    second = promoted(candidate(0.8))
    assert second.exit_code == 16
    assert (
        "error: models:/pets/2 was taken back: `sh restart.sh` ended with 3. models:/pets/1 is the champion again, and "
        "in service" in second.stderr
    )
    assert serves(url)
    assert champion().version == "1"
    assert history()[-1] == (
        "rollback", "1", "automatic: models:/pets/2 was not in service: `sh restart.sh` ended with 3",
    )  # fmt: skip


def serves(url: str) -> bool:
    """Whether a request is answered by the first release."""
    settings = load_params().register
    golden = json.loads(tracking.read_file(settings, "models:/pets/1/refit/golden.json"))
    body = json.dumps({"inputs": {"image": [golden["images"][0]["content"]]}}).encode()
    with urlopen(Request(f"{url}/invocations", body, {"Content-Type": "application/json"}), timeout=60) as answer:
        (row,) = json.load(answer)["predictions"]
    said = dict(zip(golden["classes"], golden["images"][0]["probabilities"], strict=True))
    return bool(row["probabilities"] == pytest.approx(said, abs=1e-4))


def test_nobody_answers(passing: Path, port: int) -> None:
    """The command says that all is well; the health check finds nobody there, for the one before as well."""
    promoted(candidate(0.7))
    url = f"http://127.0.0.1:{port}"
    change_params(
        Path("params.yaml"), {"deploy.command": "echo $REFIT_MODEL_URI >> asked", "deploy.health_url": url,
                              "deploy.seconds": 1}
    )  # fmt: skip
    plan = decide("promote", candidate(0.8), "--reason", "x", "--force", "--dry-run")
    assert plan.exit_code == 0, plan.output
    assert not Path("asked").exists(), "nothing is deployed on trial"
    result = promoted("2")
    assert result.exit_code == 16
    assert f"models:/pets/2 was taken back: {url}: no answer" in result.stderr
    assert "models:/pets/1 is the champion again, but not in service either" in result.stderr
    assert Path("asked").read_text().split() == ["models:/pets/2", "models:/pets/1"]
    assert [entry[:2] for entry in history()] == [("promote", "1"), ("promote", "2"), ("rollback", "1")]
    assert "Traceback" not in result.output


def test_the_first_champion_has_no_way_back(passing: Path) -> None:
    change_params(Path("params.yaml"), {"deploy.command": "exit 7"})
    result = promoted(candidate(0.7))
    assert result.exit_code == 16
    assert (
        "models:/pets/1 is the champion, but not in service: `exit 7` ended with 7. No release was before"
        in result.stderr
    )
    change_params(Path("params.yaml"), {"deploy.command": "true"})
    again: Any = promoted("1")
    assert again.exit_code == 0, "the same command again finishes it"
    assert "models:/pets/1 is in service" in again.stderr


DEPLOYMENT = """
from pathlib import Path
from prefect import flow

@flow(name="serve")
def serve(model_uri: str, version: str):
    if version == "2":
        raise RuntimeError("no room for it")
    Path("served").write_text(model_uri)

if __name__ == "__main__":
    serve.serve(name="production")
"""


def test_a_prefect_deployment_puts_it_into_service(passing: Path, prefect_api: str, tmp_path: Path) -> None:
    """A real one, whose process runs beside; and one that is not there is named."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    change_params(Path("params.yaml"), {"deploy.deployment": "serve/production", "deploy.seconds": 120})
    (tmp_path / "production.py").write_text(DEPLOYMENT)
    env = environment(tmp_path, PREFECT_API_URL=prefect_api, PREFECT_RUNNER_POLL_FREQUENCY="1")
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        result = promoted(candidate(0.7))
        assert result.exit_code == 16
        assert "the Prefect server has no deployment 'serve/production'" in result.stderr
        is_there = f"{prefect_api}/deployments/name/serve/production"
        with serving([sys.executable, "production.py"], is_there, tmp_path, env):
            again = promoted("1")
            assert again.exit_code == 0, again.output
            assert (tmp_path / "served").read_text() == "models:/pets/1"
            second = promoted(candidate(0.8))
    assert second.exit_code == 16
    assert "models:/pets/2 was taken back: the run of serve/production is Failed" in second.stderr
    assert "no room for it" in second.stderr
    assert "models:/pets/1 is the champion again, and in service" in second.stderr
