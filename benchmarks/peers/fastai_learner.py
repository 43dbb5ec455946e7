"""fastai: ImageDataLoaders and fine_tune, as its vision tutorial has it, on the same torchvision network.

fastai's own head (two layers on a concatenated pooling) is left aside: the model is the same for all. Best flags: one
cycle for all layers at the job's learning rate, AdamW's decay, cheaper augmentation, channels last, frozen batch norms
where only the head learns. Its mixed precision is for GPUs only (fastai 2.8 calls autocast for "cuda").
"""

import tempfile

from fastai.vision.all import (
    ChannelsLast,
    Flip,
    ImageDataLoaders,
    Learner,
    Normalize,
    RandomResizedCrop,
    Resize,
    accuracy,
    aug_transforms,
    imagenet_stats,
    params,
)
from torch import nn

from .given import Job, head_name, network_of, run


def train(job: Job) -> nn.Module:
    """Train and validate, epoch by epoch."""
    normalize = Normalize.from_stats(*imagenet_stats)
    loaders = ImageDataLoaders.from_folder(
        job.photos,
        train="train",
        valid="val",
        bs=job.batch_size,
        seed=job.seed,
        item_tfms=RandomResizedCrop(job.size) if job.best_flags else Resize(job.size),
        batch_tfms=[Flip(), normalize] if job.best_flags else [*aug_transforms(), normalize],
        **({"num_workers": job.workers} if job.best_flags else {}),
    )
    network = network_of(job).requires_grad_(True)  # fastai freezes by itself
    head = head_name(network, len(job.classes))

    def body_and_head(model: nn.Module) -> list[list[nn.Parameter]]:
        of_head = params(model.get_submodule(head))
        ids = {id(parameter) for parameter in of_head}
        return [[parameter for parameter in params(model) if id(parameter) not in ids], of_head]

    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            loaders,
            network,
            splitter=body_and_head,
            metrics=accuracy,
            path=folder,
            train_bn=not (job.best_flags and job.head_only),
            cbs=ChannelsLast() if job.best_flags else None,
            **({"wd": 0.05} if job.best_flags else {}),
        )
        if job.head_only:
            learner.freeze()
            learner.fit_one_cycle(job.epochs, *([job.learning_rate] if job.best_flags else []))
        elif job.best_flags or job.epochs == 1:
            learner.fit_one_cycle(job.epochs, *([job.learning_rate] if job.best_flags else []))
        else:
            learner.fine_tune(job.epochs - 1)  # which first trains the head for an epoch
    return network


if __name__ == "__main__":
    run(train)
