"""The sections of params.yaml, typed and frozen: each key with its range and, where its name is not enough, its use."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

SPLITS = ("train", "val", "test")

STRICT = ConfigDict(extra="forbid", strict=True)

OWN_NETWORK = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
"""package.module:factory; `refit/modality/own.py` finds it."""

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
            "with labels.csv or labels.parquet; a table (CSV, Parquet, JSON lines) with path, or text and id, "
            "label, and optionally split and group; or a zip or tar of these. Track it: `dvc add`, `dvc import-url`.",
        ),
    ]
    test_fraction: Annotated[Fraction, Field(description="Share kept for the test, unless the source says.")]
    val_fraction: Annotated[Fraction, Field(description="Share kept for validation, unless the source says.")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MinExamples:
    """The fewest accepted examples that each class must have, per split."""

    train: Count
    val: Count
    test: Count


Policy = Literal["error", "reject", "warn", "off"]
"""What becomes of an example that breaks a rule. error: it is rejected and the run stops; reject: it is left out;
warn: it is reported; off: the rule is not looked at."""

PolicyOfUnusable = Literal["error", "reject"]
"""Of a rule whose examples cannot be used at all."""

PolicyOfSet = Literal["error", "warn", "off"]
"""Of a rule on the set, which has no example to reject."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rules:
    """The rules for examples of any kind, each with its policy; those of one kind are in the modality's section."""

    misplaced: Annotated[PolicyOfUnusable, Field(description="not where the layout of the source has examples")]
    id: Annotated[PolicyOfUnusable, Field(description="id missing, or that of another row of the table")]
    unreadable: Annotated[PolicyOfUnusable, Field(description="cannot be read")]
    empty: Annotated[PolicyOfUnusable, Field(description="empty file")]
    bomb: Annotated[PolicyOfUnusable, Field(description="more content, bytes or time than is allowed for one file")]
    pointer: Annotated[
        PolicyOfUnusable, Field(description="a pointer of git-lfs, DVC or git-annex in place of the file")
    ]
    label: Annotated[Policy, Field(description="label missing, or not allowed by `validate.labels`")]
    duplicate: Annotated[Policy, Field(description="duplicate: the same under the same label in the same split")]
    two_labels: Annotated[Policy, Field(description="the same content has two labels")]
    leak: Annotated[Policy, Field(description="leak: nearly the same, or of one group, in a split that judges")]
    near_two_labels: Annotated[Policy, Field(description="nearly the same has two labels")]
    near_duplicate: Annotated[Policy, Field(description="nearly the same as another of its split")]
    colliding_names: Annotated[Policy, Field(description="its path differs from another in case or Unicode form only")]
    too_many_rejected: Annotated[PolicyOfSet, Field(description="more rejected than `validate.max_rejected_fraction`")]
    class_without_examples: Annotated[PolicyOfSet, Field(description="an expected class has no accepted example")]
    unused_exception: Annotated[PolicyOfSet, Field(description="an exception to which nothing corresponds any more")]
    too_few_examples: Annotated[PolicyOfSet, Field(description="fewer than `validate.min_examples_per_class`")]
    same_label: Annotated[
        PolicyOfSet,
        Field(description="labels that look the same: they differ in spaces, Unicode form or alphabet only"),
    ]
    similar_labels: Annotated[
        PolicyOfSet, Field(description="labels that may be one: they differ in case, signs, a plural or one letter")
    ]
    imbalance: Annotated[PolicyOfSet, Field(description="a class has far fewer examples than another")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Validate:
    """What counts as good data."""

    rules: Annotated[Rules, Field(description="Per rule: error (stop the run), reject, warn, off.")]

    labels: Annotated[
        tuple[str, ...] | None,
        Field(description="The allowed labels; another one is rejected. null: whatever labels there are."),
    ]
    retired_labels: Annotated[
        tuple[str, ...],
        Field(description="Labels given up on purpose; any other label of the source or the champion must be there."),
    ]
    min_examples_per_class: MinExamples
    max_rejected_fraction: Annotated[
        float, Field(ge=0.0, le=1.0, description="More rejected examples than this share stop the run.")
    ]
    max_imbalance: Annotated[
        float, Field(ge=1.0, description="How many times as many train examples one class may have as another.")
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Checkpoint:
    """Which pretrained weights the fine-tuning starts from."""

    uri: Annotated[
        str,
        Field(
            description="torchvision:<weights name>, https://…, s3://… or gs://…, hf:<owner>/<repo>/<file>, "
            "models:/<name>/<version> or models:/<name>@champion, file:<path>, or `scratch` for random weights. Files "
            "are safetensors, or a PyTorch state dict, which is converted without running any code in it; where a "
            "network's weights are several files, a folder or an archive of them, or hf:<owner>/<repo>.",
        ),
    ]
    sha256: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-f]{64}$",
            description="SHA-256 of the file behind `uri`. null takes what arrives the first time and says so.",
        ),
    ]
    key: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Where a PyTorch file keeps the weights, such as `model_ema` or `model.state_dict`; `.` is the "
            "file itself. null: found, if there is one place only.",
        ),
    ]
    prefix: Annotated[
        str | None,
        Field(
            description="What stands before the network's own names in the file, such as `model.backbone.`. null: "
            "found, if there is one only.",
        ),
    ]
    min_loaded: Annotated[
        float,
        Field(
            gt=0.0,
            le=1.0,
            description="Share of the backbone's values that the checkpoint must bring. Less is another network.",
        ),
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Finetune:
    """The model and how it is trained. `auto` is decided by refit/training/plan.py, with a reason that is printed."""

    model: Annotated[
        str,
        Field(
            min_length=1,
            description="The network, in the names of its library; or package.module:factory of this project.",
        ),
    ]
    strategy: Annotated[
        Literal["auto", "head", "lp_ft", "staged", "full"],
        Field(
            description="What learns. head: the new output layer only; lp_ft: first that, then all; staged: from the "
            "top down, in three steps; full: all at once."
        ),
    ]
    freeze_until: Annotated[
        str | None, Field(description="A module of the network, such as layer2: it and all before it never learn.")
    ]
    views: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="Copies of an example whose features are kept while layers are frozen: it as it is, and "
            "this many less one that are augmented. Epochs take turns.",
        ),
    ]
    head_dropout: Annotated[Fraction, Field(description="Dropout before the new output layer.")]
    epochs: Annotated[Count, Field(description="Passes over the examples. The probe of lp_ft and staged comes on top.")]
    max_steps: Annotated[Count | None, Field(description="At most so many steps in all; fewer epochs if need be.")]
    max_minutes: Annotated[
        float | None,
        Field(gt=0.0, description="Begin no epoch that, as long as the last one, would end later."),
    ]
    early_stopping_epochs: Annotated[
        Count | None, Field(description="Stop after so many epochs without a better one on validation.")
    ]
    batch_size: Annotated[Annotated[int, Field(ge=2)] | Literal["auto"], Field(description="Examples in a step.")]
    shards: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="A power of two: each batch is cut into so many, computed one after the other (less memory) or "
            "by as many processes; the same bits either way.",
        ),
    ]
    learning_rate: Annotated[
        Annotated[float, Field(gt=0.0, le=1.0)] | Literal["auto"],
        Field(description="AdamW's peak rate at the top of the backbone."),
    ]
    head_learning_rate_factor: Annotated[
        float, Field(gt=0.0, le=1000.0, description="The new output layer learns this many times faster.")
    ]
    layer_decay: Annotated[
        float,
        Field(gt=0.0, le=1.0, description="Each block learns so many times as fast as the one above."),
    ]
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0, description="Not applied to biases and norms.")]
    warmup_fraction: Annotated[Fraction, Field(description="Share of the steps with a rising rate, before the cosine.")]
    gradient_clip: Annotated[float | None, Field(gt=0.0, description="Largest norm of a step's gradient.")]
    ema_decay: Annotated[
        float, Field(ge=0.0, lt=1.0, description="Of the average of the weights that is kept in their place. 0: none.")
    ]
    label_smoothing: Fraction
    mixup: Annotated[float, Field(ge=0.0, le=10.0, description="Blend two examples; Beta(mixup, mixup). 0: never.")]
    cutmix: Annotated[float, Field(ge=0.0, le=10.0, description="Paste a part of another image. 0: never.")]
    class_balance: Annotated[
        Literal["none", "sampling", "weights"],
        Field(description="Rare classes are drawn more often, or count more, until all count the same."),
    ]
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: a GPU if there is one.")]
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="Of the big products. auto: bf16 where clearly faster."),
    ]
    num_threads: Annotated[
        Annotated[int, Field(ge=1, le=1024)] | Literal["auto"],
        Field(description="CPU threads of torch; they decide the last bits. auto: all cores, or 1 with shards."),
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluate:
    """How the model is measured."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0, description="Level of the intervals.")]
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)]
    calibration_bins: Annotated[int, Field(ge=2, le=100)]
    worst_errors: Annotated[int, Field(ge=0, le=200, description="How many mistakes the report shows.")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Suspects:
    """Which labels are doubted. Nothing in here can change a model or a verdict."""

    max_examples: Annotated[
        int, Field(ge=100, description="Of a larger set so many are looked at, others each time that it changes.")
    ]
    shown: Annotated[int, Field(ge=0, le=1000, description="How many the page shows; the table has all.")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ShiftSettings:
    """What follows where training examples do not look like the champion's: `refit/data/shift.py`."""

    policy: Annotated[
        Literal["off", "warn", "hold", "reject"],
        Field(description="off: not looked at; warn: it is shown; hold, reject: the gate says so."),
    ]
    max_psi: Annotated[
        float,
        Field(gt=0.0, description="Population stability index of a column; 0.1 is called a small, 0.25 a large one."),
    ]
    max_auc: Annotated[
        float,
        Field(ge=0.5, lt=1.0, description="How well new and old can be told apart by features; 0.5 is not at all."),
    ]
    significance: Annotated[
        float, Field(gt=0.0, lt=0.5, description="How often chance alone may say so, over all columns together.")
    ]


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
    max_latency_ratio: Annotated[float, Field(gt=0.0, description="Allowed time per example, times the champion's.")]
    max_size_ratio: Annotated[float, Field(gt=0.0, description="Allowed size of the weights, times the champion's.")]
    max_probability_error: Annotated[
        float,
        Field(gt=0.0, lt=0.1, description="How far probabilities may differ once the model came back from MLflow."),
    ]
    shift: ShiftSettings


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
            description="Inspect examples on a cluster: dask, dask:<address>, ray, ray:<address>. null: here.",
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
class Deploy:
    """What follows once the champion has moved. Nothing in here can change a result."""

    command: Annotated[
        str | None,
        Field(description="Run by sh, with REFIT_MODEL_URI (models:/digits/3) and REFIT_MODEL_VERSION. null: nothing."),
    ]
    deployment: Annotated[
        str | None,
        Field(
            pattern=r"^[^/]+/[^/]+$",
            description="A Prefect deployment, run with the parameters model_uri and version. null: none.",
        ),
    ]
    health_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://",
            description="Where the model is served: there it must give the golden examples' answers. null: not asked.",
        ),
    ]
    seconds: Annotated[
        int, Field(ge=1, le=86400, description="For the command or deployment, and again for the answers.")
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Params:
    """Everything in params.yaml: one section per stage, two for the flows, and the seed that all stages share."""

    seed: Annotated[int, Field(ge=0, lt=2**63, description="Every random choice follows from it.")]
    data: Data
    validate: Validate
    checkpoint: Checkpoint
    finetune: Finetune
    evaluate: Evaluate
    suspects: Suspects
    gate: Gate
    register: Register
    flow: Flow
    deploy: Deploy
    of_modality: Any
    """The section that has the name of `data.modality`. Its type is in that modality's settings.py: what it adds to
    `validate` and `finetune`, which only the modality itself reads."""
