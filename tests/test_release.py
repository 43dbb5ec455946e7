"""From a training to a served champion and back to its commit, with the real parts, by the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from flows.reproduce import Measure, judge

from .conftest import change_params
from .pages import commands, filled
from .servers import free_port, serving
from .services import clone, dvc, environment, origin, refit, run

__all__ = ["origin"]  # a fixture

SEED_OF_ANOTHER = 18


@pytest.fixture(scope="module")
def story(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], dict[str, Any]]:
    """A clone in which a first candidate was trained and promoted and a second one waits; with what was said."""
    home = tmp_path_factory.mktemp("story")
    folder = clone(origin, home / "trainer")
    env = environment(home)
    dvc("remote", "add", "--default", "--local", "storage", str(home / "storage"), cwd=folder, env=env)
    said: dict[str, Any] = {"first": json_of("retrain", "--commit", "--json", cwd=folder, env=env)}
    digest = json_of("review", "1", "--json", cwd=folder, env=env)["digest"]
    said["promoted"] = json_of(
        "promote", "1", "--reason", "the first", "--evidence", digest, "--force", "--json", cwd=folder, env=env
    )
    change_params(folder / "params.yaml", {"seed": SEED_OF_ANOTHER, "gate.min_accuracy": 0.5})
    said["second"] = json_of("retrain", "--commit", "--json", cwd=folder, env=env)
    said["digest"] = json_of("review", "2", "--json", cwd=folder, env=env)["digest"]
    return folder, env, said


def json_of(*arguments: str, cwd: Path, env: dict[str, str], expected: int = 0) -> Any:
    """What a command prints on standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "flows", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_end_of_a_retraining_says_the_verdict_and_where_to_look(story: tuple[Path, Any, Any]) -> None:
    folder, _, said = story
    comparison = json.loads((folder / "reports" / "comparison.json").read_text())
    assert said["second"]["gate"] == {"verdict": comparison["verdict"], "reasons": comparison["reasons"]}
    page = (folder / said["second"]["page"]).read_text()
    assert f"refit promote 2 --evidence {said['digest'][:12]}" in page
    assert said["second"]["git_commit"] in page
    assert "clean: the code that ran is that of the commit" in page
    assert 'id="curves"' in page
    assert "VERSION" not in page


def test_the_candidate_was_compared_with_the_champion_by_its_own_code(story: tuple[Path, Any, Any]) -> None:
    folder, env, said = story
    comparison = json.loads((folder / "reports" / "comparison.json").read_text())
    assert comparison["champion"]["uri"] == "models:/digits/1"
    assert comparison["champion"]["weights_sha256"] != comparison["candidate"]["weights_sha256"]
    assert set(comparison["overall"]) == {"candidate", "champion"}
    first = said["first"]["overall"]["accuracy"]["value"]
    assert comparison["overall"]["champion"]["accuracy"]["value"] == pytest.approx(first), "as it was measured then"
    assert comparison["changes"]["params"] == {"gate.min_accuracy": [0.8, 0.5], "seed": [17, SEED_OF_ANOTHER]}
    assert comparison["changes"]["data"]["added"]["count"] == 0
    shown = refit("review", "2", cwd=folder, env=env)
    assert "## The candidate" in shown
    assert f"refit reject 2 --evidence {said['digest'][:12]}" in shown
    assert "trained by" in shown


def test_a_script_must_name_the_evidence_that_it_saw(story: tuple[Path, dict[str, str], dict[str, Any]]) -> None:
    folder, env, said = story
    shown = refit("promote", "2", "--reason", "x", cwd=folder, env=env, expected=14)
    assert f"decide with --evidence {said['digest'][:12]}" in shown
    assert "this registry has no accounts" in shown
    assert "Traceback" not in shown
    refit("promote", "2", "--reason", "x", "--evidence", "0" * 12, cwd=folder, env=env, expected=14)
    refit("promote", "99", "--reason", "x", "--evidence", "0" * 12, cwd=folder, env=env, expected=7)
    shown = refit("history", cwd=folder, env=env)
    assert "none -> 1  models:/digits-candidates/1" in shown
    assert "Champion  models:/digits/1" in shown


def test_what_differs_between_two_versions(story: tuple[Path, dict[str, str], dict[str, Any]]) -> None:
    folder, env, _ = story
    found = json_of("diff", "champion", "candidate", "--json", cwd=folder, env=env)
    assert (found["first"], found["second"]) == ("models:/digits/1", "models:/digits-candidates/2")
    assert found["params"]["seed"] == [17, SEED_OF_ANOTHER]
    assert {"data_digest", "base_sha256", "split_digest"} <= set(found["same"])
    assert "weights_sha256" not in found["same"]
    assert set(found["per_class"]) == set("0123456789")
    shown = refit("diff", "1", "2", cwd=folder, env=env)
    assert f"| seed | 17 | {SEED_OF_ANOTHER} |" in shown
    assert "0 added, 0 removed" in shown
    assert "is no version" in refit("diff", "1", "x", cwd=folder, env=env, expected=7)


def test_a_released_version_is_made_again_bit_for_bit_from_the_registry_alone(
    story: tuple[Path, dict[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    """In a clone that has the code and the address of the registry, and nothing else."""
    folder, env, _ = story
    other = clone(folder, tmp_path / "other")
    dvc("remote", "add", "--default", "--local", "storage", str(folder.parent / "storage"), cwd=other, env=env)
    env = env | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    shown = refit("reproduce", "champion", cwd=other, env=env)
    assert "environment: the same class, equal bits are promised" in shown
    assert "dvc pull" in shown
    assert "IDENTICAL  models:/digits/1" in shown
    assert not (other / "models" / "model.safetensors").exists(), "it works in a folder of its own"


def test_a_version_whose_code_does_something_else_is_found_out(
    story: tuple[Path, dict[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    """The outcome is judged from the digests and measures of what was trained again."""
    same = {"accuracy": Measure(there=0.9, here=0.905, within=0.01)}
    worse = {"accuracy": Measure(there=0.9, here=0.88, within=0.01)}
    assert judge({}, same) == "identical"
    assert judge({"weights_sha256": ["a", "b"]}, same) == "equivalent"
    assert judge({"weights_sha256": ["a", "b"]}, worse) == "different"
    assert judge({"data_digest": ["a", "b"]}, same) == "different"
    folder, env, _ = story
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(folder / name, bare)
    run("git", "init", "--quiet", cwd=bare, env=env)
    env = env | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": str(folder)}
    said = refit("reproduce", "1", cwd=bare, env=env, expected=8)
    assert "is not in this repository; `git fetch`" in said


CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=3000"
).split()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_the_reviewers_page_in_a_browser(story: tuple[Path, Any, Any], tmp_path: Path) -> None:
    page = (story[0] / "reports" / "comparison.html").absolute()
    shown = subprocess.run(
        ["chromium", *CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    for expected in (
        'id="reasons"',
        'id="overall"',
        'id="classes"',
        'id="changes"',
        'id="params"',
        "<circle",
        "To decide",
    ):
        assert expected in shown, expected
    assert "models:/digits/1" in shown
    assert "The champion gets these right" in shown
    assert "<script" not in shown
    text = page.read_text()
    assert "http" not in text.replace("http://www.w3.org", ""), "loads nothing from elsewhere"
    picture = tmp_path / "page.png"
    subprocess.run(
        ["chromium", *CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,2600",
         f"--screenshot={picture}", page.as_uri()],
        capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    from PIL import Image

    with Image.open(picture) as image:
        assert image.size == (1100, 2600)
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50, "not blank"


def test_the_champion_is_served_as_the_page_says(
    story: tuple[Path, dict[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    """docs/serving.md, command by command, beside modules of the user's with Refit's old names."""
    folder, env, _ = story
    image = "data/sample/3/0003.png"
    here = json_of(
        "predict", image, "--model", "models:/digits@champion", "--json", "--probabilities", cwd=folder, env=env
    )[0]
    assert here["label"] in set("0123456789")
    for name in ("tasks", "refit", "flows"):
        (tmp_path / f"{name}.py").write_text("OWNER = 'user'\n")
    port = free_port()
    settings, start, set_image, *requests = [
        filled(
            line, {"http://<mlflow>": f"sqlite:///{folder}/mlflow.db", "5001": str(port), "data/": f"{folder}/data/"}
        )
        for line in commands("docs/serving.md")
        if not line.startswith(("openssl", "export REFIT_SIGNING_KEY", "model_signing"))  # tests/test_verification.py
    ]
    env = env | {"PYTHONPATH": str(tmp_path)}
    with serving(
        ["bash", "-c", f"{settings}; exec {start} --workers 1"], f"http://127.0.0.1:{port}/ping", tmp_path, env
    ):
        said = run(
            "bash", "-ec", "\n".join([set_image, *(f"{line} -w '\n'" for line in requests)]), cwd=tmp_path, env=env
        )
        *answers, refusal = [json.loads(line) for line in said.splitlines()]
        for status, body in BAD_REQUESTS:
            refused = ask(port, body)
            assert refused[0] == status, body
            for place in (str(folder), sys.prefix, "site-packages", "Traceback"):
                assert place not in refused[1], f"a path of the server: {refused[1]}"
            assert len(refused[1]) < 2000, "the request does not come back"
    assert refusal["message"] == "example 0: not an image (text)"
    assert [len(answer["predictions"]) for answer in answers] == [2, 1, 1, 1]
    for there in (row for answer in answers for row in answer["predictions"]):
        assert there["label"] == here["label"]
        assert there["probability"] == pytest.approx(here["probability"])
        assert there["probabilities"] == pytest.approx(here["probabilities"])


BAD_REQUESTS = [
    (400, {"inputs": {"image": ["abc!" * 5000]}}),
    (400, {"inputs": {"image": [[[1, 2], [3, 4000]]]}}),
    (400, {"inputs": {"image": [[[0.5]]]}}),
    (400, {"inputs": {"image": [None]}}),
    (400, {"instances": [{"image": "bm90IGEgcGljdHVyZQ=="}]}),
    (400, {"instances": [{"image": [[1, 2], [3, 4]]}, {"image": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}]}),
    (400, {"dataframe_records": [{"image": 3}]}),
    (400, {"dataframe_records": [{"picture": "eA=="}]}),
    (400, {"dataframe_split": {"columns": ["image"], "data": [[[[1, 2], [3]]]]}}),
    (400, {"pictures": []}),
    (400, []),
    (200, {"inputs": {"image": []}}),
]


def ask(port: int, body: Any) -> tuple[int, str]:
    """Status and text of the answer."""
    content = json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{port}/invocations", content, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_the_second_is_promoted_and_taken_back(story: tuple[Path, dict[str, str], dict[str, Any]]) -> None:
    """Last in this file: it moves the champion. The reviewer's code has changed meanwhile."""
    folder, env, said = story
    code = folder / "refit/modality/image/examples.py"
    code.write_text(code.read_text() + "\nOF_THE_SECOND = True\n")
    words = ("promote", "2", "--reason", "as good", "--evidence", said["digest"], "--force")
    plan = json_of(*words, "--dry-run", "--json", cwd=folder, env=env)
    assert plan["is_dry_run"]
    assert plan["from_version"] == "1"
    assert "is the champion (before: 1)" in refit(*words, cwd=folder, env=env)
    assert "is the champion already" in refit(*words, cwd=folder, env=env)
    assert "models:/digits/1 is the champion (before: 2)" in refit(
        "rollback", "--reason", "not as good", cwd=folder, env=env
    )
    found = json_of("history", "--json", cwd=folder, env=env)
    assert [entry["move"]["kind"] for entry in found["entries"]] == ["promote", "promote", "rollback"]
    assert (found["champion"], found["previous"]) == ("models:/digits/1", "models:/digits/2")


BOTH = """
import sys, mlflow, tasks, refit
models = [mlflow.pyfunc.load_model(f"models:/digits/{number}") for number in (1, 2)]
for model in models:
    served = model.unwrap_python_model()
    package = type(served).__module__.split(".")[0]
    examples = type(served)._table.__globals__["modality"].examples("image")
    label = model.predict({"image": [open(sys.argv[1], "rb").read()]})["label"][0]
    print(package, hasattr(examples, "OF_THE_SECOND"), label, tasks.OWNER, refit.OWNER)
"""


def test_two_releases_answer_in_one_process_each_with_its_own_code(
    story: tuple[Path, dict[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    folder, env, _ = story
    for name in ("tasks", "refit"):
        (tmp_path / f"{name}.py").write_text("OWNER = 'user'\n")
    env = env | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", BOTH, str(folder / "data/sample/3/0003.png")], cwd=tmp_path, env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = [line.split() for line in done.stdout.splitlines()]
    assert first[0] != second[0]
    assert (first[1], second[1]) == ("False", "True"), "each has its own code"
    assert first[2:] == second[2:] == ["3", "user", "user"]
