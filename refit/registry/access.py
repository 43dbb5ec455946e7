"""Accounts and rights on an MLflow server with `--app-name basic-auth`.

    write_server_configuration("server")      before the first start
    grant({"pipeline": ["trainer"], "reviewer": ["ann", "ben"], "reader": ["serving"]}, "passwords.txt")

    who        <name>-candidates   its experiment   <name>   <name>-releases
    pipeline   EDIT                EDIT             READ     READ
    reviewer   READ                READ             EDIT     EDIT
    reader     READ                READ             READ     READ

What MLflow enforces: who may write which model and experiment, so who may move `champion` and who may overwrite its
files; `refit/registry/guard.py` adds that no experiment lies in the folder of another. What it does not: it records no
actor, lets every account make new models and experiments, and lets a reviewer move the alias past Refit, which
`refit history` shows.
"""

import os
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ParamsError, TrackingError, WorkspaceError
from ..files import publishing
from ..params import Register, load_params
from . import releases, tracking
from .experiments import experiment_id
from .registered_models import create_model

_SECONDS_TO_CACHE = 300
_WHO_AM_I = "/api/2.0/mlflow/users/current"  # only a server with accounts knows it
_MODEL, _EXPERIMENT = "registered_model", "experiment"


def write_server_configuration(folder: str) -> str:
    """`basic_auth.ini` and `server.env` for a new server; gives what to do with them.

    Raises:
        WorkspaceError: there is a configuration already, or the folder cannot be written.
    """
    here = Path(folder).absolute()
    ini, env = here / "basic_auth.ini", here / "server.env"
    for file in (ini, env):
        if file.exists():
            raise WorkspaceError(f"{file} is there already; a server's secrets are not replaced")
    # A password is checked with a slow hash on every request; without the cache each call takes seconds.
    _write_secret(
        ini,
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{here / 'accounts.db'}\n"
        f"admin_username = admin\nauth_cache_ttl_seconds = {_SECONDS_TO_CACHE}\n"
        "authorization_function = refit.registry.guard:authenticate\n",
    )
    _write_secret(
        env,
        f"MLFLOW_AUTH_CONFIG_PATH={ini}\nMLFLOW_AUTH_ADMIN_PASSWORD={secrets.token_urlsafe(24)}\n"
        f"MLFLOW_FLASK_SERVER_SECRET_KEY={secrets.token_hex(32)}\n"
        # Eight processes of 240 MB for jobs that nothing here asks for.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false\n",
    )
    return (
        f"{ini} and {env} are written; {env.name} holds the password of `admin`.\n\n"
        f"set -a; . {env}; set +a\n"
        f"mlflow server --app-name basic-auth --host 127.0.0.1 --port 5000 \\\n"
        f"  --backend-store-uri sqlite:///{here / 'mlflow.db'} --artifacts-destination {here / 'artifacts'}\n\n"
        "Then, with MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME=admin and MLFLOW_TRACKING_PASSWORD set:\n"
        "refit access grant --pipeline trainer --reviewer ann --reader serving --passwords passwords.txt"
    )


@dataclass(frozen=True)
class Right:
    """What an account may do with a model or an experiment."""

    account: str
    kind: str
    name: str
    permission: str


@dataclass(frozen=True)
class Granted:
    """What `grant` did."""

    granted: tuple[Right, ...]
    created: tuple[str, ...]  # accounts
    passwords: str | None  # the file that has theirs


def grant(roles: Mapping[str, Sequence[str]], passwords: str | None) -> Granted:
    """Make what is missing (accounts, models, experiments) and give the rights. May be repeated.

    Args:
        roles: `pipeline`, `reviewer`, `reader`, each with names of accounts.
        passwords: a new file, readable by its owner only, for the passwords of accounts that are made.

    Raises:
        TrackingError: the server has no accounts, or this account is not an administrator.
    """
    settings = load_params().register
    _require_one_role_each(roles)
    if not rights_are_enforced(settings):
        raise TrackingError(f"{tracking.tracking_uri(settings)} has no accounts: {rights_note(settings)}")
    with tracking.connected(settings) as client:
        places = _places(settings, client)
        created = _create_accounts(settings, [name for names in roles.values() for name in names], passwords)
        granted = []
        for role, accounts in roles.items():
            for account in accounts:
                for (kind, name, identifier), permission in zip(places, _rights(role), strict=True):
                    _give(settings, account, kind, identifier, permission)
                    granted.append(Right(account, kind, name, permission))
    return Granted(tuple(granted), tuple(created), passwords if created else None)


def rights_are_enforced(settings: Register) -> bool:
    """Whether the registry is a server that asks who one is.

    Raises:
        TrackingUnavailableError: it does not answer.
    """
    uri = tracking.tracking_uri(settings)
    if not uri.startswith("http"):
        return False
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    with tracking.connected(settings):
        status = http_request(get_default_host_creds(uri), _WHO_AM_I, "GET").status_code
        if status >= 500:
            raise MlflowException(f"it answers {status}")
        return bool(status != 404)


def rights_note(settings: Register) -> str:
    """What a reviewer must know about the rights here; empty where the server enforces them."""
    if rights_are_enforced(settings):
        return ""
    return "nobody is hindered here: this registry has no accounts, so who decided is not verified (docs/reviewers.md)"


def _require_one_role_each(roles: Mapping[str, Sequence[str]]) -> None:
    names = [name for accounts in roles.values() for name in accounts]
    if not names:
        raise ParamsError("name at least one account: --pipeline, --reviewer or --reader")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParamsError(f"{', '.join(twice)} would have two roles; who trains must not be who decides")


def _places(settings: Register, client: Any) -> list[tuple[str, str, str]]:
    """(kind, name, id) of the two models and the two experiments, made where they are missing."""
    found = []
    for model, experiment in (
        (tracking.candidates(settings), settings.experiment),
        (settings.model_name, releases.experiment_name(settings)),
    ):
        create_model(client, model)
        found += [(_MODEL, model, model), (_EXPERIMENT, experiment, experiment_id(client, experiment))]
    return found


def _rights(role: str) -> tuple[str, str, str, str]:
    """Permissions in the order of `_places`."""
    candidates = "EDIT" if role == "pipeline" else "READ"
    released = "EDIT" if role == "reviewer" else "READ"
    return candidates, candidates, released, released


def _client(settings: Register) -> Any:
    with warnings.catch_warnings(action="ignore"):  # the client brings the server's modules with it
        from mlflow.server.auth.client import AuthServiceClient

    return AuthServiceClient(tracking.tracking_uri(settings))


def _give(settings: Register, account: str, kind: str, identifier: str, permission: str) -> None:
    """The permission, instead of whatever the account had."""
    from mlflow.exceptions import MlflowException

    try:
        _client(settings).grant_user_permission(account, kind, identifier, permission)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        _client(settings).revoke_user_permission(account, kind, identifier)
        _client(settings).grant_user_permission(account, kind, identifier, permission)


def _create_accounts(settings: Register, names: Sequence[str], passwords: str | None) -> list[str]:
    missing = {name: secrets.token_urlsafe(24) for name in names if not _exists(settings, name)}
    if not missing:
        return []
    if passwords is None:
        raise ParamsError(f"{', '.join(missing)} must be made first: name a new file for the passwords, --passwords")
    if Path(passwords).exists():
        raise WorkspaceError(f"{passwords} is there already; name a new file")
    # Written first: an account whose password nobody knows would have to be deleted by hand.
    _write_secret(Path(passwords), "".join(f"{name} {password}\n" for name, password in missing.items()))
    for name, password in missing.items():
        _client(settings).create_user(name, password)
    return sorted(missing)


def _exists(settings: Register, name: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        _client(settings).get_user(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _write_secret(file: Path, text: str) -> None:
    with _private(), publishing(file) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def _private() -> Iterator[None]:
    """What is written meanwhile is for its owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
