"""Which texts a trained network gets right, outside what is measured; each is read as whoever trained it reads it.

python -m peers.score_texts job.json      -> {"val": [0, 1, …], "test": […]}
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from refit.model.classifier import Classifier

from .given import Job, read_job
from .given_texts import texts_of


def hits(job: Job, split: str) -> list[int]:
    """1 for each text whose class is found, else 0."""
    texts, labels = texts_of(job, split)
    card = Path(job.weights_out).with_name("model.json")
    found = by_refit(job, texts, card) if card.is_file() else by_transformers(job, texts)
    return (found == torch.tensor(labels)).int().tolist()


def by_refit(job: Job, texts: list[str], card: Path) -> Tensor:
    """(n,) classes, by a model of Refit's."""
    model = Classifier.load(Path(job.weights_out), card)
    assert list(model.classes) == job.classes
    return torch.from_numpy(model.predict([text.encode() for text in texts])).argmax(1)


@torch.inference_mode()
def by_transformers(job: Job, texts: list[str]) -> Tensor:
    """(n,) classes, by a model of transformers'."""
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    config = AutoConfig.from_pretrained(job.base, num_labels=len(job.classes))
    model = AutoModelForSequenceClassification.from_config(config)
    model.load_state_dict(load_file(job.weights_out))
    model.eval()
    found = []
    for start in range(0, len(texts), 32):
        batch = texts[start : start + 32]
        tokens = tokenizer(batch, truncation=True, max_length=job.size, padding=True, return_tensors="pt")
        found.append(model(**tokens).logits.argmax(1))
    return torch.cat(found)


if __name__ == "__main__":
    print(json.dumps({split: hits(read_job(), split) for split in ("val", "test")}))
