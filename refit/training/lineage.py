"""What a training is made from, as digests: known before it begins, and in the model's card when it is over."""

import pandas as pd

from ..checkpoint.card import BaseCard
from ..data.digests import data_digest, split_digest
from ..model.card import Lineage
from ..params import Params, training_digest


def lineage_of(params: Params, accepted: pd.DataFrame, base: BaseCard) -> Lineage:
    """The lineage of a model that is trained now.

    Args:
        accepted: rows of data/accepted.parquet.
        base: the card of the base checkpoint.
    """
    return Lineage(
        data_digest=data_digest(accepted),
        split_digest=split_digest(accepted),
        base_uri=base.uri,
        base_sha256=base.sha256,
        params_digest=training_digest(params),
    )
