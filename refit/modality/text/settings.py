"""What params.yaml may say of texts, and the networks there are for them, known without torch."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ...params import STRICT, Count, Policy, PolicyOfUnusable

SLICES = ("length", "script")
"""Columns of the manifest by whose values a model may be judged apart."""

STATISTICS = ("words", "characters")
"""Columns of the manifest by which new examples are compared with old ones."""

ARCHITECTURES = ("bert", "distilbert", "electra", "gpt2", "gpt_neox", "llama", "modernbert", "roberta")
"""Families, as `model_type` of a checkpoint's config.json names them. How large a network is, its checkpoint says."""

CHECKPOINT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "1_Pooling/config.json",
)
"""What is read of a checkpoint's folder. No pickle is among them, and no code."""

MIXES = ()
"""Two texts cannot be blended."""

LEARNING_RATE = 0.00005
"""Devlin et al. 2019 (BERT) chose among 2e-5, 3e-5 and 5e-5 on each of their tasks."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rules:
    """The rules for texts, each with its policy."""

    encoding: Annotated[PolicyOfUnusable, Field(description="not UTF-8, or UTF-8 that was misread and saved again")]
    length: Annotated[Policy, Field(description="words outside `text.validate.min_words` to `max_words`")]
    control_characters: Annotated[Policy, Field(description="more than `text.validate.max_control_characters`")]
    script: Annotated[Policy, Field(description="other letters than most texts have, such as Cyrillic among Latin")]
    language: Annotated[Policy, Field(description="another language than most texts, as far as it can be told")]
    html: Annotated[Policy, Field(description="more remains of pages than `text.validate.max_html_tags`")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Validate:
    """Which texts are good enough. A word is a run of letters and digits, or a sign."""

    rules: Annotated[Rules, Field(description="Per rule: error (stop the run), reject, warn, off.")]

    min_words: Annotated[Count, Field(description="Fewest words and signs.")]
    max_words: Annotated[Count, Field(description="Most words and signs; the network reads `max_tokens` of them.")]
    max_control_characters: Annotated[
        int, Field(ge=0, description="Of those that print nothing, tabs and line ends aside.")
    ]
    max_html_tags: Annotated[
        int | None, Field(ge=0, description="Remains of pages, such as <br> or &nbsp;. null: any.")
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Finetune:
    """How texts are shown to the network."""

    max_tokens: Annotated[int, Field(ge=4, le=8192, description="What a text has more is cut off.")]
    pooling: Annotated[
        Literal["auto", "first", "mean", "last"],
        Field(
            description="What the output layer reads: the first token ([CLS]), the mean, or the last token. auto: as "
            "the checkpoint was trained, if it says so; else the last for GPT and its kin, the first for the others."
        ),
    ]
    hide: Annotated[
        float, Field(ge=0.0, le=0.9, description="Largest share of a text, a run of tokens, hidden in an epoch.")
    ]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextSettings:
    """The section `text`."""

    validate: Validate
    finetune: Finetune


SETTINGS = TextSettings


def contradictions(settings: TextSettings, is_from_scratch: bool) -> list[str]:
    """Settings that exclude each other."""
    problems = []
    if settings.validate.min_words > settings.validate.max_words:
        problems.append("`text.validate.min_words` is larger than `text.validate.max_words`")
    if is_from_scratch:
        problems.append("`checkpoint.uri: scratch` brings no tokenizer; name the folder of a language model")
    return problems
