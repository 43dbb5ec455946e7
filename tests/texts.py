"""Tiny language models with random weights, as folders of `transformers`, and texts of two classes. Imports torch."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from .conftest import change_params

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "max_position_embeddings": 40}
FAMILIES: dict[str, dict[str, object]] = {
    "bert": SMALL | {"intermediate_size": 40},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 40, "max_position_embeddings": 40},
    "electra": SMALL | {"intermediate_size": 40, "embedding_size": 16},
    "modernbert": SMALL | {"intermediate_size": 40, "local_attention": 8, "global_attn_every_n_layers": 2},
    "roberta": SMALL | {"intermediate_size": 40, "max_position_embeddings": 42},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "gpt_neox": SMALL | {"intermediate_size": 40},
    "llama": SMALL | {"intermediate_size": 40, "num_key_value_heads": 1},
}
"""Each family with the settings of its own config.json."""
CAUSAL = ("gpt2", "gpt_neox", "llama")

GOOD = "fine warm bright lovely clever".split()
BAD = "dull cold grey stale clumsy".split()
PLAIN = "the a film story actor scene and with of is was it ending music".split()


def texts(count: int, words: tuple[str, ...] | list[str], seed: int) -> list[str]:
    """Sentences of 4 to 12 words, two of them from `words`."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sentence = list(generator.choice(PLAIN, int(generator.integers(2, 11))))
        for word in generator.choice(words, 2, replace=False):
            sentence.insert(int(generator.integers(0, len(sentence) + 1)), word)
        found.append(" ".join(sentence))
    return found


def write_language_model(folder: Path, family: str) -> Path:
    """config.json, tokenizer.json, model.safetensors; with the head that it was pretrained with, as published ones."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PLAIN, *GOOD, *BAD]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    if family not in CAUSAL:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer.enable_padding()  # as many published ones have it
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=len(known), pad_token_id=0, **FAMILIES[family])
    kind = AutoModelForCausalLM if family in CAUSAL else AutoModelForMaskedLM
    kind.from_config(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def unlike(number: int) -> str:
    """Letters that no other text has."""
    return " ".join(hashlib.sha256(f"{number}/{word}".encode()).hexdigest()[:7] for word in range(8))


def table_of_texts(project: Path) -> Path:
    """A table with an empty text, one in Cyrillic letters, and one to train on that is nearly one of the test."""
    changes = {"data.modality": "text", "data.source": "t.csv", "finetune.model": "bert", "gate.slices": ["length"]}
    change_params(project / "params.yaml", changes)
    splits = ["train"] * 4 + ["val", "test"]
    rows = [(unlike(number), "good" if number % 2 else "bad", splits[number // 2 % 6]) for number in range(240)]
    tested = next(text for text, _, split in rows if split == "test")
    rows += [("", "good", "test"), ("совсем другая история", "good", "train"), (f"{tested}, again!", "bad", "train")]
    pd.DataFrame(rows, columns=["text", "label", "split"]).to_csv(project / "t.csv", index=False)
    return project / "t.csv"
