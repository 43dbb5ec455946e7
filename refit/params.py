"""params.yaml -> one typed, frozen `Params` object. The only reader of params.yaml, and of YAML at all.

    params = load_params()
    params.finetune.learning_rate

All mistakes are collected and reported together. Every key must be there: the values live in params.yaml and
nowhere else. `python -m refit.params` writes params.schema.json, which editors use to complete and check
params.yaml while it is being typed.
"""

import dataclasses
import difflib
import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from .errors import ParamsError
from .files import publish_text, sha256_of_json
from .paths import PARAMS, PARAMS_SCHEMA

SPLITS = ("train", "val", "test")

STRICT = ConfigDict(extra="forbid", strict=True)

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """Where the labelled examples come from, and how they are split."""

    modality: Annotated[
        str, Field(pattern=r"^[a-z]\w*$", description="What an example is; the section of that name has its settings.")
    ]
    source: Annotated[
        str,
        Field(
            min_length=1,
            description="A folder of class folders; a folder with train/val/test folders of class folders; a folder "
            "with labels.csv or labels.parquet; a CSV or Parquet table with path, label and optionally split; or a "
            "zip or tar archive of one of the folders. Track it with `dvc add` or `dvc import-url`.",
        ),
    ]
    test_fraction: Annotated[Fraction, Field(description="Share of images kept for the test, unless the source says.")]
    val_fraction: Annotated[Fraction, Field(description="Share of images kept for validation, unless the source says.")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MinImages:
    """The fewest accepted images that each class must have, per split."""

    train: Count
    val: Count
    test: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Validate:
    """What counts as good data."""

    labels: Annotated[
        tuple[str, ...] | None,
        Field(description="The allowed labels; another one is rejected. null: whatever labels there are."),
    ]
    retired_labels: Annotated[
        tuple[str, ...],
        Field(description="Labels given up on purpose; any other label of the source or the champion must be there."),
    ]
    min_images_per_class: MinImages
    max_rejected_fraction: Annotated[
        float, Field(ge=0.0, le=1.0, description="More rejected images than this share stop the run.")
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Checkpoint:
    """Which pretrained weights the fine-tuning starts from."""

    uri: Annotated[
        str,
        Field(
            description="torchvision:<weights name>, https://…, file:<path>, or `scratch` for random weights. Files "
            "are safetensors, or a PyTorch state dict, which is converted without running any code in it.",
        ),
    ]
    sha256: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-f]{64}$",
            description="SHA-256 of the file behind `uri`. null takes what arrives the first time and says so.",
        ),
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Finetune:
    """The model and how it is trained."""

    model: Annotated[str, Field(min_length=1, description="The network, in the names of its library.")]
    trainable: Annotated[Literal["all", "head"], Field(description="`head` leaves the pretrained backbone as it is.")]
    head_dropout: Annotated[Fraction, Field(description="Dropout before the new output layer.")]
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0, description="AdamW's peak rate, for the backbone.")]
    head_learning_rate_factor: Annotated[
        float, Field(gt=0.0, le=1000.0, description="The new output layer learns this many times faster.")
    ]
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0, description="Not applied to biases and norms.")]
    warmup_fraction: Annotated[Fraction, Field(description="Share of the steps with a rising rate, before the cosine.")]
    label_smoothing: Fraction
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: a GPU if there is one.")]
    num_threads: Annotated[
        int, Field(ge=1, le=1024, description="CPU threads of torch. Part of what makes a result repeatable.")
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluate:
    """How the model is measured."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0, description="Level of the intervals.")]
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)]
    calibration_bins: Annotated[int, Field(ge=2, le=100)]
    worst_errors: Annotated[int, Field(ge=0, le=200, description="How many mistakes the report shows as pictures.")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Gate:
    """What a candidate must show against the champion."""

    goal: Annotated[
        Literal["better", "not_worse"],
        Field(description="better: more accurate than the champion; not_worse: shown to lose less than `margin`."),
    ]
    margin: Annotated[float, Field(gt=0.0, lt=1.0, description="A loss of accuracy that would not matter.")]
    confidence: Annotated[float, Field(gt=0.5, lt=1.0, description="Level of the tests and intervals.")]
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)]
    min_accuracy: Annotated[Fraction, Field(description="Floor of the accuracy, also for the first champion.")]
    min_class_recall: Annotated[Fraction, Field(description="Floor of the recall of each class and slice.")]
    max_class_drop: Annotated[Fraction, Field(description="How much recall a class or slice may lose.")]
    slices: Annotated[
        tuple[str, ...], Field(description="Columns of the manifest by whose values the model is also judged apart.")
    ]
    max_calibration_error_increase: Annotated[Fraction, Field(description="Allowed rise of the calibration error.")]
    max_log_loss_increase: Annotated[float, Field(ge=0.0, description="Allowed rise of the log loss, in nats.")]
    max_latency_ratio: Annotated[float, Field(gt=0.0, description="Allowed time per image, times the champion's.")]
    max_size_ratio: Annotated[float, Field(gt=0.0, description="Allowed size of the weights, times the champion's.")]
    max_probability_error: Annotated[
        float,
        Field(gt=0.0, lt=0.1, description="How far probabilities may differ once the model came back from MLflow."),
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Register:
    """Where runs are tracked and versions are registered."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\- ]*$")]
    experiment: Annotated[str, Field(min_length=1)]
    tracking_uri: Annotated[
        str, Field(min_length=1, description="MLflow's address. MLFLOW_TRACKING_URI in the environment wins.")
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Flow:
    """How the scheduled flow works. Nothing in here can change a result."""

    ingest_runner: Annotated[
        str | None,
        Field(
            pattern=r"^(dask|ray)(:.+)?$",
            description="Inspect images on a cluster: dask, dask:<address>, ray, ray:<address>. null: on this machine.",
        ),
    ]
    stage_timeout_hours: Annotated[
        float, Field(gt=0.0, le=1000.0, description="A stage that takes longer, the training included, is stopped.")
    ]
    training_deployment: Annotated[
        str | None,
        Field(
            pattern=r"^[^/]+/[^/]+$",
            description="A Prefect deployment whose worker trains, such as finetune/gpu. null: train in place.",
        ),
    ]
    training_timeout_hours: Annotated[
        float, Field(gt=0.0, le=1000.0, description="From sending the training off to its end, waiting included.")
    ]
    worker_silence_seconds: Annotated[
        int, Field(ge=5, le=86400, description="A worker that has not reported for so long counts as lost.")
    ]
    training_attempts: Annotated[int, Field(ge=1, le=20, description="How many workers may be lost before giving up.")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Params:
    """Everything in params.yaml: one section per stage, one for the flow, and the seed that all stages share."""

    seed: Annotated[int, Field(ge=0, lt=2**63, description="Every random choice follows from it.")]
    data: Data
    validate: Validate
    checkpoint: Checkpoint
    finetune: Finetune
    evaluate: Evaluate
    gate: Gate
    register: Register
    flow: Flow
    of_modality: Any
    """The section that has the name of `data.modality`. Its type is in that modality's settings.py: what it adds to
    `validate` and `finetune`, which only the modality itself reads."""


_ADAPTER = TypeAdapter(Params)
_USERINFO = re.compile(r"(?<=://)[^/?#]*@")


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: listing every mistake: the key, what was found, what is allowed, the nearest known name.
    """
    raw = _read_yaml(path)
    modality = _modality_of(raw, path)
    own = raw.pop(modality, None)
    for other in modalities():
        raw.pop(other, None)  # of another kind of example; not in use
    problems: list[str] = []
    params: Params = _checked(_ADAPTER, raw | {"of_modality": own}, problems)
    of_modality = _checked(TypeAdapter(_settings_of(modality).SETTINGS), own, problems, modality)
    if not problems:
        params = dataclasses.replace(params, of_modality=of_modality)
        problems = _contradictions(params)
    if problems:
        raise ParamsError(f"{path}: " + "; ".join(problems))
    return params


def modalities() -> tuple[str, ...]:
    """The names that `data.modality` may have: the folders of refit/modality."""
    return importlib.import_module(".modality", __package__).names()


def _settings_of(modality: str) -> Any:
    """What a modality says of its own settings. By name: the ground knows no kind of example."""
    return importlib.import_module(".modality", __package__).settings(modality)


def _modality_of(raw: Mapping[str, Any], path: Path) -> str:
    section = raw.get("data")
    found = section.get("modality") if isinstance(section, Mapping) else None
    if found in modalities():
        return str(found)
    hint = _nearest(str(found), list(modalities()))
    raise ParamsError(
        f"{path}: `data.modality` is {found!r}, which is not known{hint}; allowed: {', '.join(modalities())}"
    )


def _checked(adapter: TypeAdapter[Any], raw: Any, problems: list[str], section: str | None = None) -> Any:
    """The typed object; or None, with every problem added to `problems`."""
    try:
        return adapter.validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        problems += [_describe(detail, adapter, section) for detail in error.errors(include_url=False)]


def as_dict(params: Any) -> dict[str, Any]:
    """A params object, or a section of one, as plain values: the spelling of params.yaml."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(params)))
    if isinstance(params, Params):
        plain[params.data.modality] = plain.pop("of_modality")
    return plain


def training_digest(params: Params) -> str:
    """The SHA-256 of the parameters that a trained model depends on; its card holds it as `params_digest`."""
    of_modality = as_dict(params.of_modality.finetune)
    return sha256_of_json({"seed": params.seed, "finetune": as_dict(params.finetune), "of_modality": of_modality})


def without_credentials(url: str) -> str:
    """An address as it may be shown and stored: no user, no password, and no query, where signed addresses hide both.

    What is no URL (file:…, torchvision:…, a path) stays as it is.
    """
    return re.sub(r"[?#].*$", "", _USERINFO.sub("", url)) if "://" in url else url


def public(params: Params) -> dict[str, Any]:
    """The params as they may be shown: what can change a result or a verdict, without secrets."""
    shown = {name: section for name, section in as_dict(params).items() if name not in ("register", "flow")}
    shown["checkpoint"]["uri"] = without_credentials(params.checkpoint.uri)
    return shown


def pure(params: Params) -> dict[str, Any]:
    """The params that can change a result. MLflow keeps a run's params for ever, so that a model's new name or another
    address must not be among them: the run could never be completed."""
    return {name: section for name, section in as_dict(params).items() if name not in ("gate", "register", "flow")}


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


def _describe(detail: ErrorDetails, adapter: TypeAdapter[Any], section: str | None) -> str:
    location = [part for part in detail["loc"] if part not in ("str", "int", "float", "tuple[str, ...]", "nullable")]
    key = ".".join(str(part) for part in (section, *location) if part is not None)
    match detail["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            known = _known_keys(adapter._type, location[:-1])
            return f"unknown key `{key}`{_nearest(str(location[-1]), known)}"
        case "missing" | "missing_keyword_only_argument" | "missing_argument":
            return f"`{key}` is missing"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
            found = str(detail["input"])
            hint = _nearest(found, allowed)
            shown = "" if hint and len(allowed) > 12 else f"; allowed: {', '.join(allowed)}"
            return f"`{key}` is {detail['input']!r}, which is not known{hint}{shown}"
        case "dataclass_type" | "dataclass_exact_type":
            return f"`{key}` must be a section with keys, found {detail['input']!r}"
    message = detail["msg"].removeprefix("Input should ").removeprefix("String should ")
    return f"`{key}` is {detail['input']!r}, it should {message}"


def _known_keys(section: Any, location: list[Any]) -> list[str]:
    for part in location:
        section = next(field.type for field in dataclasses.fields(section) if field.name == part)
    return [field.name for field in dataclasses.fields(section)]


def _nearest(found: str, known: list[str]) -> str:
    close = difflib.get_close_matches(found, known, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else ""


def _contradictions(params: Params) -> list[str]:
    """What pydantic cannot see: settings that exclude each other, or that would have no effect."""
    problems = []
    if params.data.test_fraction + params.data.val_fraction >= 1.0:
        problems.append("`data.test_fraction` and `data.val_fraction` leave nothing to train on")
    problems += _modality_contradictions(params)
    labels = params.validate.labels
    if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels)):
        problems.append("`validate.labels` must be null or at least two different labels")
    if _USERINFO.search(params.register.tracking_uri):
        problems.append(
            "`register.tracking_uri` holds a user or password; put the whole address into the environment variable "
            "MLFLOW_TRACKING_URI instead"
        )
    return problems + _checkpoint_contradictions(params)


def _modality_contradictions(params: Params) -> list[str]:
    """Names that the modality would have to know, and what it says of its own settings."""
    settings = _settings_of(params.data.modality)
    named = [("finetune.model", params.finetune.model, list(settings.ARCHITECTURES))]
    named += [("gate.slices", name, list(settings.SLICES)) for name in params.gate.slices]
    return [
        f"`{key}` is {found!r}, which is not known{_nearest(found, known) or '; allowed: ' + ', '.join(known)}"
        for key, found, known in named
        if found not in known
    ] + settings.contradictions(params.of_modality, params.checkpoint.uri == "scratch")


def _checkpoint_contradictions(params: Params) -> list[str]:
    checkpoint, finetune = params.checkpoint, params.finetune
    if _USERINFO.search(checkpoint.uri):
        return [
            "`checkpoint.uri` holds a user or password, which would be kept in git and MLflow; fetch the file yourself "
            "and name it with file:<path>"
        ]
    if checkpoint.uri == "scratch":
        problems = []
        if checkpoint.sha256 is not None:
            problems.append("`checkpoint.sha256` has no effect with `checkpoint.uri: scratch`; set it to null")
        if finetune.trainable == "head":
            problems.append("`finetune.trainable: head` would leave random weights as they are; use `all`")
        return problems
    if not re.match(r"^(file:.|https?://.|torchvision:.)", checkpoint.uri):
        return [
            f"`checkpoint.uri` is {checkpoint.uri!r}; allowed: torchvision:<weights name>, https://<address>, "
            "file:<path>, scratch"
        ]
    return []


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    publish_text(PARAMS_SCHEMA, schema())
