"""Language models as checkpoints: a folder with config.json, a tokenizer and safetensors."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from ...errors import CheckpointError, ParamsError, WorkspaceError
from ...records import as_plain
from ..contract import Described
from .preprocessing import CAUSAL, EXTRA_NEEDED, Preprocessing, read_preprocessing, transformers_config
from .settings import ARCHITECTURES, Finetune

_POSITIONS = ("max_position_embeddings", "n_positions")
_BEFORE_FIRST = {"roberta": 2}  # positions that no token has
_NOT_KEPT = (
    "architectures",
    "auto_map",
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "id2label",
    "label2id",
)
_UNKNOWN_LIMIT = 8192


def describe_weights(name: str) -> tuple[str, Described]:
    """Always a refusal: torchvision has none.

    Raises:
        CheckpointError: with what to write.
    """
    raise CheckpointError(
        f"torchvision has no weights {name!r} for texts; name a folder of a language model: "
        "hf:<owner>/<repo>@<commit>, or file:<folder>"
    )


def preprocessing_for(base: Mapping[str, object] | None, settings: Finetune) -> Preprocessing:
    """The checkpoint's tokenizer and network, with what params.yaml asks for.

    Args:
        base: what the checkpoint's card says of it; None: nothing.
        settings: the section `text.finetune` of params.yaml.

    Raises:
        ParamsError: the checkpoint has no tokenizer, or its network reads fewer tokens.
    """
    if base is None:
        raise ParamsError(
            "the base checkpoint brings no tokenizer; `checkpoint.uri` should name a folder or an archive with "
            "config.json, tokenizer.json and model.safetensors"
        )
    known = read_preprocessing(base, "the base checkpoint")
    limit = _limit(known.network)
    if settings.max_tokens > limit:
        raise ParamsError(f"`text.finetune.max_tokens` is {settings.max_tokens}, and the network reads {limit} at most")
    pooling = known.pooling if settings.pooling == "auto" else settings.pooling
    return dataclasses.replace(known, max_tokens=settings.max_tokens, pooling=pooling)


def read_folder(folder: Path, target: Path) -> Described:
    """A language model's folder: its weights go to `target` (float32, `body.` before transformers' own names).

    Raises:
        CheckpointError: a file is missing or damaged, the network is of a family that Refit does not know, or the
            weights do not fit it.
        WorkspaceError: the extra `text` is not installed.
    """
    config = _json(folder / "config.json")
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise CheckpointError(
            f"config.json names the family {family!r}, which is none of {', '.join(ARCHITECTURES)}; code of a "
            "repository is never run"
        )
    if "quantization_config" in config:
        raise CheckpointError("config.json describes a quantized network; name one in float32, float16 or bfloat16")
    config = {key: value for key, value in config.items() if key not in _NOT_KEPT}
    tokenizer = _tokenizer(folder, config)
    tensors = _weights(folder, config)
    save_file(tensors, target)
    preprocessing = Preprocessing(
        tokenizer=tokenizer.to_str(),
        max_tokens=min(_limit(config), 512),
        hidden_token=_hidden_token(tokenizer, config),
        pooling=_pooling(folder, str(family)),  # type: ignore[arg-type]
        network=config,
    )
    return Described(architecture=str(family), preprocessing=as_plain(preprocessing))


def _limit(config: Mapping[str, Any]) -> int:
    """The most tokens that the network reads."""
    positions = next((int(config[key]) for key in _POSITIONS if key in config), _UNKNOWN_LIMIT)
    return positions - _BEFORE_FIRST.get(str(config.get("model_type")), 0)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"the checkpoint has no {file.name}")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file.name} of the checkpoint is damaged: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file.name} of the checkpoint is damaged: no object")
    return content


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise WorkspaceError(EXTRA_NEEDED) from None
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(
            "the checkpoint has no tokenizer.json; AutoTokenizer.from_pretrained(…).save_pretrained(…) writes one"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CheckpointError(f"tokenizer.json of the checkpoint is damaged: {error}") from None
    if (size := tokenizer.get_vocab_size()) > (known := int(config.get("vocab_size", size))):
        raise CheckpointError(
            f"the tokenizer has {size:,} tokens, and the network knows {known:,}: they do not belong together"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _hidden_token(tokenizer: Any, config: Mapping[str, Any]) -> int:
    """What stands for a hidden token: the mask that the network was pretrained with, if it was."""
    names = ("[MASK]", "<mask>", "[UNK]", "<unk>", "<|endoftext|>")
    found = (tokenizer.token_to_id(name) for name in names)
    fallback = config.get("eos_token_id")
    return next((int(token) for token in found if token is not None), fallback if isinstance(fallback, int) else 0)


def _pooling(folder: Path, family: str) -> str:
    """As sentence-transformers writes it down; else by the family."""
    file = folder / "1_Pooling" / "config.json"
    said = _json(file) if file.is_file() else {}
    if said.get("pooling_mode_mean_tokens"):
        return "mean"
    if said.get("pooling_mode_lasttoken"):
        return "last"
    return "last" if family in CAUSAL else "first"


def _weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of the body, loaded by transformers itself: it knows what older files call them."""
    known, options = transformers_config(config)
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        body, said = AutoModel.from_pretrained(
            folder,
            config=known,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the checkpoint's weights cannot be loaded ({reason})") from None
    if missing := sorted(said["missing_keys"]):
        raise CheckpointError(
            f"the checkpoint's files lack {len(missing)} tensors of the network that config.json describes, such as "
            f"{missing[0]}"
        )
    return {f"body.{name}": tensor.contiguous().clone() for name, tensor in body.state_dict().items()}
