"""Rebuilds the embedded language model: a small BERT that guesses hidden words of other libraries' docstrings.

    python base/pretrain_texts.py       -> base/docstrings/, base/docstrings.json      (12 minutes of one core)

First masked language modelling (Devlin et al. 2019) on chunks of 64 tokens, of which a fifth is hidden; the layer that
guesses is left behind. Then, for the mean of its vectors to say what a text is about, it finds the second half of a
chunk among those of others (as Logeswaran and Lee 2018 with sentences, Giorgi et al. 2021 with spans). It reads what
installed packages say of themselves, but for those whose texts are the built-in set (`refit/modality/text/sample.py`),
and no paragraph that is in that set.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

from refit.checkpoint import folder as folders
from refit.files import publish_json, publishing
from refit.modality.text import sample, settings
from refit.records import as_plain
from refit.training.determinism import be_deterministic, environment

ROOT = Path(__file__).resolve().parents[1]
FOLDER, PROVENANCE = ROOT / "base" / "docstrings", ROOT / "base" / "docstrings.json"

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Recipe:
    """How it is made; a chunk is what the network reads at a time, in tokens, `hidden` the share to be guessed."""

    vocabulary: int = 8000
    width: int = 128
    layers: int = 2
    heads: int = 4
    between: int = 384
    positions: int = 128
    chunk: int = 64
    batch: int = 32
    hidden: float = 0.2
    passes: int = 1
    learning_rate: float = 0.002
    weight_decay: float = 0.01
    pairs: int = 96  # in a batch of the second part
    pair_steps: int = 600
    pair_hidden: float = 0.15
    pair_learning_rate: float = 0.001
    temperature: float = 0.07
    seed: int = 17


RECIPE = Recipe()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="stop after so many, to try it")
    arguments = parser.parse_args()
    device = be_deterministic(num_threads=1, device="cpu")
    began = time.perf_counter()
    corpus = list(paragraphs())
    num_characters = sum(map(len, corpus))
    print(f"{len(corpus):,} paragraphs, {num_characters:,} characters")
    tokenizer = tokenizer_of(corpus)
    tokens = chunks_of(corpus, tokenizer)
    print(f"{tokens.size:,} tokens after {time.perf_counter() - began:.0f} s")
    body, masked_losses = learned(tokens, arguments.steps)
    for parameter in body.parameters():  # as they would be kept: the second part can be made again from the first
        parameter.data = parameter.data.half().float()
    pair_losses = matched(body, tokens, arguments.steps)
    export(body, tokenizer)
    with folders.taken(folders.files_in(FOLDER, settings.CHECKPOINT_FILES)) as copy:
        sha256 = folders.digest_of(copy)
    provenance = {
        "made_by": "python base/pretrain_texts.py",
        "sha256": sha256,
        "data": f"{len(corpus):,} paragraphs ({num_characters:,} characters) of the docstrings of installed packages; "
        f"none of {', '.join(sample.LIBRARIES)}",
        "recipe": asdict(RECIPE),
        "masked_loss": masked_losses,
        "pair_loss": pair_losses,
        "environment": as_plain(environment(device)),
        "license": "Apache-2.0",
    }
    publish_json(PROVENANCE, provenance)
    print(f"base/{FOLDER.name}: checkpoint.sha256 is {sha256}; {time.perf_counter() - began:.0f} s")


def paragraphs() -> Iterator[str]:
    """Every paragraph of six words or more, once, in the order of packages and files."""
    known = {text for label, folder in sample.LIBRARIES.items() for text, _ in sample.prose(label, folder)}
    for package in sorted(distributions(), key=_name):
        if _name(package) in ("refit", *sample.LIBRARIES) or _shares_folder(package):
            continue
        for path in sorted(package.files or (), key=str):
            file = Path(str(path.locate()))
            if path.suffix != ".py" or not file.is_file():
                continue
            for docstring in sample.docstrings_in(file):
                for paragraph in re.split(r"\n\s*\n", docstring):
                    text = sample.without_markup(re.sub(r"(?m)^\s*(?:>>>|\.\.\. |[-=~]{3,}).*$", "", paragraph))
                    if len(text.split()) >= 6 and text not in known:
                        known.add(text)
                        yield text


def _name(package: Distribution) -> str:
    return str(package.metadata["Name"]).lower()


def _shares_folder(package: Distribution) -> bool:
    """Such as mlflow-skinny, which is a part of mlflow."""
    return any(path.parts[0] in sample.LIBRARIES.values() for path in package.files or ())


def tokenizer_of(corpus: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=RECIPE.vocabulary, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def chunks_of(corpus: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """(n, chunk) int32: the corpus in one row, [SEP] between paragraphs, cut in pieces, each behind a [CLS]."""
    encoded = tokenizer.encode_batch(corpus, add_special_tokens=False)
    flat = np.concatenate([[*each.ids, SPECIAL.index("[SEP]")] for each in encoded]).astype(np.int32)
    inner = RECIPE.chunk - 1
    rows = flat[: len(flat) // inner * inner].reshape(-1, inner)
    return np.pad(rows, ((0, 0), (1, 0)), constant_values=SPECIAL.index("[CLS]"))


class Guesser(nn.Module):
    """A body and the layer that guesses hidden words by the word vectors themselves; of hidden places only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = BertModel(config(), add_pooling_layer=False)
        width = RECIPE.width
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(RECIPE.vocabulary))

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """(n, chunk) int64, (k,) into the flat tokens -> (k, vocabulary)."""
        vectors = self.body(input_ids=tokens).last_hidden_state.flatten(0, 1)[places]
        return self.transform(vectors) @ self.body.embeddings.word_embeddings.weight.T + self.bias


def config() -> BertConfig:
    return BertConfig(
        vocab_size=RECIPE.vocabulary,
        hidden_size=RECIPE.width,
        num_hidden_layers=RECIPE.layers,
        num_attention_heads=RECIPE.heads,
        intermediate_size=RECIPE.between,
        max_position_embeddings=RECIPE.positions,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def learned(tokens: np.ndarray, max_steps: int | None) -> tuple[BertModel, list[float]]:
    """The body after all passes, and the mean loss of each twentieth part of the way."""
    torch.manual_seed(RECIPE.seed)
    order = np.random.default_rng(RECIPE.seed)
    network = Guesser()
    steps = RECIPE.passes * (len(tokens) // RECIPE.batch)
    steps = min(steps, max_steps or steps)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE.learning_rate, steps, pct_start=0.06)
    losses: list[float] = []
    began = time.perf_counter()
    rows = np.concatenate([order.permutation(len(tokens)) for _ in range(RECIPE.passes)])
    for step in range(steps):
        batch = torch.from_numpy(tokens[rows[step * RECIPE.batch :][: RECIPE.batch]]).long()
        shown, places = hide(batch, order)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(shown, places)
        loss = functional.cross_entropy(logits.float(), batch.flatten()[places])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 200 == 199:
            mean = np.mean(losses[-200:])
            print(f"step {step + 1:,} of {steps:,}: loss {mean:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    return network.body, in_parts(losses)


def hide(batch: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What the network is shown, and the places to guess: of ten, eight are hidden and one is another word."""
    drawn = torch.from_numpy(random.random((3, batch.numel())))
    flat = batch.flatten()
    is_guessed = (drawn[0] < RECIPE.hidden) & (flat >= len(SPECIAL))
    other = (drawn[2] * RECIPE.vocabulary).long()
    shown = torch.where(is_guessed & (drawn[1] < 0.8), SPECIAL.index("[MASK]"), flat)
    shown = torch.where(is_guessed & (drawn[1] >= 0.9), other, shown)
    return shown.view_as(batch), is_guessed.nonzero().squeeze(1)


def matched(body: BertModel, tokens: np.ndarray, max_steps: int | None) -> list[float]:
    """Train the body on, in place; the mean loss of each twentieth part of the way."""
    torch.manual_seed(RECIPE.seed)
    order = np.random.default_rng(RECIPE.seed)
    steps = min(RECIPE.pair_steps, max_steps or RECIPE.pair_steps)
    rate, half = RECIPE.pair_learning_rate, RECIPE.chunk // 2
    optimizer = torch.optim.AdamW(body.parameters(), lr=rate, weight_decay=RECIPE.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.06)
    numbers = torch.arange(RECIPE.pairs)
    losses: list[float] = []
    for _ in range(steps):
        chunks = torch.from_numpy(tokens[order.integers(0, len(tokens), RECIPE.pairs)]).long()
        both = torch.cat([chunks[:, :half], torch.cat([chunks[:, :1], chunks[:, half:-1]], 1)])  # [CLS] before each
        is_hidden = (torch.rand(both.shape) < RECIPE.pair_hidden) & (both >= len(SPECIAL))
        vectors = body(input_ids=both.masked_fill(is_hidden, SPECIAL.index("[MASK]"))).last_hidden_state.mean(1)
        left, right = functional.normalize(vectors, dim=1).chunk(2)
        likeness = left @ right.T / RECIPE.temperature  # (pairs, pairs)
        loss = (functional.cross_entropy(likeness, numbers) + functional.cross_entropy(likeness.T, numbers)) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if len(losses) % 100 == 0:
            print(f"step {len(losses):,} of {steps:,}: loss of pairs {np.mean(losses[-100:]):.3f}", flush=True)
    return in_parts(losses)


def in_parts(losses: list[float]) -> list[float]:
    """The mean of each twentieth."""
    return [round(float(part.mean()), 3) for part in np.array_split(losses, min(20, len(losses)))]


def export(network: BertModel, tokenizer: Tokenizer) -> None:
    """A folder as transformers and sentence-transformers write it; weights in half precision."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    with publishing(FOLDER / "model.safetensors") as partial:
        save_file(weights, partial, metadata={"format": "pt"})
        partial.chmod(0o644)
    tokenizer.save(str(FOLDER / "tokenizer.json"), pretty=False)
    publish_json(FOLDER / "config.json", {**json.loads(network.config.to_json_string()), "dtype": "float16"})
    publish_json(FOLDER / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})


if __name__ == "__main__":
    main()
