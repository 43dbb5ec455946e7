"""What follows a decision: the champion is brought to where it is served, and taken back if it does not answer there.

    roll_out(outcome, say, tell)        after `promote` and `rollback`; nothing, where params.yaml names nothing

A step back is a decision like any other: `refit history` has it, with what went wrong as its reason.
"""

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from urllib.request import Request, urlopen

from refit import modality
from refit.errors import DeploymentError, EvidenceError, RefitError
from refit.gate import evidence
from refit.gate.golden import Golden, disagreement
from refit.gate.history import MOST_LETTERS, Outcome
from refit.params import Deploy, load_params
from refit.records import parse_record
from refit.registry import tracking
from tasks import promote as decisions

_SECONDS_BETWEEN_ATTEMPTS = 1.0
_SECONDS_FOR_AN_ANSWER = 60.0


def roll_out(outcome: Outcome, say: Callable[[str], None], tell: Callable[[Outcome], None]) -> None:
    """Deploy the champion that a decision made; where that fails, make the one before it the champion again.

    Args:
        outcome: of `tasks.promote.promote` or `rollback`.
        say: takes a line for whoever decided.
        tell: passes a move on, as it was done for `outcome`.

    Raises:
        DeploymentError: it is not in service. The message says what is the champion now.
    """
    settings = load_params().deploy
    if outcome.is_dry_run or outcome.to is None or outcome.kind not in ("promote", "rollback"):
        return
    if settings.command is None and settings.deployment is None and settings.health_url is None:
        return
    try:
        _put_into_service(outcome.to, settings)
    except DeploymentError as error:
        raise _taken_back(outcome, error, settings, tell) from None
    say(f"{outcome.to} is in service")


def _taken_back(
    outcome: Outcome, error: DeploymentError, settings: Deploy, tell: Callable[[Outcome], None]
) -> DeploymentError:
    """Step back; gives what to say of it."""
    if outcome.from_version is None:
        return DeploymentError(f"{outcome.to} is the champion, but not in service: {error}. No release was before it")
    reason = f"automatic: {outcome.to} was not in service: {error}"[:MOST_LETTERS]
    try:
        back = decisions.rollback(outcome.from_version, reason)
    except RefitError as trouble:
        return DeploymentError(f"{outcome.to} is the champion, but not in service: {error}. No way back: {trouble}")
    tell(back)
    said = f"{outcome.to} was taken back: {error}. {back.to} is the champion again"
    try:
        assert back.to is not None
        _put_into_service(back.to, settings)
    except DeploymentError as again:
        return DeploymentError(f"{said}, but not in service either: {again}")
    return DeploymentError(f"{said}, and in service")


def _put_into_service(uri: str, settings: Deploy) -> None:
    number = uri.rpartition("/")[2]
    if settings.command is not None:
        _run(settings.command, uri, number, settings.seconds)
    if settings.deployment is not None:
        _run_deployment(settings.deployment, uri, number, settings.seconds)
    if settings.health_url is not None:
        _require_answers(settings.health_url, number, settings.seconds)


def _run(command: str, uri: str, number: str, seconds: int) -> None:
    register = load_params().register
    env = {**os.environ, **tracking.environment(register), "REFIT_MODEL_URI": uri, "REFIT_MODEL_VERSION": number}
    try:
        # A server that the command leaves behind would hold our pipes open: its output goes where ours goes.
        done = subprocess.run(["sh", "-c", command], env=env, stdin=subprocess.DEVNULL, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise DeploymentError(f"`{command}` took longer than {seconds} s (`deploy.seconds`)") from None
    if done.returncode != 0:
        raise DeploymentError(f"`{command}` ended with {done.returncode}")


def _run_deployment(name: str, uri: str, number: str, seconds: int) -> None:
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    from flows.tools.liveness import require_server

    require_server()
    try:
        run = run_deployment(name, parameters={"model_uri": uri, "version": number}, timeout=seconds)
    except ObjectNotFound:
        raise DeploymentError(f"the Prefect server has no deployment {name!r} (`deploy.deployment`)") from None
    state = getattr(run, "state", None)
    if state is None or not state.is_completed():
        what = "has no state" if state is None else f"is {state.name}: {state.message or 'no message'}"
        raise DeploymentError(f"the run of {name} {what}")


def _require_answers(url: str, number: str, seconds: int) -> None:
    """The golden examples of a release get its answers there. One that is still starting is waited for."""
    params = load_params()
    case = decisions.released(number)
    stored = tracking.read_file(params.register, f"{case.version.uri}/refit/golden.json")
    digests = {"golden.json": evidence.digest_of(stored)}
    evidence.require_same_files(digests, {"golden.json": case.bundle.files["golden.json"]}, case.version.uri)
    examples = parse_record(stored, Golden, EvidenceError, case.version.uri)
    column = modality.examples(params.data.modality).INPUT
    deadline = time.monotonic() + seconds
    while True:
        try:
            trouble = disagreement(examples, _ask(url, column, examples), params.gate.max_probability_error)
        except (OSError, ValueError, KeyError, TypeError) as error:
            trouble = f"no answer ({error})"
        if trouble is None:
            return
        if time.monotonic() > deadline:
            raise DeploymentError(f"{url}: {trouble}")
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)


def _ask(url: str, column: str, examples: Golden) -> list[Mapping[str, float]]:
    contents = [base64.b64encode(example.content).decode() for example in examples.images]
    body = json.dumps({"inputs": {column: contents}}).encode()
    request = Request(f"{url.rstrip('/')}/invocations", body, {"Content-Type": "application/json"})  # noqa: S310
    with urlopen(request, timeout=_SECONDS_FOR_AN_ANSWER) as answer:  # noqa: S310
        return [row["probabilities"] for row in json.load(answer)["predictions"]]
