"""The command `refit`. Libraries are imported by the command that needs them, so that `--help` is quick.

Exit codes are those of refit/errors.py; 2 also for a mistake on the command line.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from flows.cli import decide, operate
from flows.cli.printing import JSON, print_json
from flows.cli.start import FromStart, from_start
from refit import collector
from refit.errors import EXIT_CODES, DataError, RefitError, TrackingUnavailableError, WorkspaceError, exit_with

if TYPE_CHECKING:
    from flows.retrain import Deliver

_EXIT_CODES = "\n".join(("\b", "Exit codes:", *(f"{code:>5}  {meaning}" for code, meaning in EXIT_CODES.items())))


class _Commands(click.Group):
    """The one place that turns a RefitError into one line and an exit code."""

    def invoke(self, context: click.Context) -> Any:
        # A stage runs in a session of its own: it has to be stopped by us. SIGINT stays ignored where it was at the
        # start, in the background job of a script: the Ctrl-C of a terminal is for the job in front.
        signal.signal(signal.SIGTERM, _stop)
        try:
            return super().invoke(context)
        except RefitError as error:
            exit_with(error)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None


@click.group(cls=_Commands, epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--project",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The project's folder. Default: the nearest one, from here upwards, with params.yaml and dvc.yaml.",
)
@click.version_option(package_name="refit")
@click.pass_context
def main(context: click.Context, project: Path | None) -> None:
    """Fine-tune a pretrained model on your data, register the result, and be able to reproduce it."""
    collector.relax()
    if context.invoked_subcommand == "validate":
        context.obj = project  # with a path, it needs none
    else:
        os.chdir(project or _nearest_project())


@main.command()
@click.option(
    "--commit", "deliver", flag_value="commit", help="End in a git commit, and `dvc push` if there is a remote."
)
@click.option("--branch", "deliver", flag_value="branch", help="As the schedule does: new data in, a branch out.")
@JSON
def retrain(deliver: "Deliver | None", as_json: bool) -> None:
    """Run the whole flow: validate, fetch, fine-tune, evaluate, register the candidate."""
    _load_params_first()
    from flows.tools import dvc_process, pipeline
    from flows.tools.local_server import serve_locally

    dvc_process.start()
    require_server = serve_locally()  # it starts while the flow is imported
    from flows.retrain import retrain_here

    pipeline.require_readable()
    require_server()

    state: Any = retrain_here(deliver or "workspace")
    summary = state.result()  # raises what went wrong
    if as_json:
        print_json(summary)
        return
    if state.name == "NothingToDo":
        click.echo(f"\nNothing to do: {state.message}")
        return
    accuracy = summary["overall"]["accuracy"]
    click.echo(f"\nCandidate   {summary['uri']}{'' if summary['is_new'] else '  (this content was registered before)'}")
    click.echo(f"Accuracy    {accuracy['value']:.4f}  ({accuracy['low']:.4f} to {accuracy['high']:.4f})")
    click.echo(f"Gate        {summary['gate']['verdict']}: {'; '.join(summary['gate']['reasons'])}")
    click.echo(f"To review   {summary['page']}  (`refit review {summary['version']}`)")
    click.echo("Reports     reports/validation.html  reports/evaluation.html  reports/label_suspects.html")
    for name, address in summary["links"].items():
        click.echo(f"{name.capitalize():<12}{address}")
    if not summary["links"]:
        click.echo("Look at it  make ui")


@main.command()
@click.argument("modality")
def use(modality: str) -> None:
    """Set params.yaml to the built-in examples of MODALITY, image or text; whatever else it says stays."""
    from refit.params import use as use_sample

    changed = use_sample(modality)
    click.echo(f"params.yaml: {', '.join(changed)}" if changed else "params.yaml says so already")


@main.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--reports", type=click.Path(path_type=Path), help="With PATH: where the reports go.")
@JSON
@click.pass_obj
def validate(project: Path | None, path: Path | None, reports: Path | None, as_json: bool) -> None:
    """Check the data and say what is wrong with it; train nothing.

    With PATH (a folder, a table or an archive) that data instead, anywhere, by the rules of the project that is here,
    if any. The reports are then in NAME-validation/.
    """
    if path is not None:
        _validate_elsewhere(path, project, reports, as_json)
        return
    if reports is not None:
        raise click.UsageError("--reports goes with a PATH; the project's own are in reports/")
    os.chdir(project or _nearest_project())
    from flows.tools import pipeline
    from flows.tools.data_changes import last_run, publish_changes
    from refit import paths
    from refit.data.summary import ValidationSummary
    from refit.params import load_params
    from refit.records import read_record
    from refit.registry import champion
    from refit.reports.changes import changes_markdown
    from refit.reports.validation import validation_markdown

    _load_params_first()
    failure: DataError | None = None
    lines: list[str] = []
    before = last_run()
    try:
        if paths.ACCIDENTS.exists():
            pipeline.reproduce("ingest", lambda line: _pass_on(line, lines), is_forced=True)
        pipeline.reproduce("validate", lambda line: _pass_on(line, lines), single_item=False)
    except DataError as error:
        if "Running stage 'validate':" not in lines or not paths.VALIDATION_SUMMARY.exists():
            raise  # before there was a report; one that is here is of another run
        failure = error
    summary = read_record(paths.VALIDATION_SUMMARY, ValidationSummary, WorkspaceError)
    data = load_params().data
    changes = publish_changes(before, data.modality)
    if as_json:
        print_json(summary)
    else:
        click.echo(validation_markdown(summary))
        if before is not None:
            click.echo("\n" + changes_markdown(changes, data.source))
        click.echo(f"\nReports  {paths.VALIDATION_REPORT}  {paths.CHANGES_REPORT}")
    if failure is not None:
        raise failure
    try:
        champion.require_its_classes(load_params())
    except TrackingUnavailableError as error:
        click.echo(f"not known whether the champion has classes that are missing here: {error}", err=True)


def _validate_elsewhere(path: Path, project: Path | None, reports: Path | None, as_json: bool) -> None:
    from flows.cli.folder import validate_folder
    from refit.reports.validation import validation_markdown

    reports = reports or Path(f"{path.absolute().name}-validation")
    if project is None:
        with contextlib.suppress(WorkspaceError):
            project = _nearest_project()
    summary = validate_folder(path, project, reports)
    if as_json:
        print_json(summary)
    else:
        click.echo(validation_markdown(summary))
        click.echo(f"\nReport  {reports / 'validation.html'}")
    if not summary.passed:
        raise DataError(f"the data is not good enough: {'; '.join(summary.failures)}")


@main.command()
@JSON
def register(as_json: bool) -> None:
    """Register what is in the workspace, for instance after MLflow could not be reached."""
    from flows.tools import pipeline
    from refit.locks import one_at_a_time
    from refit.params import load_params
    from tasks.compare import compare as compare_with_champion
    from tasks.register import find_registered, register_candidate

    with one_at_a_time():
        registration = find_registered()
        if registration is None:
            pipeline.require_unchanged(load_params().data.source)
            compare_with_champion()
            registration = register_candidate()
    version = registration.version
    if as_json:
        print_json({"uri": version.uri, "is_new": registration.is_new, "links": dict(registration.links)})
    else:
        known = "" if registration.is_new else "  (this content was registered before)"
        click.echo(f"candidate: {version.uri}{known}")


@main.command()
@click.argument("block")
def notifications(block: str) -> None:
    """Have the Prefect server tell about failures, rejected data, candidates and promotions through BLOCK.

    BLOCK is a notification block of the server, as type/name: slack-webhook/team, custom-webhook/ops, …
    """
    from flows.tools.local_server import serve_locally

    require_server = serve_locally()
    from flows.tools.notifications import apply

    require_server()
    for name in apply(block):
        click.echo(name)


@main.command()
@JSON
def status(as_json: bool) -> None:
    """Say what would run, what is registered, and how the candidate compares with the champion."""
    from flows.cli.status import describe, gather

    _load_params_first()
    found = gather()
    if as_json:
        print_json(found)
    else:
        click.echo(describe(found))


@main.command()
@click.argument("files", nargs=-1, type=FromStart(allow_dash=True))
@click.option(
    "--list",
    "listed",
    type=FromStart(exists=True, dir_okay=False, allow_dash=True),
    help="A file with a path on each line; - for standard input.",
)
@click.option(
    "--value",
    "values",
    multiple=True,
    help="An example itself, as a request would have it, such as a text. -: one in each line of standard input.",
)
@click.option(
    "--model", "uri", help="A model in MLflow, such as models:/digits@candidate. Default: the one in models/."
)
@click.option("--probabilities", "has_all", is_flag=True, help="The probability of every class.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a table: file, label, probability, …")
@JSON
def predict(
    files: tuple[Path, ...],
    listed: Path | None,
    values: tuple[str, ...],
    uri: str | None,
    has_all: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Label FILES, and all files below the folders among them, with calibrated probabilities; - is standard input.

    A file that cannot be read is one line on standard error, and exit code 3 at the end; the others are labelled.
    """
    from flows.cli.predictions import show_files, show_values

    form: Literal["text", "csv", "json"] = "json" if as_json else "csv" if as_csv else "text"
    lines = [line for line in _lines_of(listed) if line.strip()]
    if not (files or lines or values):
        raise click.UsageError("nothing to label: name files, folders, - or --list; or give examples with --value")
    if values and (files or lines):
        raise click.UsageError("files and --value are two ways to ask: give one of them")
    if values:
        texts = list(filter(None, sys.stdin.read().splitlines())) if values == ("-",) else values
        show_values(texts, uri, has_all, form)
        return
    show_files([*files, *(from_start(Path(line)) for line in lines)], uri, has_all, form)


def _pass_on(line: str, lines: list[str]) -> None:
    lines.append(line)
    click.echo(line, err=True)


def _stop(_signal: int, _frame: object) -> None:
    raise SystemExit(143)


def _nearest_project() -> Path:
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise WorkspaceError("no project here: no folder from here upwards holds params.yaml and dvc.yaml; use --project")


def _lines_of(listed: Path | None) -> list[str]:
    if listed is None:
        return []
    with click.open_file(str(listed)) as file:
        return [line.rstrip("\n") for line in file]


def _load_params_first() -> None:
    """A mistake in params.yaml is better said before servers and libraries are started."""
    from flows.tools.pipeline import require_source
    from refit.params import load_params

    require_source(load_params().data.source)


for _command in (*decide.COMMANDS, *operate.COMMANDS):
    main.add_command(_command)
