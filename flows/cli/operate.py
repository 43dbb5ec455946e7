"""The operator's commands: verify, clean."""

from pathlib import Path

import click

from flows.cli.printing import JSON, print_json
from flows.cli.start import FromStart
from refit.errors import EvidenceError, ParamsError


@click.command()
@click.argument("folder", required=False, type=FromStart(exists=True, file_okay=False))
@click.option("--key", type=FromStart(exists=True, dir_okay=False), help="Public key of whoever signs releases.")
@JSON
def verify(folder: Path | None, key: Path | None, as_json: bool) -> None:
    """Read every file of every release, and say whether it is exactly what was promoted; with --key, its signature too.

    With FOLDER, a release that was brought here: by its signature alone, without any server.
    """
    from refit.params import load_params
    from refit.registry import verification

    if folder is None:
        found = verification.verify(load_params().register, key)
    elif key is None:
        raise ParamsError("a folder is verified by its signature: --key")
    else:
        found = [verification.verify_folder(folder, key)]
    if as_json:
        print_json(found)
    for release in found if not as_json else ():
        if release.faults:
            click.echo(f"{release.uri}  CHANGED  {'; '.join(release.faults)}")
        else:
            kind = "as promoted" if release.is_covered else "weights, card and evidence as promoted, code not recorded"
            click.echo(f"{release.uri}  {kind}{', signed' if key else ''}  ({release.num_files} files)")
    broken = [release.uri for release in found if release.faults]
    if broken:
        raise EvidenceError(f"not what was promoted: {', '.join(broken)}")


@click.command()
@click.option("--keep", type=click.IntRange(min=1), required=True, help="So many of the newest candidates stay.")
@click.option("--cloud", "is_cloud", is_flag=True, help="The DVC remote too. It must be this project's alone.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Say what would go, and change nothing.")
@JSON
def clean(keep: int, is_cloud: bool, is_dry_run: bool, as_json: bool) -> None:
    """Remove old candidates, their runs and branches, data that nothing kept needs, and caches.

    Releases stay, and the candidates that they came from, what has an alias, and the data of every branch and tag.
    """
    from flows.clean import carry_out, survey

    plan = survey(keep, is_cloud)
    is_freed = is_dry_run or carry_out(plan)
    if as_json:
        places = {place.name: {"objects": len(place.paths), "bytes": place.bytes} for place in plan.places}
        print_json({"is_dry_run": is_dry_run, "bytes": plan.bytes, "registry": plan.registry,
                    "branches": plan.branches, "data": places, "cache": plan.shelves})  # fmt: skip
        return
    verb = "would go" if is_dry_run else "gone"
    for kept in plan.kept:
        click.echo(f"stays     {kept.uri}  ({kept.reason}; commit {kept.commit[:12]})")
    for version in plan.registry.versions:
        click.echo(f"{verb:<10}{version.uri} with its run  {_size(version.bytes)}")
    for run in plan.registry.runs:
        click.echo(f"{verb:<10}run {run}, of which no version came")
    for branch in plan.branches:
        click.echo(f"{verb:<10}branch {branch}")
    for place in plan.places:
        click.echo(f"{verb:<10}{len(place.paths):,} objects of the DVC {place.name}  {_size(place.bytes)}")
    for folder, num_bytes in plan.shelves.items():
        click.echo(f"{verb:<10}{folder}  {_size(num_bytes)}")
    click.echo(f"in all    {_size(plan.bytes)}")
    if not is_freed:
        click.echo("MLflow keeps the files until `mlflow gc` runs where its server is (docs/operations.md)", err=True)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


COMMANDS: tuple[click.Command, ...] = (verify, clean)
