"""What weights for texts bring along: a tokenizer, and how large their network is. A registered model carries this."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import CheckpointError, WorkspaceError
from ...records import as_record

EXTRA_NEEDED = "texts need the extra `text` of Refit: `uv pip install --python .venv -e '.[text]'`"

CAUSAL = ("gpt2", "gpt_neox", "llama")
"""Families in which a token sees those before it only, so that the last one says most of a text."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a text becomes numbers, and the network that reads them; it travels with the weights."""

    tokenizer: str  # a tokenizer.json, which is data: no code runs to read it
    max_tokens: int  # special ones included; what a text has more is cut off
    hidden_token: int  # stands for what augmentation hides
    pooling: Literal["first", "mean", "last"]  # which token the output layer reads
    network: Mapping[str, Any]  # a config.json


def read_preprocessing(plain: Mapping[str, object], where: str) -> Preprocessing:
    """The preprocessing of a card.

    Raises:
        CheckpointError: a key is missing or of another type.
    """
    return as_record(plain, Preprocessing, CheckpointError, f"the preprocessing of {where}")


def transformers_config(network: Mapping[str, Any]) -> tuple[Any, dict[str, object]]:
    """What `transformers` knows a config.json as, and how AutoModel is to build it. Imports transformers, and torch.

    Raises:
        CheckpointError: it describes no network.
        WorkspaceError: the extra `text` is not installed.
    """
    try:
        from transformers import AutoConfig
    except ImportError:
        raise WorkspaceError(EXTRA_NEEDED) from None
    options = {key: value for key, value in network.items() if key != "model_type"}
    try:
        config = AutoConfig.for_model(network["model_type"], **options)
    except Exception as error:  # whatever a strange config makes of its classes
        raise CheckpointError(f"config.json describes no network ({_said(error)})") from None
    has_pooler = network["model_type"] in ("bert", "roberta")
    return config, {"attn_implementation": "sdpa", **({"add_pooling_layer": False} if has_pooler else {})}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
