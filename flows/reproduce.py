"""Make a registered version again, from its commit and its data alone, and say whether the same came out.

    found = reproduce("3", say)      found.outcome is identical, equivalent or different

A clean clone of the recorded commit in a temporary folder, `dvc pull`, the training and the evaluation from scratch.
*Identical*: the same digests of weights, card and evaluation. *Equivalent*: not so, but every measure is within its
tolerance. *Different*: anything else. The same bits are promised for one environment class only; what is different
here is said before any time is spent.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.tools import dvc_process
from refit import modality, paths
from refit.errors import EvidenceError, WorkspaceError
from refit.files import sha256_of_file
from refit.gate import evidence
from refit.gate.evidence import Bundle
from refit.params import load_params, read_yaml
from refit.records import as_plain
from refit.registry import versions
from refit.registry.origin import changed_files, patch_of
from refit.registry.probe import without_secrets
from refit.registry.provenance import NONE, UNKNOWN, doubt_of
from refit.registry.records import Version
from refit.registry.tracking import EVIDENCE_TAG
from refit.training.choices import Pinned, pin

TOLERANCES = {
    "accuracy": 0.01,
    "macro_f1": 0.01,
    "expected_calibration_error": 0.02,
    "negative_log_likelihood": 0.05,
}
"""How far a measure may be away for two trainings to count as equivalent: what would not matter to a user, after the
defaults of `gate` in params.yaml."""


Outcome = Literal["identical", "equivalent", "different"]


@dataclass(frozen=True)
class Measure:
    """One measure, as it was and as it came out here, and how far they may be apart."""

    there: float
    here: float
    within: float


@dataclass(frozen=True)
class Reproduction:
    """What came out."""

    version: str  # its address
    commit: str
    outcome: Outcome
    diff_sha256: str | None  # of the changes that were applied to the commit; None: none
    environment: Mapping[str, tuple[object, object]]  # name -> (then, here), where they differ
    different_digests: Mapping[str, tuple[str, str]]
    measures: Mapping[str, Measure]


def reproduce(asked: str, say: Callable[[str], None], folder: Path | None = None) -> Reproduction:
    """Reproduce a version.

    Args:
        asked: a candidate's number, an alias, or an address.
        say: told what is going on, line by line.
        folder: keep the clone there; None: in a temporary folder, removed at the end.

    Raises:
        TrackingError, EvidenceError: the version or its evidence cannot be read.
        WorkspaceError: the commit is not in this repository, or its data cannot be brought.
    """
    settings = load_params().register
    version = versions.find(asked, settings)
    bundle = versions.bundle_of(version, settings)
    commit = bundle.git.commit
    if commit in (NONE, UNKNOWN) or bundle.git.dirty == UNKNOWN:
        raise EvidenceError(f"{version.uri} cannot be made again: {doubt_of(bundle.git)}")
    environment = environment_differences(bundle)
    say(f"{version.uri}: commit {commit[:12]}, evidence {version.tags[EVIDENCE_TAG][:12]}")
    for name, (there, here) in environment.items():
        say(f"environment: {name} was {there}, here it is {here}; equal bits are not promised")
    if not environment:
        say("environment: the same class, equal bits are promised")
    with tempfile.TemporaryDirectory(prefix="refit-reproduce-") as temporary:
        clone = folder or Path(temporary, "project")
        project = _clone(commit, clone)
        _apply_changes(version, bundle, clone, say)
        _require_lock(bundle, project)
        chosen = bundle.environment
        pin(
            project,
            Pinned(precision=chosen.precision, num_threads=chosen.num_threads, stopped_after=chosen.stopped_after),
        )
        _bring_data(Path.cwd(), project, say)
        _train(project, say)
        digests, measures = compared(bundle, project)
    changes = bundle.git.diff_sha256 if bundle.git.dirty else None
    return Reproduction(version.uri, commit, judge(digests, measures), changes, environment, digests, measures)


def environment_differences(bundle: Bundle) -> dict[str, tuple[object, object]]:
    """Name -> (then, here) of what has to be equal for equal bits. What was not recorded then is not compared."""
    from refit.training.determinism import be_deterministic, environment

    settings, data, recorded = bundle.params["finetune"], bundle.params["data"], bundle.environment
    assert isinstance(settings, Mapping)
    assert isinstance(data, Mapping)
    device = be_deterministic(recorded.num_threads, "auto" if settings["device"] == "cuda" else settings["device"])
    packages = modality.examples(data["modality"]).REQUIRES
    made_in = environment(device, recorded.precision, packages)
    found = dataclasses.replace(made_in, stopped_after=recorded.stopped_after)
    then, here = dataclasses.asdict(recorded), dataclasses.asdict(found)
    if recorded.processor is None:
        here["processor"] = None  # nobody wrote it down then
    is_recorded = bundle.environment.numpy is not None  # since format 2 of the card
    return {
        name: (then[name], here[name])
        for name in here
        if then[name] != here[name] and (is_recorded or then[name] is not None)
    }


def compared(bundle: Bundle, project: Path) -> tuple[dict[str, tuple[str, str]], dict[str, Measure]]:
    """Digests that differ, (then, here), and the measures. The clone's files are as its own commit writes them."""
    lineage = json.loads((project / paths.MODEL_CARD).read_text())["lineage"]
    overall = json.loads((project / paths.EVALUATION).read_text())["overall"]
    here = {
        **{name: lineage[name] for name in ("data_digest", "split_digest", "base_sha256")},
        "weights_sha256": sha256_of_file(project / paths.MODEL_WEIGHTS),
        "card_sha256": sha256_of_file(project / paths.MODEL_CARD),
        "evaluation_sha256": sha256_of_file(project / paths.EVALUATION),
    }
    there = as_plain(bundle.lineage)
    digests = {name: (str(there[name]), here[name]) for name in here if there[name] != here[name]}
    measures = {
        name: Measure(bundle.metrics[name].value, overall[name]["value"], limit) for name, limit in TOLERANCES.items()
    }
    return digests, measures


def judge(digests: Mapping[str, object], measures: Mapping[str, Measure]) -> Outcome:
    """The outcome, from what is different."""
    if not digests:
        return "identical"
    if {"data_digest", "split_digest", "base_sha256"} & digests.keys():
        return "different"  # it was not the same thing that was trained again
    near = all(abs(row.there - row.here) <= row.within for row in measures.values())
    return "equivalent" if near else "different"


def as_text(found: Reproduction) -> str:
    """The outcome for a person."""
    lines = [f"{found.outcome.upper()}  {found.version}"]
    if found.diff_sha256:
        lines.append(f"  commit {found.commit[:12]} with the uncommitted changes {found.diff_sha256[:12]}")
    lines += [
        f"  {name}: {then[:12]} there, {here[:12]} here" for name, (then, here) in found.different_digests.items()
    ]
    lines += [
        f"  {name}: {row.there:.6f} there, {row.here:.6f} here (tolerance {row.within:g})"
        for name, row in found.measures.items()
    ]
    return "\n".join(lines)


def _clone(commit: str, clone: Path) -> Path:
    """Gives the project's folder in the clone: it may be one below the repository's."""
    top, below, *_ = _run(["git", "rev-parse", "--show-toplevel", "--show-prefix"], Path.cwd()).split("\n")
    known = subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False)
    if known.returncode != 0:
        raise WorkspaceError(f"commit {commit[:12]} is not in this repository; `git fetch` the branch that holds it")
    _run(["git", "clone", "--quiet", "--no-checkout", top, str(clone)], Path.cwd())
    _run(["git", "checkout", "--quiet", "--detach", commit], clone)
    return clone / below


def _apply_changes(version: Version, bundle: Bundle, clone: Path, say: Callable[[str], None]) -> None:
    """What was not committed when it was trained lies with the run."""
    patch = patch_of(version, bundle, load_params().register)
    if not patch:
        return
    touched = ", ".join(f"{file.path} (+{file.added} -{file.removed})" for file in changed_files(patch))
    say(
        f"with the changes that commit {bundle.git.commit[:12]} does not hold, to {touched}: lineage/git.diff of run "
        f"{version.run_id}, SHA-256 {bundle.git.diff_sha256[:12]} as in the evidence"
    )
    file = clone / "uncommitted.diff"
    file.write_text(patch, encoding="utf-8", newline="")
    _run(["git", "apply", "--whitespace=nowarn", file.name], clone)
    file.unlink()


def _require_lock(bundle: Bundle, project: Path) -> None:
    lock = project / paths.LOCK
    found, recorded = sha256_of_file(lock) if lock.exists() else "", bundle.dvc_lock_sha256
    evidence.require_same_files({"dvc.lock": found}, {"dvc.lock": recorded}, str(project))


def _bring_data(own: Path, project: Path, say: Callable[[str], None]) -> None:
    """Alone among all that is done in the clone it needs this person's secrets: no code of the clone may run, and where
    they go is not for a commit or a patch to say.
    """
    environment = os.environ | {"PYTHONSAFEPATH": "1"}  # or `python -m dvc` would run a dvc.py of the clone
    root = _run([sys.executable, "-m", "dvc", "root"], own, environment).strip()  # from there: here, or further up
    with _own_settings(own / root / ".dvc", project / root / ".dvc"):
        remotes = _run([sys.executable, "-m", "dvc", "remote", "list"], project, environment).strip()
        if not remotes:
            say("no DVC remote: all data is made anew from the commit")
            return
        _require_no_addresses(own / root, project / root)
        say("dvc pull")
        _run([sys.executable, "-m", "dvc", "pull", "--allow-missing"], project, environment)


def _require_no_addresses(own: Path, theirs: Path) -> None:
    """What DVC tracks may bring settings of its own, as .dvc/config: of another repository, of where it came from."""
    for file in sorted(theirs.rglob("*.dvc")):
        mine = own / file.relative_to(theirs)
        if file.is_file() and _content(file) != _content(mine) and {"repo", "fs_config"} & set(_keys(read_yaml(file))):
            raise WorkspaceError(
                f"{file.relative_to(theirs)} of the version says itself how its data is brought, and would get your "
                f"secrets: read it, and if it is right have the same file in {own}"
            )


def _keys(content: object) -> Iterator[object]:
    """Of all mappings in it."""
    if isinstance(content, Mapping):
        yield from content
    for inner in content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ():
        yield from _keys(inner)


@contextmanager
def _own_settings(own: Path, theirs: Path) -> Iterator[None]:
    """DVC's settings in the clone are this person's; afterwards they are the commit's again, and of a person's own ones
    only where the cache is: what was linked from there is known by it.
    """
    theirs.mkdir(exist_ok=True)
    files = [theirs / "config", theirs / "config.local"]
    of_commit, of_person = ([_content(folder / file.name) for file in files] for folder in (theirs, own))
    try:
        for file, content in zip(files, of_person, strict=True):
            file.write_bytes(content)
        yield
    finally:
        cache = re.search(rb"^[ \t]*\[cache\].*?(?=^[ \t]*\[|\Z)", of_person[1], re.MULTILINE | re.DOTALL)
        for file, content in zip(files, (of_commit[0], cache[0] if cache else b""), strict=True):
            file.write_bytes(content)


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def _train(project: Path, say: Callable[[str], None]) -> None:
    """What leads to the training as far as it is missing; the training and the evaluation in any case."""
    anew = ["--force", "--single-item"]
    for stage, how in (("validate", []), ("fetch", []), ("finetune", anew), ("evaluate", anew)):
        say(f"dvc repro {' '.join([*how, stage])}")
        with tempfile.TemporaryDirectory(prefix="refit-home-") as home:
            # It may be code that somebody else wrote, with changes that nobody has read.
            _run([sys.executable, "-m", "dvc", "repro", *how, stage], project, without_secrets(home), is_group=True)


def _run(
    command: list[str], folder: Path, environment: Mapping[str, str] | None = None, *, is_group: bool = False
) -> str:
    """What a command says. When this process is stopped so is the command: as a group, with all that it started; else
    it shares the terminal, and may ask for a password there.
    """
    environment = os.environ if environment is None else environment
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    # The code that runs is the clone's, wherever this process has its own from.
    env = {name: value for name, value in environment.items() if name != "PYTHONPATH"} | {"PATH": path}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=is_group,
    ) as process:
        try:
            said, errors = process.communicate()
        except BaseException:
            dvc_process.stop(process) if is_group else process.kill()
            raise
    if process.returncode != 0:
        last = [line for line in (errors + said).splitlines() if line.strip()][-3:]
        name = " ".join(Path(command[0]).name if index == 0 else word for index, word in enumerate(command))
        raise WorkspaceError(f"`{name}` failed: {' '.join(' '.join(last).split())}")
    return said
