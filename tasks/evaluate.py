"""Stage `evaluate`: measures the model on the test examples, which nothing before this has looked at.

    python -m tasks.evaluate      models/model.*, test rows of data/accepted.parquet
                                  -> metrics/evaluation.json (the measures of the whole set, for `dvc metrics`),
                                     reports/evaluation.json (all of them), reports/evaluation.html,
                                     data/predictions.parquet, plots/confusion.csv, plots/reliability.csv

`predictions.parquet` has path, sha256, label, predicted, confidence, and one column `p:<class>` per class.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from refit import modality, paths
from refit.errors import run_stage
from refit.files import publish_json, publish_table, publish_text
from refit.model.card import read_card
from refit.model.classifier import Classifier
from refit.params import load_params
from refit.progress import say, track
from refit.records import as_plain, publish_record
from refit.reports.evaluation import WorstError, evaluation_page
from refit.scoring import metrics
from refit.scoring.clusters import numbered
from refit.scoring.evaluation import evaluate
from refit.training.determinism import be_deterministic
from refit.training.examples import Examples, read_split, slices_of

_PIECE = 256
"""Images that are in memory at once."""


def main() -> None:
    params = load_params()
    num_threads = read_card(paths.MODEL_CARD).environment.num_threads  # as it was trained
    device = be_deterministic(num_threads, params.finetune.device)
    classifier = Classifier.load(paths.MODEL_WEIGHTS, paths.MODEL_CARD, device)
    accepted = pd.read_parquet(paths.ACCEPTED)
    test = accepted[accepted["split"] == "test"].reset_index(drop=True)
    examples = read_split(test, "test", classifier.classes, classifier.card.modality, classifier.preprocessing)

    probabilities = np.concatenate(list(_probabilities(classifier, examples)))  # (n, num_classes)
    scored = metrics.score(probabilities, examples.labels, numbered(test["group"].tolist()))
    settings = params.evaluate
    evaluation = evaluate(
        scored,
        classifier.classes,
        settings.calibration_bins,
        settings.bootstrap_samples,
        settings.confidence,
        params.seed,
        classifier.card.weights_sha256,
        _slices(test, examples, classifier),
    )
    predictions = _predictions(test, probabilities, scored, classifier.classes)

    publish_json(paths.METRICS, as_plain(evaluation)["overall"])
    publish_record(paths.EVALUATION, evaluation)
    publish_table(paths.PREDICTIONS, predictions)
    publish_table(paths.CONFUSION_PLOT, predictions[["label", "predicted"]].rename(columns={"label": "actual"}))
    publish_table(paths.RELIABILITY_PLOT, pd.DataFrame(evaluation.reliability))
    worst = _worst_errors(predictions, examples, classifier, settings.worst_errors)
    publish_text(paths.EVALUATION_REPORT, evaluation_page(evaluation, worst))
    accuracy = evaluation.overall["accuracy"]
    say(
        f"test accuracy {accuracy.value:.4f} ({settings.confidence:.0%} interval {accuracy.low:.4f} to "
        f"{accuracy.high:.4f}) on {len(test):,} examples: {paths.EVALUATION_REPORT}"
    )


def _probabilities(classifier: Classifier, examples: Examples) -> Iterator[np.ndarray]:
    starts = range(0, len(examples), _PIECE)
    for start in track(starts, "evaluate", len(starts)):
        rows = np.arange(start, min(start + _PIECE, len(examples)))
        yield classifier.probabilities(torch.from_numpy(examples.rows.gather(rows)))


def _slices(test: pd.DataFrame, examples: Examples, classifier: Classifier) -> dict[str, np.ndarray]:
    """By what the model is judged apart: (n,) words, by name."""
    kind = classifier.card.modality
    columns = {name: test[name].to_numpy() for name in modality.settings(kind).SLICES}
    return columns | slices_of(examples, kind, classifier.preprocessing)


def _predictions(
    test: pd.DataFrame, probabilities: np.ndarray, scored: metrics.Scored, classes: Sequence[str]
) -> pd.DataFrame:
    columns = {f"p:{label}": probabilities[:, index] for index, label in enumerate(classes)}
    return test[["path", "sha256", "label"]].assign(
        predicted=[classes[index] for index in scored.predicted], confidence=scored.confidence, **columns
    )


def _worst_errors(
    predictions: pd.DataFrame, examples: Examples, classifier: Classifier, count: int
) -> list[WorstError]:
    """The mistakes that the model was most certain of, as the network saw them."""
    wrong = predictions[predictions["predicted"] != predictions["label"]]
    worst = wrong.sort_values(["confidence", "path"], ascending=[False, True]).head(count)
    picture = partial(modality.examples(classifier.card.modality).picture, preprocessing=classifier.preprocessing)
    columns = (worst[name] for name in ("path", "label", "predicted", "confidence"))
    pictures = [picture(prepared) for prepared in examples.rows.gather(worst.index.to_numpy())]
    return [WorstError(*row) for row in zip(*columns, pictures, strict=True)]


if __name__ == "__main__":
    run_stage(main)
