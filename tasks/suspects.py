"""Stage `suspects`: which labels look wrong, for a person to look at; and how the base checkpoint sees the examples.

    python -m tasks.suspects      data/accepted.parquet, its files, checkpoints/base.*, data/predictions.parquet,
                                  data/label_answers.csv
                                  -> reports/label_suspects.csv, reports/label_suspects.html, data/features.safetensors

Those who judge have not learnt what they judge. Of train and val examples it is a linear classifier on features of the
base checkpoint, asked about examples that were left out when it was fitted; of test examples it is the trained model.
The suspects (`refit/data/label_errors.py`) change nothing: not the data, not the model, not the gate.

`label_suspects.csv` has path, sha256, split, given, suggested and score (the probability of the given label), the most
doubtful first. `features.safetensors` has `rows` (n, up to 256) float16 and `sha256s` (n, 32) uint8 of training
examples, and the digest of what made them: what the next comparison tells a shift by.

Of a set that is larger than `suspects.max_examples` so many are looked at, others each time that the set changes.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from refit import modality, paths
from refit.checkpoint.card import BaseCard
from refit.data.digests import data_digest
from refit.data.label_errors import read_answers, suspects
from refit.data.profile import Features, publish_features
from refit.errors import CheckpointError, run_stage
from refit.files import publish_table, publish_text
from refit.modality.contract import Opaque
from refit.model.card import read_card
from refit.params import Params, load_params
from refit.progress import say
from refit.records import read_record
from refit.reports.suspects import Asked, Suspect, Unchanged, suspects_page
from refit.scoring.clusters import numbered
from refit.scoring.linear import out_of_fold
from refit.training.determinism import be_deterministic, environment, example_keys, uniforms
from refit.training.embedding import embed, source_of
from refit.training.examples import read_split
from refit.training.start import Start, start_from

_COLUMNS = ["path", "sha256", "split", "given", "suggested", "score"]


def main() -> None:
    params, card = load_params(), read_card(paths.MODEL_CARD)
    device = be_deterministic(card.environment.num_threads, params.finetune.device)  # as it was trained
    packages = modality.examples(card.modality).REQUIRES
    made_in = environment(device, card.environment.precision, packages)
    accepted = pd.read_parquet(paths.ACCEPTED)
    base = read_record(paths.BASE_CARD, BaseCard, CheckpointError, "; run `dvc repro -f fetch`")
    start = start_from(params, accepted, base, device)
    chosen = _chosen(accepted, params)
    learnt, test = (chosen[chosen["split"].isin(splits)] for splits in (("train", "val"), ("test",)))
    learnt = learnt.sort_values("split", kind="stable")

    seen = {
        split: embed(start, params, made_in, device, read_split(learnt, split, start.classes, *_kind(params, start)))
        for split in ("train", "val")
    }
    judged = [_judged(_WORDS_OF_TEST, test, _predicted(test, start.classes), accepted, start.classes)]
    remarks = _remarks(base)
    features = [rows for rows in seen.values() if rows is not None]
    if len(features) == len(seen):
        labels = _codes(learnt, start.classes)
        clusters = numbered(learnt["group"].tolist())
        probabilities = out_of_fold(np.concatenate(features), labels, clusters, len(start.classes), params.seed)
        judged.insert(0, _judged(_WORDS_OF_LEARNT, learnt, probabilities, accepted, start.classes))
    else:
        remarks.append("The network cannot be cut before its output layer, so train and val were not looked at.")
    _publish_features(seen["train"], learnt, source_of(start, params, base))
    found = pd.concat([table for _, table in judged]).sort_values(["score", "path"], kind="stable")
    _publish(found, [asked for asked, _ in judged], remarks, accepted, params, start)


_WORDS_OF_LEARNT = "train and val, by a linear classifier on features of the base checkpoint that had not seen them"
_WORDS_OF_TEST = "test, by the trained model"


def _kind(params: Params, start: Start) -> tuple[str, Opaque]:
    return params.data.modality, start.preprocessing


def _chosen(accepted: pd.DataFrame, params: Params) -> pd.DataFrame:
    """So many of the examples, chosen by a hash: all of a set that is not larger."""
    most = params.suspects.max_examples
    if len(accepted) <= most:
        return accepted
    keys = example_keys(accepted["sha256"].tolist())
    draws = uniforms(params.seed, f"suspects/{data_digest(accepted)}", 0, keys, 1)[:, 0]
    return accepted.iloc[np.sort(draws.argsort(kind="stable")[:most])]


def _remarks(base: BaseCard) -> list[str]:
    if not base.num_tensors:
        return ["There is no base checkpoint (`scratch`): features of random weights say little about train and val."]
    if base.format == "refit":
        return ["The base checkpoint is a registered version, which may have learnt some of these labels."]
    return []


def _codes(examples: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    return pd.Categorical(examples["label"], list(classes)).codes.astype(np.int64)


def _predicted(test: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(n, num_classes): what the trained model says of test examples. Read a class at a time, to hold few at once."""
    with pq.ParquetFile(paths.PREDICTIONS) as file:
        known = pd.Index(file.read(["sha256"]).column(0).to_pylist())
        rows = known.drop_duplicates().get_indexer(test["sha256"])
        rows = np.flatnonzero(~known.duplicated())[rows]
        columns = [file.read([f"p:{label}"], use_threads=False).column(0).to_numpy()[rows] for label in classes]
    return np.column_stack(columns)


def _judged(
    what: str, examples: pd.DataFrame, probabilities: np.ndarray, accepted: pd.DataFrame, classes: Sequence[str]
) -> tuple[Asked, pd.DataFrame]:
    """How well the judge knows these examples, and whose labels it doubts. One who only guesses is not heard."""
    given = _codes(examples, classes)
    agreement = float((probabilities.argmax(axis=1) == given).mean()) if len(given) else 0.0
    is_heard = len(given) > 0 and agreement > np.bincount(given).max() / len(given)
    found = suspects(given, probabilities) if is_heard else suspects(given[:0], probabilities[:0])
    doubted = examples.iloc[found["row"].to_numpy()].reset_index(drop=True)
    table = doubted[["path", "sha256", "split"]].assign(
        given=doubted["label"],
        suggested=np.array(classes, dtype=object)[found["suggested"].to_numpy()],
        score=found["score"].round(4),
    )
    of = int(accepted["split"].isin(examples["split"].unique()).sum())
    return Asked(what, len(examples), of, agreement, bool(is_heard)), table


def _publish_features(rows: np.ndarray | None, learnt: pd.DataFrame, source: str) -> None:
    sha256s = tuple(learnt["sha256"][learnt["split"] == "train"]) if rows is not None else ()
    rows = np.empty((0, 0), dtype=np.float16) if rows is None else rows
    publish_features(paths.FEATURES, Features(source, sha256s, rows))


def _publish(
    found: pd.DataFrame,
    asked: Sequence[Asked],
    remarks: Sequence[str],
    accepted: pd.DataFrame,
    params: Params,
    start: Start,
) -> None:
    answers = read_answers(paths.LABEL_ANSWERS)
    listed = found[~found["sha256"].isin(answers["sha256"])]
    page = suspects_page(
        shown=_shown(listed.head(params.suspects.shown), params, start),
        count=len(listed),
        asked=asked,
        remarks=remarks,
        unchanged=_unchanged(accepted, answers),
        num_answered=len(found) - len(listed),
    )
    publish_table(paths.LABEL_SUSPECTS, listed[_COLUMNS])
    publish_text(paths.LABEL_SUSPECTS_REPORT, page)
    say(f"labels that look wrong: {len(listed):,}: {paths.LABEL_SUSPECTS_REPORT}")


def _shown(listed: pd.DataFrame, params: Params, start: Start) -> list[Suspect]:
    name, preprocessing = _kind(params, start)
    examples = read_split(
        listed.assign(label=listed["given"], split="shown"), "shown", start.classes, name, preprocessing
    )
    picture = partial(modality.examples(name).picture, preprocessing=preprocessing)
    if not len(examples):
        return []
    pictures = map(picture, examples.rows.gather(np.arange(len(examples))))
    return [Suspect(*row) for row in zip(*(listed[column] for column in _COLUMNS), pictures, strict=True)]


def _unchanged(accepted: pd.DataFrame, answers: pd.DataFrame) -> list[Unchanged]:
    """Where the data bears another label than the answer."""
    both = accepted[["path", "sha256", "label"]].merge(answers, on="sha256", suffixes=("", "_right"))
    rows = both[both["label"] != both["label_right"]].sort_values("path")
    return [Unchanged(*row) for row in rows[["path", "label", "label_right", "reason", "who"]].to_numpy().tolist()]


if __name__ == "__main__":
    run_stage(main)
