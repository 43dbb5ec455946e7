"""What is wrong with params.yaml, in words: all at once, each with the key, what was found and what is allowed."""

import dataclasses
import difflib
import re
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import ErrorDetails

from .addresses import USERINFO, refusal_of_checkpoint, refusal_of_source, without_credentials
from .sections import OWN_NETWORK, Params

OR_AUTO = "literal['auto']"
"""pydantic's name of the word that may stand for a number."""

_NOT_KEYS = ("str", "int", "float", "tuple[str, ...]", "nullable")
_NUMBERS_OR_AUTO = ("constrained-int", "constrained-float")


def describe(detail: ErrorDetails, adapter: TypeAdapter[Any], section: str | None) -> str:
    """One thing that pydantic complains of; `section` is where the adapter's type stands in params.yaml."""
    location = [part for part in detail["loc"] if part not in (*_NOT_KEYS, *_NUMBERS_OR_AUTO)]
    key = ".".join(str(part) for part in (section, *location) if part is not None)
    match detail["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            known = _known_keys(adapter._type, location[:-1])
            return f"unknown key `{key}`{nearest(str(location[-1]), known)}"
        case "missing" | "missing_keyword_only_argument" | "missing_argument":
            return f"`{key}` is missing"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
            found = str(detail["input"])
            hint = nearest(found, allowed)
            shown = "" if hint and len(allowed) > 12 else f"; allowed: {', '.join(allowed)}"
            return f"`{key}` is {detail['input']!r}, which is not known{hint}{shown}"
        case "dataclass_type" | "dataclass_exact_type":
            return f"`{key}` must be a section with keys, found {detail['input']!r}"
    message = detail["msg"].removeprefix("Input should ").removeprefix("String should ")
    or_auto = ", or auto" if detail["loc"][-1] in _NUMBERS_OR_AUTO else ""
    return f"`{key}` is {detail['input']!r}, it should {message}{or_auto}"


def _known_keys(section: Any, location: list[Any]) -> list[str]:
    for part in location:
        section = next(field.type for field in dataclasses.fields(section) if field.name == part)
    return [field.name for field in dataclasses.fields(section)]


def nearest(found: str, known: list[str]) -> str:
    close = difflib.get_close_matches(found, known, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else ""


def contradictions(params: Params, settings: Any) -> list[str]:
    """What pydantic cannot see: settings that exclude each other, or that would have no effect."""
    problems = []
    if params.data.test_fraction + params.data.val_fraction >= 1.0:
        problems.append("`data.test_fraction` and `data.val_fraction` leave nothing to train on")
    problems += _modality_contradictions(params, settings)
    labels = params.validate.labels
    if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels)):
        problems.append("`validate.labels` must be null or at least two different labels")
    if USERINFO.search(params.register.tracking_uri):
        problems.append(
            "`register.tracking_uri` holds a user or password; put the whole address into the environment variable "
            "MLFLOW_TRACKING_URI instead"
        )
    if refusal := refusal_of_source(without_credentials(params.data.source)):
        problems.append(refusal)
    if labels is not None and (both := sorted(set(labels) & set(params.validate.retired_labels))):
        problems.append(f"`validate.labels` allows {', '.join(both)}, which `validate.retired_labels` gives up")
    return (
        problems
        + _finetune_contradictions(params)
        + _checkpoint_contradictions(params, bool(settings.CHECKPOINT_FILES))
    )


def _modality_contradictions(params: Params, settings: Any) -> list[str]:
    """Names that the modality would have to know, and what it says of its own settings."""
    model = params.finetune.model  # the user's own, module:factory, is looked for where it is used
    is_own = re.fullmatch(OWN_NETWORK, model)
    named = [] if is_own else [("finetune.model", model, list(settings.ARCHITECTURES))]
    named += [("gate.slices", name, list(settings.SLICES)) for name in params.gate.slices]
    blends = [name for name in ("mixup", "cutmix") if getattr(params.finetune, name) and name not in settings.MIXES]
    return (
        [
            f"`{key}` is {found!r}, which is not known{nearest(found, known) or '; allowed: ' + ', '.join(known)}"
            for key, found, known in named
            if found not in known
        ]
        + [
            f"`finetune.{name}` has no meaning for `data.modality: {params.data.modality}`; set it to 0"
            for name in blends
        ]
        + settings.contradictions(params.of_modality, params.checkpoint.uri == "scratch")
    )


def _finetune_contradictions(params: Params) -> list[str]:
    finetune = params.finetune
    problems = []
    if finetune.shards & (finetune.shards - 1):
        problems.append(f"`finetune.shards` is {finetune.shards}; it should be a power of two, such as 4")
    if finetune.batch_size != "auto" and finetune.batch_size < 2 * finetune.shards:
        problems.append("`finetune.batch_size` must be at least twice `finetune.shards`: batch norm needs two examples")
    if finetune.strategy == "head":
        problems += [
            f"`finetune.{name}` has no effect with `finetune.strategy: head`; set it to {off}"
            for name, found, off in (
                ("freeze_until", finetune.freeze_until, "null"),
                ("mixup", finetune.mixup, "0"),
                ("cutmix", finetune.cutmix, "0"),
                ("layer_decay", finetune.layer_decay, "1"),
            )
            if found not in (None, 0.0, 1.0)
        ]
    if finetune.strategy == "full" and finetune.freeze_until is None and finetune.views != 1:
        problems.append("`finetune.views` has no effect where no layer is frozen; set it to 1")
    return problems


def _checkpoint_contradictions(params: Params, takes_folders: bool) -> list[str]:
    checkpoint = params.checkpoint
    if checkpoint.uri != "scratch":
        refusal = refusal_of_checkpoint(checkpoint.uri, takes_folders)
        return [refusal] if refusal else []
    problems = [
        f"`checkpoint.{name}` has no effect with `checkpoint.uri: scratch`; set it to null"
        for name in ("sha256", "key", "prefix")
        if getattr(checkpoint, name) is not None
    ]
    finetune = params.finetune
    if finetune.strategy not in ("full", "auto"):
        problems.append(f"`finetune.strategy: {finetune.strategy}` would leave random weights as they are; use `full`")
    if finetune.freeze_until is not None:
        problems.append("`finetune.freeze_until` would leave random weights as they are; set it to null")
    return problems
