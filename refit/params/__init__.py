"""params.yaml -> one typed, frozen `Params` object. The only reader of params.yaml, and of YAML at all.

    params = load_params()
    params.finetune.learning_rate

All mistakes are collected and reported together. Every key must be there: the values live in params.yaml and
nowhere else. `python -m refit.params` writes params.schema.json, which editors use to complete and check
params.yaml while it is being typed.
"""

import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import ParamsError
from ..files import sha256_of_json
from ..paths import PARAMS
from .addresses import moves, without_credentials
from .edit import use
from .problems import OR_AUTO, contradictions, describe, nearest
from .sections import (
    SPLITS,
    STRICT,
    Checkpoint,
    Count,
    Data,
    Deploy,
    Evaluate,
    Finetune,
    Flow,
    Fraction,
    Gate,
    MinExamples,
    Params,
    Policy,
    PolicyOfUnusable,
    Register,
    Rules,
    ShiftSettings,
    Suspects,
    Validate,
)

__all__ = [
    "SPLITS", "STRICT", "Checkpoint", "Count", "Data", "Deploy", "Evaluate", "Finetune", "Flow", "Fraction", "Gate",
    "MinExamples", "Params", "Policy", "PolicyOfUnusable", "Register", "Rules", "ShiftSettings", "Suspects", "Validate",
    "as_dict", "as_yaml", "load_params", "modalities", "moves", "public", "pure", "read_yaml", "schema",
    "training_digest", "use", "without_credentials",
]  # fmt: skip

_ADAPTER = TypeAdapter(Params)

_WITHOUT_EFFECT = ("suspects", "register", "flow", "deploy")
"""Sections that can change neither a model nor a verdict."""


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: listing every mistake: the key, what was found, what is allowed, the nearest known name.
    """
    raw = _read_yaml(path)
    own = {name: raw.pop(name, None) for name in modalities()}  # only the one in use is read
    problems: list[str] = []
    params: Params = _checked(_ADAPTER, raw | {"of_modality": None}, problems)
    modality = _modality_of(raw, path)
    if modality is not None:
        settings = _settings_of(modality)
        of_modality = _checked(TypeAdapter(settings.SETTINGS), own[modality], problems, modality)
        if not problems:
            params = dataclasses.replace(params, of_modality=of_modality)
            problems = contradictions(params, settings)
    if problems:
        raise ParamsError(f"{path}: " + "; ".join(problems))
    return params


def modalities() -> tuple[str, ...]:
    """The names that `data.modality` may have: the folders of refit/modality."""
    return importlib.import_module("..modality", __package__).names()


def _settings_of(modality: str) -> Any:
    """What a modality says of its own settings. By name: the ground knows no kind of example."""
    return importlib.import_module("..modality", __package__).settings(modality)


def _modality_of(raw: Mapping[str, Any], path: Path) -> str | None:
    """The kind of example; None where there is none to read, which is a problem of its own."""
    section = raw.get("data")
    if not isinstance(section, Mapping) or "modality" not in section:
        return None
    found = section["modality"]
    if found in modalities():
        return str(found)
    hint = nearest(str(found), list(modalities()))
    raise ParamsError(
        f"{path}: `data.modality` is {found!r}, which is not known{hint}; allowed: {', '.join(modalities())}"
    )


def _checked(adapter: TypeAdapter[Any], raw: Any, problems: list[str], section: str | None = None) -> Any:
    """The typed object; or None, with every problem added to `problems`."""
    try:
        return adapter.validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        problems += [
            describe(detail, adapter, section)
            for detail in error.errors(include_url=False)
            if detail["loc"][-1] != OR_AUTO  # said with what is wrong with it as a number
        ]


def as_dict(params: Any) -> dict[str, Any]:
    """A params object, or a section of one, as plain values: the spelling of params.yaml."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(params)))
    if isinstance(params, Params):
        plain[params.data.modality] = plain.pop("of_modality")
    return plain


def training_digest(params: Params) -> str:
    """The SHA-256 of the parameters that a trained model depends on; its card holds it as `params_digest`."""
    of_modality = as_dict(params.of_modality.finetune)
    finetune = as_dict(params.finetune)
    return sha256_of_json(
        {"seed": params.seed, "finetune": finetune, "of_modality": of_modality, "prefix": params.checkpoint.prefix}
    )


def public(params: Params) -> dict[str, Any]:
    """The params as they may be shown: what can change a result or a verdict, without secrets."""
    shown = {
        name: section
        for name, section in as_dict(params).items()
        if name not in ("suspects", "register", "flow", "deploy")
    }
    shown["checkpoint"]["uri"] = without_credentials(params.checkpoint.uri)
    return shown


def pure(params: Params) -> dict[str, Any]:
    """The params that can change a result. MLflow keeps a run's params for ever, so that a model's new name or another
    address must not be among them: the run could never be completed."""
    return {name: section for name, section in as_dict(params).items() if name not in ("gate", *_WITHOUT_EFFECT)}


def schema() -> str:
    """The JSON schema of params.yaml, as text."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_ADAPTER.json_schema()}
    del document["properties"]["of_modality"]
    document["required"].remove("of_modality")
    for name in modalities():
        settings = _settings_of(name)
        section = TypeAdapter(settings.SETTINGS).json_schema(ref_template=f"#/properties/{name}/$defs/{{model}}")
        document["properties"][name] = section
        document["$defs"]["Finetune"]["properties"]["model"].setdefault("examples", []).extend(settings.ARCHITECTURES)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def read_yaml(path: Path) -> Any:
    """Read any YAML 1.2 file of the project (dvc.yaml, dvc.lock) as plain values.

    YAML 1.2, as DVC reads it: `1e-3` is a number and `no` is a word. Objects are never constructed.
    """
    from ruamel.yaml import YAML

    with path.open(encoding="utf-8") as file:
        return YAML(typ="safe", pure=True).load(file)


def as_yaml(content: object) -> str:
    """Plain mappings, lists and scalars as YAML, in their order."""
    from io import StringIO

    from ruamel.yaml import YAML

    text = StringIO()
    YAML().dump(content, text)
    return text.getvalue()


def _read_yaml(path: Path) -> dict[str, Any]:
    from ruamel.yaml.error import YAMLError

    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing; run this in the project's root folder") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is not valid YAML: {_one_line(str(error))}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} must hold sections such as `data:` and `finetune:`, found {type(raw).__name__}")
    return raw


def _one_line(text: str) -> str:
    return " ".join(text.split())
