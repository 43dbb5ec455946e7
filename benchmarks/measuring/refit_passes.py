"""Passes over Refit's training photos as its loop makes them, without a network: run in a prepared project.

python -m measuring.refit_passes PASSES      -> photos a second of the first pass and of the later ones, as JSON
"""

import dataclasses
import json
import sys
import time

from refit.training.determinism import be_deterministic
from refit.training.features import Work, stream_for
from refit.training.loop import epoch_order, split_in_batches

from .refit_job import feed_of, job_of, read_project


def main() -> None:
    """The first pass includes what is done once: reading, decoding, filling the cache."""
    passes, project = int(sys.argv[1]), read_project()
    params, train = project.params, project.split("train")
    settings = dataclasses.replace(params.finetune, strategy="full", freeze_until=None)  # photos, not features
    be_deterministic(int(settings.num_threads), "cpu")
    feed = feed_of(params, project.preprocessing)
    splits = (train, train)  # no others are read
    job = job_of(params.data.modality, settings, splits, feed, len(project.classes), seed=0)
    seconds = []
    began = time.perf_counter()
    stream = stream_for(job, job.plan.phases[0], Work())
    for epoch in range(passes):
        order = epoch_order(job, epoch)
        for batch in split_in_batches(len(order), job.plan.batch_size):
            stream.train(epoch, order[batch])
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    print(json.dumps({"first": len(train) / seconds[0], "later": len(train) * (passes - 1) / sum(seconds[1:])}))


if __name__ == "__main__":
    main()
