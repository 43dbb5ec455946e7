"""An example as the base checkpoint sees it: what the layers below the output layer make of it, before any training.

    rows = embed(start, params, made_in, device, examples)      (n, WIDTH) float16

No label has been looked at in it (unless the base checkpoint itself was trained on these examples), so that it is good
for asking which labels look wrong, and whether new examples look like the old ones. Features are computed once, and
shared with a training that freezes these layers (`features.py`).

Long rows are cut down by a fixed random projection, which keeps distances (Johnson and Lindenstrauss 1984; random
signs: Achlioptas 2003). Its signs are bits of SHAKE-256, the same on every machine and for ever, since rows of one
version are compared with those of another.
"""

import functools
import hashlib

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.card import BaseCard
from ..files import sha256_of_json
from ..modality import own
from ..model.card import Environment
from ..params import Params
from ..records import as_plain
from .examples import Examples
from .features import features_below
from .job import Job
from .plan import Facts, make_plan
from .start import Start, features_key

WIDTH = 256
_LARGEST = 60000.0  # of float16, nearly


def embed(
    start: Start, params: Params, made_in: Environment, device: torch.device, examples: Examples
) -> np.ndarray | None:
    """Rows of the examples, in their order; None where the network cannot be cut before its output layer."""
    facts = Facts(num_train=len(examples), num_classes=len(start.classes), is_pretrained=start.loaded is not None)
    job = Job(
        network=start.network,
        groups=start.groups,
        num_classes=len(start.classes),
        train=examples,
        val=examples,
        feed=start.feed,
        plan=make_plan(facts, start.groups, params.finetune),
        settings=params.finetune,
        seed=params.seed,
        device=device,
        precision=made_in.precision or "fp32",
        features_key=features_key(params, made_in),
    )
    pieces = features_below(job, len(start.groups) - 1, examples)
    return None if pieces is None else np.concatenate([_short(piece) for piece in pieces])


def source_of(start: Start, params: Params, base: BaseCard) -> str:
    """The digest of what decides rows beside the examples: those of two sources cannot be compared."""
    model = params.finetune.model
    return sha256_of_json([base.sha256, model, own.digest(model), as_plain(start.preprocessing), WIDTH])


def _short(rows: Tensor) -> np.ndarray:
    """(k, d) float32 -> (k, WIDTH or less) float16."""
    if rows.shape[1] > WIDTH:
        rows = rows @ _signs(rows.shape[1]) / WIDTH**0.5
    return rows.clamp(-_LARGEST, _LARGEST).numpy().astype(np.float16)


@functools.lru_cache(maxsize=1)
def _signs(width: int) -> Tensor:
    """(width, WIDTH) of 1 and -1."""
    bits = np.frombuffer(hashlib.shake_256(b"refit").digest(width * WIDTH // 8), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(bits).reshape(width, WIDTH).astype(np.float32) * 2 - 1)
