"""The operator's commands: verify."""

import click

from flows.cli.printing import JSON, print_json
from refit.errors import EvidenceError


@click.command()
@JSON
def verify(as_json: bool) -> None:
    """Read every file of every release, and say whether it is exactly what was promoted."""
    from refit.params import load_params
    from refit.registry.verification import verify as read_all

    found = read_all(load_params().register)
    if as_json:
        print_json(found)
    for release in found if not as_json else ():
        if release.faults:
            click.echo(f"{release.uri}  CHANGED  {'; '.join(release.faults)}")
        else:
            kind = "as promoted" if release.is_covered else "weights, card and evidence as promoted, code not recorded"
            click.echo(f"{release.uri}  {kind}  ({release.num_files} files)")
    broken = [release.uri for release in found if release.faults]
    if broken:
        raise EvidenceError(f"not what was promoted: {', '.join(broken)}")


COMMANDS: tuple[click.Command, ...] = (verify,)
