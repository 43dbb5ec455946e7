"""The reviewer's commands: compare, review, promote, reject, rollback, withdraw, history, diff, reproduce, access.

VERSION is the number of a candidate (`<name>-candidates`); `rollback --to` names a released one (`<name>`).
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli.printing import JSON, print_json
from refit.errors import REPRODUCED, OrchestratorUnavailableError, RefusedError

if TYPE_CHECKING:
    from refit.gate.history import Entry, Outcome
    from tasks.promote import Case

_REASON = click.option("--reason", required=True, help="Why; kept in the history.")
_DRY_RUN = click.option("--dry-run", "is_dry_run", is_flag=True, help="Check everything, change nothing.")
_EVIDENCE = click.option(
    "--evidence", "seen", help="Digest of the evidence that you saw (`refit review`); without it you are asked."
)


@click.command()
@JSON
def compare(as_json: bool) -> None:
    """Compare the model in the workspace with the champion; what the gate says."""
    from refit.params import load_params
    from refit.reports.comparison import comparison_markdown
    from tasks.compare import compare as compare_with_champion

    name = load_params().register.model_name
    comparison = compare_with_champion()
    if as_json:
        print_json(comparison)
    else:
        click.echo(comparison_markdown(comparison, name))


@click.command()
@click.argument("version")
@JSON
def review(version: str, as_json: bool) -> None:
    """Show candidate VERSION: verdict, comparison, where it came from, digest; reports/review.html shows examples."""
    from refit import paths
    from tasks.promote import page, where_from
    from tasks.promote import review as look

    case = look(version)
    if as_json:
        shown = {"version": case.version.uri, "digest": case.digest, "evidence": case.bundle}
        print_json({**shown, "origin": where_from(case)})
    else:
        page(case)
        _show(case)
        click.echo(f"\nPage      {paths.REVIEW}")


@click.command()
@click.argument("version")
@_REASON
@_EVIDENCE
@click.option(
    "--force",
    "is_forced",
    is_flag=True,
    help="Although the gate did not pass, or no clean commit is named; the reason is kept.",
)
@_DRY_RUN
@JSON
def promote(version: str, reason: str, seen: str | None, is_forced: bool, is_dry_run: bool, as_json: bool) -> None:
    """Make candidate VERSION the champion."""
    from tasks.promote import promote as act

    seen = _seen(version, seen, is_dry_run, "Promote it?")
    result = act(version, reason, seen, is_forced, is_dry_run)
    _report(result, as_json)


@click.command()
@click.argument("version")
@_REASON
@_EVIDENCE
@_DRY_RUN
@JSON
def reject(version: str, reason: str, seen: str | None, is_dry_run: bool, as_json: bool) -> None:
    """Write down that candidate VERSION is not wanted."""
    from tasks.promote import reject as act

    seen = _seen(version, seen, is_dry_run, "Reject it?")
    _report(act(version, reason, seen, is_dry_run), as_json)


@click.command()
@click.option("--to", "version", help="Number of a released version. Default: the one before.")
@_REASON
@_DRY_RUN
@JSON
def rollback(version: str | None, reason: str, is_dry_run: bool, as_json: bool) -> None:
    """Make an earlier release the champion again, once it has loaded and answered."""
    from tasks.promote import rollback as act

    _report(act(version, reason, is_dry_run), as_json)


@click.command()
@_REASON
@_DRY_RUN
@JSON
def withdraw(reason: str, is_dry_run: bool, as_json: bool) -> None:
    """Say that there is to be no champion, after its alias was deleted in MLflow; else nothing is compared any more."""
    from tasks.withdraw import withdraw as act

    _report(act(reason, is_dry_run), as_json)


@click.command()
@JSON
def history(as_json: bool) -> None:
    """Who promoted what, when and why; and moves that were made past Refit."""
    from tasks.promote import past_decisions

    found = past_decisions()
    if as_json:
        print_json(found)
        return
    for entry in found.entries:
        click.echo(_one_entry(entry))
    click.echo(f"Champion  {found.champion or 'none'}\nPrevious  {found.previous or 'none'}")


@click.command()
@click.argument("first")
@click.argument("second")
@JSON
def diff(first: str, second: str, as_json: bool) -> None:
    """What differs between two versions: settings, data, measures, classes.

    A version is a candidate's number, an alias (candidate, champion, previous) or an address (models:/digits/2).
    """
    from refit.registry.versions import difference
    from refit.reports.difference import difference_markdown

    found = difference(first, second)
    if as_json:
        print_json(found)
    else:
        click.echo(difference_markdown(found))


@click.command(epilog=f"Exit codes: {', '.join(f'{code} {outcome}' for outcome, code in REPRODUCED.items())}.")
@click.argument("version")
@click.option("--keep", type=click.Path(exists=False, path_type=Path), help="Keep the clone in this new folder.")
@JSON
def reproduce(version: str, keep: Path | None, as_json: bool) -> None:
    """Make VERSION again from its commit and data alone, and compare."""
    from flows.reproduce import as_text
    from flows.reproduce import reproduce as act

    found = act(version, lambda line: click.echo(line, err=True), keep)
    if as_json:
        print_json(found)
    else:
        click.echo(as_text(found))
    sys.exit(REPRODUCED[found.outcome])


@click.group()
def access() -> None:
    """Accounts and rights on an MLflow server with authentication."""


@access.command()
@click.argument("folder", type=click.Path(file_okay=False))
def init(folder: str) -> None:
    """Write the configuration of a new server with accounts into FOLDER, and say how to start it."""
    from refit.registry.access import write_server_configuration

    click.echo(write_server_configuration(folder))


@access.command()
@click.option("--pipeline", "pipelines", multiple=True, help="Account that trains: writes candidates only.")
@click.option("--reviewer", "reviewers", multiple=True, help="Account that decides: writes releases.")
@click.option("--reader", "readers", multiple=True, help="Account that serves: reads.")
@click.option("--passwords", "file", type=click.Path(dir_okay=False), help="New file for the passwords that are made.")
@JSON
def grant(
    pipelines: tuple[str, ...], reviewers: tuple[str, ...], readers: tuple[str, ...], file: str | None, as_json: bool
) -> None:
    """Make accounts that do not exist yet, the two models and their experiments, and give the rights (as admin)."""
    from refit.registry.access import grant as act

    roles = {"pipeline": pipelines, "reviewer": reviewers, "reader": readers}
    found = act(roles, file)
    if as_json:
        print_json(found)
        return
    for right in found.granted:
        click.echo(f"{right.account:<16}{right.permission:<8}{right.kind:<18}{right.name}")
    if found.passwords:
        click.echo(f"Passwords of {', '.join(found.created)}: {found.passwords}; hand them over and delete it")


def _seen(version: str, seen: str | None, is_dry_run: bool, question: str) -> str | None:
    """The digest that the decision is bound to: given, or shown here and agreed to."""
    from tasks.promote import review as look

    if seen is not None:
        return seen
    case = look(version)
    _show(case, err=True)
    if is_dry_run:
        return case.digest
    if not sys.stdin.isatty():
        raise RefusedError(f"look at the evidence above, then decide with --evidence {case.digest[:12]}")
    if not click.confirm(question, err=True):
        raise RefusedError("nothing was decided")
    return case.digest


def _show(case: "Case", err: bool = False) -> None:
    from refit.params import load_params
    from refit.registry.access import rights_note
    from refit.reports.review import review_markdown
    from tasks.promote import where_from

    settings = load_params().register
    click.echo(review_markdown(case.bundle.comparison, where_from(case), settings.model_name), err=err)
    note = rights_note(settings)
    if note:
        click.echo(f"\nRights    {note}", err=err)


def _report(outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        print_json(outcome)
    else:
        click.echo(_in_words(outcome))
    _tell(outcome)
    from flows.tools.rollout import roll_out

    roll_out(outcome, lambda line: click.echo(line, err=True), _tell)


def _tell(outcome: "Outcome") -> None:
    """Pass a move on through the Prefect server, if one is named. The move is made, whatever comes of this."""
    if outcome.move is None or not os.environ.get("PREFECT_API_URL"):
        return
    from flows.tools.liveness import require_server
    from flows.tools.notifications import tell_of_move

    try:
        require_server()
        tell_of_move(outcome)
    except OrchestratorUnavailableError as error:
        click.echo(f"nobody was told of it: {error}", err=True)


def _in_words(outcome: "Outcome") -> str:
    would = "would be " if outcome.is_dry_run else ""
    before = f"(before: {outcome.from_version or 'none'}), by {outcome.who}"
    if outcome.is_champion_already:
        return f"{outcome.to} is the champion already; nothing to do"
    if outcome.kind == "reject":
        return f"{outcome.version} {would}rejected by {outcome.who}: {outcome.reason}"
    if outcome.kind == "withdraw":
        return f"there {would or 'is '}no champion {before}"
    return f"{outcome.to or f'a release of {outcome.version}'} {would or 'is '}the champion {before}"


def _one_entry(entry: "Entry") -> str:
    move = entry.move
    arrow = "" if move.kind == "reject" else f"  {move.from_version or 'none'} -> {move.to_version or 'none'}"
    note = f"  [{entry.note}]" if entry.note else ""
    state = "" if move.state == "done" else f" ({move.state})"
    return f"{move.when[:19]}  {move.kind}{state}{arrow}  {move.candidate or ''}  {move.who}: {move.reason}{note}"


COMMANDS: tuple[click.Command, ...] = (
    compare, review, promote, reject, rollback, withdraw, history, diff, reproduce, access,
)  # fmt: skip
