"""Stage `fetch`: brings the base checkpoint here, verified, as safetensors.

    python -m tasks.fetch         checkpoint.uri -> checkpoints/base.safetensors, checkpoints/base.json

`checkpoint.uri` is one of

    torchvision:ResNet18_Weights.IMAGENET1K_V1    published weights, with the preprocessing they were trained with
    https://example.org/model.safetensors         any address; what has arrived survives an interruption
    file:base/glyphs.safetensors                  a file; must be pinned by `checkpoint.sha256`
    scratch                                       random weights: an empty checkpoint

A safetensors file is taken over byte for byte. A PyTorch file is converted in a child process that may read
tensors and nothing else (`refit/checkpoint/convert.py`). base.json is the checkpoint's card
(`refit/checkpoint/card.py`).
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refit import paths
from refit.checkpoint.card import BaseCard
from refit.checkpoint.download import DOWNLOADS, download
from refit.errors import ERRORS_BY_EXIT_CODE, CheckpointError, RefitError, run_stage
from refit.files import publishing, sha256_of_file
from refit.modality.contract import Described
from refit.params import Checkpoint, load_params, without_credentials
from refit.progress import say
from refit.records import as_record, parse_record, publish_record

_EMBEDDED_CARD = Path("base/glyphs.json")  # of the checkpoint that comes with Refit; read for a hint only


def main() -> None:
    params = load_params()
    checkpoint = params.checkpoint
    if checkpoint.uri == "scratch":
        _publish_empty()
        _publish_card(checkpoint, None, "none", Described())
        return
    source, described = _locate(checkpoint, params.data.modality)
    source_sha256 = verify(source, checkpoint)
    is_safetensors = _is_safetensors(source)
    with publishing(paths.BASE_WEIGHTS) as partial:
        if is_safetensors:
            shutil.copyfile(source, partial)
        else:
            _in_child("convert", str(source), str(partial))
    _publish_card(checkpoint, source_sha256, "safetensors" if is_safetensors else "torch", described)


def verify(source: Path, checkpoint: Checkpoint) -> str:
    """Check the file's full SHA-256 against the pin and give it back. A download that fails it is removed.

    Raises:
        CheckpointError: the digests differ, or a local file is not pinned.
    """
    found = sha256_of_file(source)
    if checkpoint.sha256 is None:
        if checkpoint.uri.startswith("file:"):
            raise CheckpointError(
                f"{checkpoint.uri} is not pinned, and DVC does not watch it; add to params.yaml under `checkpoint`:  "
                f"sha256: {found}"
            )
        say(f"warning: the checkpoint is not pinned; add to params.yaml under `checkpoint`:  sha256: {found}")
    elif found != checkpoint.sha256:
        if source.is_relative_to(DOWNLOADS):
            source.unlink()  # so that the next run asks the server again
        raise CheckpointError(
            f"{without_credentials(checkpoint.uri)} has SHA-256 {found}, but `checkpoint.sha256` in params.yaml asks "
            f"for {checkpoint.sha256}{_way_out(checkpoint)}"
        )
    return found


def _way_out(checkpoint: Checkpoint) -> str:
    embedded = json.loads(_EMBEDDED_CARD.read_text())["sha256"] if _EMBEDDED_CARD.is_file() else None
    if checkpoint.sha256 == embedded and Path(checkpoint.uri).name != _EMBEDDED_CARD.with_suffix(".safetensors").name:
        return ", which is the embedded checkpoint; set checkpoint.sha256 to null or to that file's digest"
    return "; it was changed or damaged. If you meant to change it, put the new one there"


def _locate(checkpoint: Checkpoint, modality: str) -> tuple[Path, Described]:
    """The file behind the URI, downloaded where needed, and what is known of it beforehand."""
    kind, _, rest = checkpoint.uri.partition(":")
    if kind == "file":
        source = Path(rest)
        if not source.is_file():
            raise CheckpointError(f"the checkpoint {source} does not exist; set `checkpoint.uri` in params.yaml")
        return source, Described()
    if kind == "torchvision":
        resolved = json.loads(_in_child("resolve", modality, rest))
        source = download(resolved["url"])
        _check_published_prefix(source)
        return source, as_record(resolved["described"], Described, CheckpointError, checkpoint.uri)
    if kind == "http" and checkpoint.sha256 is None:
        raise CheckpointError(
            f"{without_credentials(checkpoint.uri)} is not encrypted; use https, or pin it with `checkpoint.sha256`"
        )
    return download(checkpoint.uri), Described()


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


def _publish_empty() -> None:
    with publishing(paths.BASE_WEIGHTS) as partial:
        save_file({}, partial)


def _publish_card(
    checkpoint: Checkpoint, source_sha256: str | None, format_: Literal["safetensors", "torch", "none"], said: Described
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
    card = BaseCard(
        uri=uri,
        source_sha256=source_sha256,
        sha256=sha256_of_file(paths.BASE_WEIGHTS),
        pinned=checkpoint.sha256 is not None,
        format=format_,
        num_tensors=num_tensors,
        architecture=said.architecture or embedded.architecture,
        preprocessing=said.preprocessing or embedded.preprocessing,
        classes=said.classes or embedded.classes,
    )
    publish_record(paths.BASE_CARD, card)
    say(f"{uri}: {num_tensors} tensors, SHA-256 {card.sha256[:12]}… in {paths.BASE_WEIGHTS}")


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
