"""The networks that read texts: those of `transformers`, below an output layer. A registered model carries this."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ParamsError
from .. import own
from ..contract import LayerGroup
from .examples import NOTHING
from .preprocessing import CAUSAL, Preprocessing, transformers_config

TRAINING_ONLY = ()

HIDDEN = -2
"""A token that the network is not shown; the mask token stands in its place."""

_BODY, _HEAD = "body", "head"


class TextNetwork(nn.Module):
    """A language model, the vector of one token or of their mean, and a linear layer on it."""

    def __init__(self, body: nn.Module, pooling: str, is_causal: bool, num_outputs: int, head_dropout: float) -> None:
        super().__init__()
        self.body, self.pooling, self.is_causal = body, pooling, is_causal
        width: int = body.config.hidden_size  # type: ignore[assignment, union-attr]
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(width, num_outputs)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, num_tokens) int64, NOTHING behind each text -> logits (n, num_outputs)."""
        is_token = tokens >= 0
        # What stands behind a text is never seen by a causal network, so that it needs no mask.
        mask = None if self.is_causal else is_token.long()
        vectors = self.body(input_ids=tokens.clamp(min=0), attention_mask=mask, **self._options()).last_hidden_state
        return self.head(self.dropout(self._pooled(vectors, is_token)))  # type: ignore[no-any-return]

    def _options(self) -> dict[str, bool]:
        return {"use_cache": False} if self.is_causal else {}

    def _pooled(self, vectors: Tensor, is_token: Tensor) -> Tensor:
        """(n, num_tokens, width) -> (n, width)."""
        if self.pooling == "first":
            return vectors[:, 0]
        counts = is_token.sum(1)  # (n,)
        if self.pooling == "last":
            index = (counts - 1).view(-1, 1, 1).expand(-1, 1, vectors.size(2))
            return vectors.gather(1, index).squeeze(1)
        return (vectors * is_token.unsqueeze(2)).sum(1) / counts.unsqueeze(1)


def build_network(
    architecture: str, num_outputs: int, head_dropout: float = 0.0, preprocessing: Preprocessing | None = None
) -> nn.Module:
    """A network with random weights: tokens as `network_input` gives them -> logits (n, num_outputs).

    Raises:
        ParamsError: `architecture` is not the family of the checkpoint, or a network of the user's.
        CheckpointError: its config.json describes no such network.
        WorkspaceError: the extra `text` is not installed.
    """
    if own.is_own(architecture):
        raise ParamsError(
            f"`finetune.model: {architecture}` names a network of yours, which cannot read texts: how large a network "
            "is, and its tokenizer, come with the checkpoint; name its family, such as bert"
        )
    if preprocessing is None:
        raise ParamsError(
            "the base checkpoint does not say how large its network is; name a folder of a language model"
        )
    found = preprocessing.network.get("model_type")
    if found != architecture:
        raise ParamsError(f"`finetune.model` is {architecture!r}, and the base checkpoint is of the family {found!r}")
    body = _body(preprocessing)
    return TextNetwork(body, preprocessing.pooling, architecture in CAUSAL, num_outputs, head_dropout)


def _body(preprocessing: Preprocessing) -> nn.Module:
    config, options = transformers_config(preprocessing.network)
    from transformers import AutoModel

    try:
        body: nn.Module = AutoModel.from_config(config, dtype=torch.float32, **options)
    except Exception as error:  # as for the config
        raise CheckpointError(
            f"config.json describes no network ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        ) from None
    return body


def head_parameters(network: nn.Module, num_outputs: int) -> list[str]:  # noqa: ARG001
    """Names of the parameters of the output layer."""
    return [f"{_HEAD}.weight", f"{_HEAD}.bias"]


def layer_groups(network: nn.Module, head: Sequence[str]) -> list[LayerGroup]:
    """The embeddings, each block, and the head. What comes behind the last block, a norm, belongs to it."""
    blocks = next(name for name, module in network.named_modules() if isinstance(module, nn.ModuleList))
    names: dict[str, list[str]] = {"": []}
    last = ""
    for name, _ in network.named_parameters():
        if name in head:
            continue
        if name.startswith(f"{blocks}."):
            last = f"{blocks}.{name.removeprefix(f'{blocks}.').split('.')[0]}"
        names.setdefault(last, []).append(name)
    embeddings = names.pop("")
    first = embeddings[0].rpartition(".")[0] if embeddings else _BODY
    found = [LayerGroup(first, tuple(embeddings))] if embeddings else []
    return [
        *found,
        *(LayerGroup(*each) for each in ((n, tuple(p)) for n, p in names.items())),
        LayerGroup(_HEAD, tuple(head)),
    ]


def names_today(names: Collection[str]) -> dict[str, str]:
    """As they are: `weights.read_folder` wrote them down by the names of today."""
    return {name: name for name in names}


def extents(examples: np.ndarray) -> np.ndarray:
    """(n, max_tokens + 1) as `prepare` gives them -> (n,) int64: how many tokens of each are read."""
    return np.asarray((examples[:, :-1] != NOTHING).sum(axis=1), dtype=np.int64)


def network_input(examples: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(n, max_tokens + 1) int32 -> (n, num_tokens) int64: as long as the longest of them, NOTHING behind the rest."""
    longest = int((examples[:, :-1] != NOTHING).sum(1).max())
    tokens = examples[:, :longest].long()
    return tokens.masked_fill(tokens == HIDDEN, preprocessing.hidden_token)
