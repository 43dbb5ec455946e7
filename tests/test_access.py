"""Rights, against a real MLflow server with accounts: who trains cannot release, and who releases leaves a trace."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from refit.errors import ParamsError, TrackingError, WorkspaceError
from refit.gate.decide import Check, Decision
from refit.params import Register, load_params
from refit.registry import access, releases, tracking
from tasks import compare as comparing
from tasks import promote
from tasks.register import register_candidate

from .attack import attack
from .servers import free_port, mlflow_command, serving
from .test_tracking import client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(address, password of admin) of a server with accounts, configured as `refit access init` says."""
    home, port = tmp_path_factory.mktemp("accounts"), free_port()
    said = access.write_server_configuration(str(home / "server"))
    assert "mlflow server --app-name basic-auth" in said
    secrets = dict(line.split("=", 1) for line in (home / "server" / "server.env").read_text().splitlines())
    assert secrets["MLFLOW_AUTH_ADMIN_PASSWORD"] not in said
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    settings = {**kept, **secrets, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [*mlflow_command(port, home), "--app-name", "basic-auth"]
    with serving(command, f"http://127.0.0.1:{port}/health", home, settings):
        yield f"http://127.0.0.1:{port}", secrets["MLFLOW_AUTH_ADMIN_PASSWORD"]


class People:
    """Logging in as one of the accounts."""

    def __init__(self, address: str, passwords: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.address, self.passwords, self._monkeypatch = address, passwords, monkeypatch

    def become(self, name: str) -> None:
        self._monkeypatch.setenv("MLFLOW_TRACKING_URI", self.address)
        self._monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        self._monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", self.passwords[name])


@pytest.fixture
def people(server: tuple[str, str], committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> People:
    """Accounts of all roles, made by the set-up command."""
    found = People(server[0], {"admin": server[1]}, monkeypatch)
    found.become("admin")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    roles = {"pipeline": ["trainer"], "reviewer": ["ann", "ben"], "reader": ["serving"]}
    with pytest.raises(ParamsError, match="trainer, ann, ben, serving must be made first"):
        access.grant(roles, None)
    file = tmp_path / "passwords.txt"
    made = access.grant(roles, str(file))
    assert made.created == ("ann", "ben", "serving", "trainer")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found.passwords |= dict(line.split() for line in file.read_text().splitlines())
    assert len(set(found.passwords.values())) == 5
    assert access.grant(roles, None).created == (), "again, nothing is made anew"
    with pytest.raises(WorkspaceError, match="is there already"):
        access.grant({"reader": ["another"]}, str(file))
    return found


def refused(act: Any) -> str:
    with pytest.raises(TrackingError) as caught:
        act()
    assert not caught.value.retryable
    assert "403" in str(caught.value) or "PERMISSION_DENIED" in str(caught.value), caught.value
    return str(caught.value)


def put(url: str, name: str, password: str) -> int:
    """The answer to an attempt to overwrite a stored file."""
    import base64

    token = base64.b64encode(f"{name}:{password}".encode()).decode()
    request = Request(url, b"other bytes", {"Authorization": f"Basic {token}"}, method="PUT")
    try:
        with urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def stored_at(people: People, source: str) -> str:
    """The address under which the server keeps a model's weights."""
    logged = client().get_logged_model(source.removeprefix("models:/"))
    place = logged.artifact_location.removeprefix("mlflow-artifacts:").lstrip("/")
    return f"{people.address}/api/2.0/mlflow-artifacts/artifacts/{place}/artifacts/model.safetensors"


def state_of_release(settings: Register, source: str, experiment: str) -> list[object]:
    """All that the server keeps of it, and who may do what to it."""
    with tracking.connected(settings) as mlflow:
        logged = mlflow.get_logged_model(source.removeprefix("models:/"))
        return [
            dict(mlflow.get_registered_model("pets")),
            [dict(version) for version in mlflow.search_model_versions("name='pets'")],
            logged.to_dictionary(),
            dict(mlflow.get_experiment(experiment)),
            tracking.stored_files("models:/pets@champion"),
        ]


@pytest.mark.usefixtures("no_processes")
def test_who_trains_proposes_and_who_reviews_decides(
    people: People, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The whole story on one server: one start of it is slow."""
    settings = load_params().register
    passing = Decision("pass", (Check("accuracy", "pass", "fine", 0.0),), None)
    monkeypatch.setattr(comparing, "decide", lambda *_arguments: passing)
    people.become("trainer")
    from tasks.compare import compare

    compare()
    version = register_candidate().version
    assert version.uri == "models:/pets-candidates/1"
    assert access.rights_are_enforced(settings)
    assert access.rights_note(settings) == ""
    refused(lambda: promote.promote("1", "I trained it, it is good"))
    assert tracking.version_with_alias(settings, "champion") is None

    people.become("serving")
    refused(lambda: promote.promote("1", "x"))
    people.become("ann")
    result = promote.promote("1", "looks right on the hard ones")
    assert (result.to, result.who) == ("models:/pets/1", "ann")
    champion = tracking.version_with_alias(settings, "champion")
    assert champion is not None

    people.become("trainer")

    def connected(act: Any) -> Any:
        def attempt() -> None:
            with tracking.connected(settings) as mlflow:
                act(mlflow)

        return attempt

    source = champion.source
    model_id = source.removeprefix("models:/")
    experiment = client().get_experiment_by_name("pets-releases").experiment_id
    attempts = {
        "move the champion": lambda mlflow: mlflow.set_registered_model_alias("pets", "champion", "1"),
        "delete the alias": lambda mlflow: mlflow.delete_registered_model_alias("pets", "champion"),
        "make a release": lambda mlflow: mlflow.create_model_version("pets", source, model_id=model_id),
        "rewrite the history": lambda mlflow: mlflow.set_registered_model_tag("pets", "refit.move.x", "{}"),
        "retag a release": lambda mlflow: mlflow.set_model_version_tag("pets", "1", "refit.evidence", "0"),
        "delete a release": lambda mlflow: mlflow.delete_model_version("pets", "1"),
        "log into the releases": lambda mlflow: mlflow.create_logged_model(experiment, name="mine"),
        "upload to a release": lambda mlflow: mlflow.log_model_artifacts(model_id, str(tmp_path / "upload")),
    }
    (tmp_path / "upload").mkdir()
    (tmp_path / "upload" / "model.safetensors").write_text("other bytes")
    for act in attempts.values():
        refused(connected(act))
    released = stored_at(people, source)
    assert put(released, "trainer", people.passwords["trainer"]) == 403
    assert put(released, "serving", people.passwords["serving"]) == 403
    own = stored_at(people, version.source)
    assert put(own, "trainer", people.passwords["trainer"]) == 200, "its own candidate it may spoil ..."

    people.become("serving")
    with tracking.connected(settings):
        files = tracking.stored_files("models:/pets@champion")
    assert files["artifacts/model.safetensors"] == champion.tags["refit.weights_sha256"], "... the release stays"
    for act in attempts.values():
        refused(connected(act))

    people.become("admin")
    before = state_of_release(settings, source, experiment)
    asked = {
        "name": "pets", "new_name": "taken", "version": "1", "alias": "champion", "description": "other",
        "key": "refit.evidence", "value": "0", "tag_key": "refit.evidence", "tags": [{"key": "a", "value": "b"}],
        "stage": "Archived", "archive_existing_versions": True, "source": version.source, "run_id": version.run_id,
        "experiment_id": experiment, "experiment_ids": [experiment], "model_id": model_id,
        "models": [{"model_id": model_id, "step": 0}], "params": [{"key": "a", "value": "b"}],
        "permission": "MANAGE", "resource_type": "registered_model", "resource_pattern": "pets", "resource_id": "pets",
        "password": "as long as it takes", "is_admin": True, "role_id": 1, "role_name": "all",
        "artifact_path": released.partition("/artifacts/")[2],
    }  # fmt: skip
    for name in ("trainer", "serving"):
        answers = attack(people.address, name, people.passwords[name], "ann", asked)
        assert answers[403] > 600, answers
        assert state_of_release(settings, source, experiment) == before
        people.become(name)
        for act in attempts.values():
            refused(connected(act))
        people.become("admin")

    people.become("ben")
    moves = promote.past_decisions().entries
    assert [(entry.move.who, entry.move.reason, entry.note) for entry in moves] == [
        ("ann", "looks right on the hard ones", "")
    ]
    assert releases.actor(settings) == "ben"
    people.passwords["ben"] = "expired"
    people.become("ben")
    with pytest.raises(TrackingError) as caught:
        promote.past_decisions()
    assert "expired" not in str(caught.value)
    assert not caught.value.retryable


def test_one_account_has_one_role(trained: Path) -> None:
    with pytest.raises(ParamsError, match="ann would have two roles"):
        access.grant({"pipeline": ["ann"], "reviewer": ["ann"]}, None)
    with pytest.raises(ParamsError, match="at least one account"):
        access.grant({}, None)


def test_without_accounts_it_is_said_that_nobody_is_hindered(trained: Path) -> None:
    settings = load_params().register
    assert "this registry has no accounts" in access.rights_note(settings)
    with pytest.raises(TrackingError, match="has no accounts"):
        access.grant({"reader": ["x"]}, None)


def test_a_configuration_is_never_overwritten(tmp_path: Path) -> None:
    access.write_server_configuration(str(tmp_path))
    assert stat.S_IMODE((tmp_path / "server.env").stat().st_mode) == 0o600
    before = (tmp_path / "server.env").read_text()
    with pytest.raises(WorkspaceError, match="is there already"):
        access.write_server_configuration(str(tmp_path))
    assert (tmp_path / "server.env").read_text() == before
