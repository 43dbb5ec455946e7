"""What `refit clean` does: old candidates, their runs, branches and data go; what a kept version needs never does.

    plan = survey(keep=10, is_cloud=False)
    carry_out(plan)

The rule is in refit/registry/retention.py; the data of every commit that a kept version names stays, and that of every
branch and tag. What went wrong in the middle is finished by the same command again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.tools import commits, objects
from refit.errors import WorkspaceError
from refit.locks import one_at_a_time
from refit.params import load_params
from refit.registry import retention
from refit.registry.provenance import NONE, UNKNOWN
from refit.registry.retention import Kept, Survey
from refit.training import cache

_DAYS_IDLE = 7
_NO_COMMIT = ("", NONE, UNKNOWN)


@dataclass(frozen=True)
class Plan:
    """What goes."""

    registry: Survey
    branches: tuple[str, ...]
    places: tuple[objects.Place, ...]
    shelves: Mapping[str, int]  # of decoded examples and features, with their bytes

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Versions that stay."""
        return self.registry.kept

    @property
    def bytes(self) -> int:
        """Of all files that go."""
        sizes = [version.bytes for version in self.registry.versions], [place.bytes for place in self.places]
        return sum(map(sum, (*sizes, self.shelves.values())))


def survey(keep: int, is_cloud: bool) -> Plan:
    """What would go, with the newest `keep` candidates kept; nothing is changed.

    Raises:
        WorkspaceError: the commit of a version that stays is not in this repository, so what it needs is not known.
    """
    found = retention.survey(load_params().register, keep)
    branches = commits.run_branches()
    needed = {kept.commit for kept in found.kept if kept.commit not in _NO_COMMIT}
    missing = [kept for kept in found.kept if kept.commit in needed and not commits.is_here(kept.commit)]
    if missing:
        raise WorkspaceError(
            f"nothing was removed: {missing[0].uri} stays, and this repository lacks its commit "
            f"{missing[0].commit[:12]}; `git fetch` brings it, or run this in a clone that has it"
        )
    going = [name for name, commit in branches[keep:] if commit not in needed]
    tips = commits.tips() - {commit for name, commit in branches if name in going}
    return Plan(
        registry=found,
        branches=tuple(going),
        places=tuple(objects.unused(needed | tips, is_cloud)),
        shelves={str(folder): size for folder, size in cache.idle(_DAYS_IDLE).items()},
    )


def carry_out(plan: Plan) -> bool:
    """Remove it all. Versions first: one that is listed has its data.

    Returns:
        Whether MLflow's files are gone too; else `mlflow gc` has to run where its server is.
    """
    with one_at_a_time():
        is_freed = retention.remove(load_params().register, plan.registry)
        for name in plan.branches:
            commits.remove_branch(name)
        for place in plan.places:
            place.remove()
        for folder in plan.shelves:
            cache.evict(Path(folder))
    return is_freed
