"""A run is a commit: the params, dvc.lock and the small metrics that belong to one result, in git.

require_clean_code()          before the work: a commit that lacks the code it ran is no proof
sha = commit_run(message)     after the work
"""

import contextlib
import os
import subprocess

from refit.errors import StorageUnavailableError, WorkspaceError
from refit.registry.provenance import untracked_source

_RESULTS = ("dvc.lock", "metrics/evaluation.json", "reports/environment.json", "reports/validation.json")
_PART_OF_A_RUN = (*_RESULTS, "dvc.yaml", "params.yaml")


def require_clean_code() -> None:
    """Refuse to go on when files that a run does not commit are changed, or source that can be imported is not in git.

    Raises:
        WorkspaceError: no git repository, or such files, which are listed.
    """
    changed = _lines("diff", "--name-only", "--relative", "-z", "HEAD")
    foreign = [path for path in (*changed, *untracked_source()) if not _belongs(path)]
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
    known = _lines("ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns)
    _git("add", "--", *known)
    if _git("diff", "--cached", "--name-only", "--", *known):
        _git("commit", "--quiet", "--message", message, "--", *known)
    return head()


def adopt_last_run() -> str | None:
    """Take dvc.lock and its small outputs from the newest `retrain/…` branch; give that branch, if there is one.

    A lock is only a record: stages whose code, params or data differ from it run all the same.

    Raises:
        StorageUnavailableError: the git remote cannot be reached.
    """
    _remote("fetch", "--quiet", "origin", "+refs/heads/retrain/*:refs/remotes/origin/retrain/*")
    newest = (
        "for-each-ref",
        "--sort=-committerdate",
        "--count=1",
        "--format=%(refname)",
        "refs/remotes/origin/retrain",
    )
    branch = _git(*newest).strip()
    if not branch:
        return None
    known = _lines("ls-tree", "--name-only", "-z", branch, *_RESULTS)
    _git("checkout", branch, "--", *known)
    return branch


def start_branch(name: str) -> None:
    """Go on a new branch from here."""
    _git("checkout", "--quiet", "-B", name)


def push_branch(name: str) -> None:
    """Push the branch.

    Raises:
        StorageUnavailableError: the git remote cannot be reached, or refuses.
    """
    _remote("push", "--quiet", "origin", f"HEAD:refs/heads/{name}")


def check_out(commit: str) -> None:
    """Fetch a commit from the remote and make the working tree that commit.

    Raises:
        StorageUnavailableError: the git remote cannot be reached, or does not have it.
    """
    _remote("fetch", "--quiet", "origin", commit)
    _git("checkout", "--quiet", "--force", "--detach", commit)


def run_branches() -> list[tuple[str, str]]:
    """(name, commit) of the branches `retrain/…` on the remote, the newest first; `origin` is read anew.

    Raises:
        StorageUnavailableError: the git remote cannot be reached.
    """
    if "origin" not in _git("remote").split():
        return []
    _remote("fetch", "--quiet", "--prune", "origin")
    listed = _git("for-each-ref", "--sort=-committerdate", "--format=%(refname:lstrip=3) %(objectname)",
                  "refs/remotes/origin/retrain")  # fmt: skip
    return [(name, commit) for name, _, commit in (line.partition(" ") for line in listed.splitlines())]


def tips() -> set[str]:
    """The commits that branches (here, and those of the remote as last fetched) and tags point to."""
    commit = "%(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end)"  # a tag may be an object of its own
    return set(_git("for-each-ref", f"--format={commit}", "refs/heads", "refs/remotes", "refs/tags").split())


def is_here(commit: str) -> bool:
    """Whether this repository has a commit; it is fetched if the remote gives it."""
    for attempt in range(2):
        try:
            _git("cat-file", "-e", f"{commit}^{{commit}}")
            return True
        except WorkspaceError:
            if attempt:
                break
        with contextlib.suppress(WorkspaceError):
            _git("fetch", "--quiet", "origin", commit)
    return False


def remove_branch(name: str) -> None:
    """Delete a branch of the remote, and the one of that name here.

    Raises:
        StorageUnavailableError: the remote cannot be reached, or refuses.
    """
    _remote("push", "--quiet", "origin", "--delete", name)
    with contextlib.suppress(WorkspaceError):  # there is none, or it is checked out
        _git("branch", "--quiet", "-D", name)


def remote_url() -> str:
    """Where `origin` is."""
    return _git("remote", "get-url", "origin").strip()


def holds(path: str) -> bool:
    """Whether git tracks a file, or files below a folder."""
    return bool(_lines("ls-files", "-z", "--", path))


def head() -> str:
    """The present commit, 40 hexadecimal digits."""
    return _git("rev-parse", "HEAD").strip()


def _belongs(path: str) -> bool:
    return path in _PART_OF_A_RUN or path.endswith(".dvc") or path.endswith(".gitignore")


def _lines(*arguments: str) -> list[str]:
    """Names that git separates by NUL."""
    return _git(*arguments).split("\0")[:-1]


def _remote(*arguments: str) -> None:
    try:
        _git(*arguments)
    except WorkspaceError as error:
        raise StorageUnavailableError(str(error)) from None


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *_identity(arguments), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise WorkspaceError(f"git cannot be run: {error}") from None
    if result.returncode != 0:
        reason = " ".join((result.stderr or result.stdout).split())
        raise WorkspaceError(f"`git {arguments[0]}` failed: {reason}")
    return result.stdout


def _identity(arguments: tuple[str, ...]) -> list[str]:
    """A worker's account has no name in git; a person's has."""
    if arguments[0] != "commit" or "GIT_AUTHOR_EMAIL" in os.environ:
        return []
    configured = subprocess.run(["git", "config", "user.email"], capture_output=True, check=False)
    return [] if configured.returncode == 0 else ["-c", "user.name=Refit", "-c", "user.email=refit@localhost"]
