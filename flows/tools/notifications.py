"""Who is told what: the automations of deploy/automations.yaml, applied to the Prefect server by one command.

    refit notifications slack-webhook/team

The address and its secrets are in the block, on the server; the file names events and texts only.
"""

from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import emit_event
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from pydantic import ValidationError

from refit.errors import ParamsError
from refit.gate.history import Outcome
from refit.params import load_params, read_yaml

AUTOMATIONS = Path("deploy/automations.yaml")


def apply(block: str, file: Path = AUTOMATIONS) -> list[str]:
    """Make (or replace, by name) every automation of the file, telling through a notification block.

    Args:
        block: `<block type>/<block name>`, such as `slack-webhook/team` or `custom-webhook/ops`.

    Returns:
        The names of the automations.

    Raises:
        ParamsError: there is no such block, or the file is no list of automations; nothing was changed.
    """
    with get_client(sync_client=True) as client:
        block_id = _find(client, block)
        automations = [_parse(entry, block_id, file) for entry in _entries(file)]
        for automation in automations:
            existing = client.read_automations_by_name(automation.name)
            if existing:
                client.update_automation(existing[0].id, automation)
            else:
                client.create_automation(automation)
    return [automation.name for automation in automations]


def tell(event: str, message: str) -> None:
    """Something happened to the model, in a flow or by a command: an event for the automations to pass on."""
    name = load_params().register.model_name
    run = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"}
    emit_event(
        event,
        resource={"prefect.resource.id": f"refit.model.{name}", "prefect.resource.name": name},
        related=[run] if flow_run.id else [],
        payload={"message": message},
    )


def tell_of_move(outcome: Outcome) -> None:
    """Tell of a new champion, after `tasks.promote`; not of a dry run, nor of what had been done before."""
    if outcome.move is None or outcome.kind == "reject":
        return
    event = "refit.model.rolled-back" if outcome.kind == "rollback" else "refit.model.promoted"
    tell(event, f"{outcome.to} is the champion ({outcome.move.who}: {outcome.move.reason})")


def _find(client: SyncPrefectClient, block: str) -> str:
    block_type, _, name = block.partition("/")
    try:
        return str(client.read_block_document_by_name(name, block_type, include_secrets=False).id)
    except ObjectNotFound:
        raise ParamsError(
            f"the Prefect server has no block {block!r}; make one in its pages (Blocks), "
            "and give it here as <block type>/<block name>, such as slack-webhook/team"
        ) from None


def _entries(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise ParamsError(f"{file} is missing")
    entries = read_yaml(file)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ParamsError(f"{file} must be a list of automations")
    return entries


def _parse(entry: dict[str, Any], block_id: str, file: Path) -> AutomationCore:
    message = {key: entry.pop(key, "") for key in ("subject", "body")}
    entry["actions"] = [{"type": "send-notification", "block_document_id": block_id, **message}]
    try:
        return AutomationCore.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ParamsError(f"{file}: automation {entry.get('name')!r}: `{key}`: {first['msg']}") from None
