"""Stage `fetch`: brings the base checkpoint here, verified, as safetensors.

    python -m tasks.fetch         checkpoint.uri -> checkpoints/base.safetensors, checkpoints/base.json

`checkpoint.uri` is one of

    torchvision:ResNet18_Weights.IMAGENET1K_V1    published weights, with the preprocessing they were trained with
    https://example.org/model.safetensors         any address; what has arrived survives an interruption
    s3://bucket/model.pth, gs://bucket/model.pth  an object in a bucket (the extras `s3` and `gs`)
    hf:owner/repo/model.safetensors               a file on a model hub; @revision after the repo
    hf:owner/repo@<commit>                        a whole repository, for networks whose weights are several files
    models:/digits@champion, models:/digits/3     a registered version of Refit, to go on from
    file:base/glyphs.safetensors                  a file; must be pinned by `checkpoint.sha256`
    file:bert, file:bert.zip                      a folder or an archive, as a whole repository; pinned as well
    scratch                                       random weights: an empty checkpoint

A safetensors file is taken over byte for byte. A PyTorch file is converted in a child process that may read
tensors and nothing else (`refit/checkpoint/convert.py`). base.json is the checkpoint's card
(`refit/checkpoint/card.py`): for an address that moves it names what was found behind it.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refit import modality, paths
from refit.checkpoint import folder, hub
from refit.checkpoint.card import BaseCard, Format
from refit.checkpoint.download import DOWNLOADS, download, folder_of
from refit.errors import ERRORS_BY_EXIT_CODE, CheckpointError, RefitError, run_stage
from refit.files import publishing, sha256_of_file
from refit.modality.contract import Described
from refit.params import Checkpoint, Params, load_params, without_credentials
from refit.progress import say
from refit.records import as_record, parse_record, publish_record

_EMBEDDED_CARDS = Path("base")  # of the checkpoints that come with Refit; read for a hint only


@dataclass(frozen=True)
class Source:
    """The file behind `checkpoint.uri`, on this machine, and what is known of it beforehand."""

    file: Path
    parts: Mapping[str, Path] | None = None  # the files, by name, where it is several
    said: Described = field(default_factory=Described)
    version: str | None = None  # what an address that moves stood for
    is_registered: bool = False  # by Refit itself


def main() -> None:
    params = load_params()
    checkpoint = params.checkpoint
    if checkpoint.uri == "scratch":
        with publishing(paths.BASE_WEIGHTS) as partial:
            save_file({}, partial)
        _publish_card(checkpoint, None, None, "none", None)
        return
    source = _locate(params)
    if source.parts is not None or source.file.is_dir():
        _take_folder(source, params)
        return
    if _patterns(params) and folder.is_folder(source.file):
        with folder.unpacked(source.file, _patterns(params)) as inside:
            _take_folder(replace(source, file=inside), params)
        return
    source_sha256 = verify(source, checkpoint)
    key = None
    with publishing(paths.BASE_WEIGHTS) as partial:
        if is_safetensors := _is_safetensors(source.file):
            _require_no_key(checkpoint)
            shutil.copyfile(source.file, partial)
        else:
            key = _convert(source.file, partial, checkpoint.key)
    format_: Format = "refit" if source.is_registered else "safetensors" if is_safetensors else "torch"
    _publish_card(checkpoint, source, source_sha256, format_, key)


def _patterns(params: Params) -> tuple[str, ...]:
    """Of the files that a checkpoint of several has; none: it is always one."""
    return tuple(modality.settings(params.data.modality).CHECKPOINT_FILES)


def _take_folder(source: Source, params: Params) -> None:
    """Weights in several files: the modality knows which, and what else they say."""
    parts = folder.files_in(source.file, _patterns(params)) if source.parts is None else source.parts
    with folder.taken(parts) as copy:
        source_sha256 = verify(source, params.checkpoint, folder.digest_of(copy))
        _require_no_key(params.checkpoint)
        said = json.loads(_in_child("folder", params.data.modality, str(copy), str(paths.BASE_WEIGHTS)))
    described = as_record(said, Described, CheckpointError, params.checkpoint.uri)
    _publish_card(params.checkpoint, replace(source, said=described), source_sha256, "folder", None)


def verify(source: Source, checkpoint: Checkpoint, found: str | None = None) -> str:
    """Check the full SHA-256 (`found`, or the file's) against the pin and give it back. A download that fails it is
    removed.

    Raises:
        CheckpointError: the digests differ, or a local file is not pinned.
    """
    found = found or sha256_of_file(source.file)
    now = f" (now {source.version})" if source.version else ""
    if checkpoint.sha256 is None:
        if checkpoint.uri.startswith("file:"):
            raise CheckpointError(
                f"{checkpoint.uri} is not pinned, and DVC does not watch it; add to params.yaml under `checkpoint`:  "
                f"sha256: {found}"
            )
        say(f"warning: the checkpoint{now} is not pinned; add to params.yaml under `checkpoint`:  sha256: {found}")
    elif found != checkpoint.sha256:
        for file in (source.file, *(source.parts or {}).values()):
            if file.is_relative_to(DOWNLOADS):
                file.unlink(missing_ok=True)  # so that the next run asks the server again
        raise CheckpointError(
            f"{without_credentials(checkpoint.uri)}{now} has SHA-256 {found}, but `checkpoint.sha256` in params.yaml "
            f"asks for {checkpoint.sha256}{_way_out(checkpoint)}"
        )
    return found


def _way_out(checkpoint: Checkpoint) -> str:
    embedded = {json.loads(card.read_text())["sha256"]: card.stem for card in sorted(_EMBEDDED_CARDS.glob("*.json"))}
    if embedded.get(checkpoint.sha256, Path(checkpoint.uri).stem) != Path(checkpoint.uri).stem:
        return ", which is an embedded checkpoint; set checkpoint.sha256 to null or to that file's digest"
    if checkpoint.uri.startswith("models:/") and "@" in checkpoint.uri:
        return "; the address moves: name the version, or put the new digest there"
    return "; it was changed or damaged. If you meant to change it, put the new one there"


def _locate(params: Params) -> Source:
    checkpoint = params.checkpoint
    kind, _, rest = checkpoint.uri.partition(":")
    if kind == "file":
        if not Path(rest).is_file() and not (_patterns(params) and Path(rest).is_dir()):
            raise CheckpointError(f"the checkpoint {rest} does not exist; set `checkpoint.uri` in params.yaml")
        return Source(Path(rest))
    if kind == "torchvision":
        resolved = json.loads(_in_child("resolve", params.data.modality, rest))
        file = download(resolved["url"])
        _check_published_prefix(file)
        return Source(file, said=as_record(resolved["described"], Described, CheckpointError, checkpoint.uri))
    if kind == "models":
        return _registered(params)
    if kind == "hf":
        if hub.is_repository(checkpoint.uri):
            return _repository(params)
        file, version = hub.fetch(checkpoint.uri, is_pinned=checkpoint.sha256 is not None)
        return Source(file, version=version)
    if kind == "http" and checkpoint.sha256 is None:
        raise CheckpointError(
            f"{without_credentials(checkpoint.uri)} is not encrypted; use https, or pin it with `checkpoint.sha256`"
        )
    return Source(download(checkpoint.uri))


def _repository(params: Params) -> Source:
    """The files of a repository on a hub that the modality reads."""
    checkpoint = params.checkpoint
    parts, version = hub.fetch_repository(checkpoint.uri, _patterns(params), is_pinned=checkpoint.sha256 is not None)
    return Source(next(iter(parts.values())), parts, version=version)


def _registered(params: Params) -> Source:
    """The weights of a version that Refit registered, of this project or of another one in the same MLflow.

    Raises:
        TrackingError, EvidenceError: there is no such version, or it is not what its evidence names.
        CheckpointError: it reads another kind of example.
    """
    from refit.model.card import read_card
    from refit.registry import versions

    uri = params.checkpoint.uri
    name = re.split(r"[/@]", uri.removeprefix("models:/"))[0]
    settings = replace(params.register, model_name=name.removesuffix("-candidates"))
    version = versions.find(uri, settings)
    bundle = versions.bundle_of(version, settings)
    model = versions.fetch_bare(version, bundle, settings, folder_of(version.uri))
    card = read_card(model.card)
    if card.modality != params.data.modality:
        raise CheckpointError(f"{version.uri} reads {card.modality}, and `data.modality` is {params.data.modality}")
    said = Described(architecture=card.architecture, preprocessing=card.preprocessing, classes=card.classes)
    return Source(model.weights, said=said, version=version.uri, is_registered=True)


def _check_published_prefix(source: Path) -> None:
    """torchvision puts the first 8 hexadecimal digits of the SHA-256 into the name of its files."""
    published = re.search(r"-([0-9a-f]{8})\.", source.name)
    found = sha256_of_file(source)
    if published and not found.startswith(published[1]):
        source.unlink()
        raise CheckpointError(f"{source.name} arrived with SHA-256 {found}, which is not what was published; try again")


def _is_safetensors(source: Path) -> bool:
    """Safetensors starts with the length of its JSON header; zip and pickle files cannot look like that."""
    with source.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:9] == b"{"


def _require_no_key(checkpoint: Checkpoint) -> None:
    if checkpoint.key is not None:
        raise CheckpointError(
            "`checkpoint.key` has no effect on a safetensors file, which holds tensors only; set it to null (a part of "
            "them is chosen by `checkpoint.prefix`)"
        )


def _convert(source: Path, target: Path, key: str | None) -> str:
    """Have a PyTorch file converted; gives where in it the weights lay."""
    taken = json.loads(_in_child("convert", str(source), str(target), *([] if key is None else [key])))
    if taken["others"]:
        say(f"the weights under `{taken['key']}` are taken; the file also has {', '.join(taken['others'])}")
    return str(taken["key"])


def _publish_card(
    checkpoint: Checkpoint,
    source: Source | None,
    source_sha256: str | None,
    format_: Format,
    key: str | None,
) -> None:
    uri = without_credentials(checkpoint.uri)
    try:
        with safe_open(paths.BASE_WEIGHTS, framework="numpy") as weights:
            num_tensors = len(weights.keys())
            head = (weights.metadata() or {}).get("refit", "{}")
    except (SafetensorError, ValueError) as error:
        paths.BASE_WEIGHTS.unlink()
        raise CheckpointError(f"{uri} is not a valid safetensors file: {error}") from None
    embedded = parse_record(head.encode(), Described, CheckpointError, f"what {uri} says of itself")
    said = source.said if source else Described()
    card = BaseCard(
        uri=uri,
        version=source.version if source else None,
        source_sha256=source_sha256,
        sha256=sha256_of_file(paths.BASE_WEIGHTS),
        pinned=checkpoint.sha256 is not None,
        format=format_,
        key=key,
        num_tensors=num_tensors,
        architecture=said.architecture or embedded.architecture,
        preprocessing=said.preprocessing or embedded.preprocessing,
        classes=said.classes or embedded.classes,
    )
    publish_record(paths.BASE_CARD, card)
    now = f" ({card.version})" if card.version else ""
    say(f"{uri}{now}: {num_tensors} tensors, SHA-256 {card.sha256[:12]}… in {paths.BASE_WEIGHTS}")


def _in_child(*arguments: str) -> str:
    """Run `refit.checkpoint.convert`, which needs torch, in a process that knows no secrets and is gone afterwards."""
    with tempfile.TemporaryDirectory() as home:
        child = subprocess.run(
            [sys.executable, "-m", "refit.checkpoint.convert", *arguments],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "HOME": home, "LANG": "C.UTF-8"},
            check=False,
        )
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"the child process died with status {child.returncode}"]
        error_type = ERRORS_BY_EXIT_CODE.get(child.returncode, RefitError)
        raise (CheckpointError if error_type is RefitError else error_type)(lines[-1].removeprefix("error: "))
    return child.stdout


if __name__ == "__main__":
    run_stage(main)
