"""A run is a commit: the params, dvc.lock and the small metrics that belong to one result, in git.

require_clean_code()          before the work: a commit that lacks the code it ran is no proof
sha = commit_run(message)     after the work
"""

import subprocess

from tasks.errors import WorkspaceError

_PART_OF_A_RUN = ("dvc.lock", "dvc.yaml", "params.yaml", "metrics/evaluation.json", "reports/validation.json")


def require_clean_code() -> None:
    """Refuse to go on when tracked files that a run does not commit are changed.

    Raises:
        WorkspaceError: no git repository, or changed files, which are listed.
    """
    changed = [line[3:] for line in _git("status", "--porcelain", "--untracked-files=no").splitlines()]
    foreign = [path for path in changed if not _belongs(path)]
    if foreign:
        raise WorkspaceError(
            f"{', '.join(foreign[:5])}{' and more' if len(foreign) > 5 else ''} changed since the last commit; a run's "
            "commit must hold the code that made it: commit or stash them first, or run without --commit"
        )


def commit_run(message: str) -> str:
    """Commit what belongs to the run; with nothing to commit, the present commit is the run's.

    Raises:
        WorkspaceError: git refused (no identity, a hook).
    """
    # With the files by which DVC tracks data, new ones too: without them the commit could not be pulled.
    patterns = (*_PART_OF_A_RUN, "*.dvc", "*.gitignore")
    known = _git("ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns).split("\0")[:-1]
    _git("add", "--", *known)
    if _git("diff", "--cached", "--name-only", "--", *known):
        _git("commit", "--quiet", "--message", message, "--", *known)
    return head()


def head() -> str:
    """The present commit, 40 hexadecimal digits."""
    return _git("rev-parse", "HEAD").strip()


def _belongs(path: str) -> bool:
    return path in _PART_OF_A_RUN or path.endswith(".dvc") or path.endswith(".gitignore")


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = " ".join((result.stderr or result.stdout).split())
        raise WorkspaceError(f"`git {arguments[0]}` failed: {reason}")
    return result.stdout
