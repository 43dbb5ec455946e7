"""Which code made what is here: the commit, whether the files are exactly that commit's, and how they differ.

    state = git_state()            state.is_exact: the commit alone says it
    untracked_source()             what Python could import and no commit holds

Fails closed. `none` is said only where there is no repository; what git cannot or will not tell (it is not installed,
"dubious ownership", a damaged repository, no answer in time) is `unknown`. Neither passes for clean.
"""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import WorkspaceError
from ..files import sha256_of_json
from ..gate.evidence import GitState

NONE = "none"
UNKNOWN = "unknown"
_SOURCE = ("*.py", "*.so", "*.pyd")
_NO_CODE = ":(top,exclude,glob)**/.dvc/config"
"""DVC's settings: each person's own, when a version is made again; a secret may be among them, and patches are kept."""
_PACKAGES = ("flows", "tasks", "refit")
_INSTALLED = "site-packages"  # of an environment that git does not ignore: lineage/packages.txt names what is in it
_SECONDS = 120.0


@dataclass(frozen=True)
class Provenance:
    """What git says of the present folder."""

    commit: str
    """40 hexadecimal digits, `none` or `unknown`."""
    is_dirty: bool | None
    """Whether the code is another than the commit's; None: nobody can tell."""
    diff: str
    """From the commit to what is here, untracked source included; for `git apply`."""

    @property
    def is_exact(self) -> bool:
        """Whether the commit alone says what runs here."""
        return doubt_of(self.evidence) is None

    @property
    def tags(self) -> dict[str, str]:
        """For a version in the registry."""
        return {"refit.git_commit": self.commit, "refit.git_dirty": str(self.evidence.dirty).lower()}

    @property
    def evidence(self) -> GitState:
        """For the evidence bundle."""
        return GitState(self.commit, "unknown" if self.is_dirty is None else self.is_dirty, sha256_of_json(self.diff))


def doubt_of(git: GitState) -> str | None:
    """Why the `git` entry of a bundle does not say exactly which code it was, and what to do; None: it does."""
    if git.commit == NONE:
        return (
            "it was made outside of git, so nothing says which code made it: commit the project to a git repository "
            "where it was trained, then `refit register` names that commit"
        )
    if git.commit == UNKNOWN or not isinstance(git.dirty, bool):
        return (
            "git did not tell which code made it: see what `git status` says where it was trained, commit, then "
            "`refit register` names that commit"
        )
    if git.dirty:
        return (
            f"it was made with changes that commit {git.commit[:12]} does not hold: commit them where it was "
            "trained, then `refit register` names the new commit; or train with `refit retrain --commit`"
        )
    return None


def git_state() -> Provenance:
    """The state of the present folder's repository; never an error."""
    if not _is_in_repository():
        return Provenance(NONE, None, "")
    commit = UNKNOWN
    try:
        commit = _git("rev-parse", "--verify", "HEAD").decode().strip()
        diff = _difference(untracked_source())
    except (WorkspaceError, OSError, UnicodeDecodeError):
        return Provenance(commit, None, "")
    return Provenance(commit, bool(diff), diff)


def untracked_source() -> list[str]:
    """Files that Python could import and git does not hold, as paths from here.

    Anywhere in the repository, unless git ignores them; in our own packages, which are on the path of every stage,
    those that git ignores as well. Byte code is none.

    Raises:
        WorkspaceError: git cannot tell.
    """
    listing = ("ls-files", "--others", "-z")
    anywhere = _git(*listing, "--exclude-standard", "--", *(f":(top){kind}" for kind in _SOURCE))
    own = _git(*listing, "--", *(f"{package}/{kind}" for package in _PACKAGES for kind in _SOURCE))
    found = {os.fsdecode(name) for name in (anywhere + own).split(b"\0") if name}
    return sorted(path for path in found if _INSTALLED not in Path(path).parts)


def git_branch() -> str | None:
    """The present branch; None: a commit without one, or no repository."""
    try:
        return _git("symbolic-ref", "--quiet", "--short", "HEAD").decode().strip()
    except (WorkspaceError, UnicodeDecodeError):
        return None


def _is_in_repository() -> bool:
    """Looked for without git, whose "not a git repository" is also what it says of a damaged one."""
    folders = (Path.cwd(), *Path.cwd().parents)
    return "GIT_DIR" in os.environ or any(os.path.lexists(folder / ".git") for folder in folders)


def _difference(untracked: list[str]) -> str:
    """From HEAD to the files here, the untracked ones among them; by a copy of the index, so that the own one stays."""
    with tempfile.TemporaryDirectory(prefix="refit-git-") as folder:
        index, as_binary = Path(folder, "index"), Path(folder, "attributes")
        present = Path(os.fsdecode(_git("rev-parse", "--git-path", "index").removesuffix(b"\n")))
        if present.exists():
            shutil.copyfile(present, index)
        _git("update-index", "-q", "--really-refresh", index=index)  # `assume unchanged` is only assumed
        if untracked:
            names = b"\0".join(os.fsencode(path) for path in untracked)
            add = ("--literal-pathspecs", "add", "--intent-to-add", "--force", "--pathspec-from-file=-")
            _git(*add, "--pathspec-file-nul", index=index, given=names)
        # The plumbing: no setting of a user (prefixes, context, colours, renames) reaches its patches.
        compare = ("diff-index", "--binary", "--no-ext-diff", "--no-textconv", "HEAD", "--", ":(top)", _NO_CODE)
        try:
            return _git(*compare, index=index).decode()
        except UnicodeDecodeError:  # a text that is not UTF-8 travels as a binary file does
            as_binary.write_text("* -diff\n")
            return _git("-c", f"core.attributesFile={as_binary}", *compare, index=index).decode()


def _git(*arguments: str, index: Path | None = None, given: bytes = b"") -> bytes:
    # With sparse checkout on, git looks at files whose `skip worktree` hides changes from it, if they are there.
    command = ["git", "-c", "core.quotePath=true", *(["-c", "core.sparseCheckout=true"] if index else []), *arguments]
    environment = os.environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
    try:
        done = subprocess.run(command, input=given, env=environment, capture_output=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkspaceError(f"git cannot be asked: {error}") from None
    if done.returncode != 0:
        said = " ".join(os.fsdecode(done.stderr).split())
        raise WorkspaceError(f"`{' '.join(['git', *arguments[:1]])}` failed: {said}")
    return done.stdout
