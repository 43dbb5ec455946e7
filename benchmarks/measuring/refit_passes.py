"""Passes over Refit's training photos as its loop makes them, without a network: run in a prepared project.

python -m measuring.refit_passes PASSES      -> photos a second of the first pass and of the later ones, as JSON
"""

import json
import sys
import time

import numpy as np
import pandas as pd
import torch

from refit import modality, paths
from refit.checkpoint.card import BaseCard
from refit.errors import CheckpointError
from refit.params import load_params
from refit.records import read_record
from refit.training.determinism import be_deterministic, uniforms
from refit.training.examples import read_split
from refit.training.loop import feed_of


def main() -> None:
    """The first pass includes what is done once: reading, decoding, filling the cache."""
    params, passes = load_params(), int(sys.argv[1])
    name = params.data.modality
    be_deterministic(int(params.finetune.num_threads), "cpu")
    base = read_record(paths.BASE_CARD, BaseCard, CheckpointError)
    preprocessing = modality.weights(name).preprocessing_for(base.preprocessing, params.of_modality.finetune)
    feed = feed_of(name, preprocessing, params.of_modality.finetune)
    accepted = pd.read_parquet(paths.ACCEPTED)
    seconds = []
    began = time.perf_counter()
    train = read_split(accepted, "train", sorted(set(accepted["label"])), name, preprocessing)
    for epoch in range(passes):
        draws = torch.from_numpy(uniforms(0, "augment", epoch, train.keys, feed.num_draws).astype(np.float32))
        for rows in torch.randperm(len(train.labels)).split(params.finetune.batch_size):  # type: ignore[no-untyped-call]
            feed.network_input(feed.augment(train.inputs[rows], draws[rows]))
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    count = len(train.labels)
    print(json.dumps({"first": count / seconds[0], "later": count * (passes - 1) / sum(seconds[1:])}))


if __name__ == "__main__":
    main()
