"""Stage `evaluate`: measures the model on the test images, which nothing before this has looked at.

    python -m tasks.evaluate      models/model.*, test rows of data/accepted.parquet
                                  -> metrics/evaluation.json (the measures of the whole set, for `dvc metrics`),
                                     reports/evaluation.json (all of them), reports/evaluation.html,
                                     data/predictions.parquet, plots/confusion.csv, plots/reliability.csv

`predictions.parquet` has path, sha256, label, predicted, confidence, and one column `p:<class>` per class.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from refit import modality, paths
from refit.errors import run_stage
from refit.files import publish_json, publish_table, publish_text
from refit.model.classifier import Classifier
from refit.params import Evaluate, load_params
from refit.progress import say
from refit.reports.evaluation import evaluation_page
from refit.scoring import intervals, measures, metrics
from refit.training.determinism import be_deterministic
from refit.training.examples import read_inputs


def main() -> None:
    params = load_params()
    device = be_deterministic(params.finetune.num_threads, params.finetune.device)
    classifier = Classifier.load(paths.MODEL_WEIGHTS, paths.MODEL_CARD, device)
    accepted = pd.read_parquet(paths.ACCEPTED)
    test = accepted[accepted["split"] == "test"].reset_index(drop=True)
    files = list(zip(test["path"], test["sha256"], strict=True))
    inputs = read_inputs(files, classifier.card.modality, classifier.preprocessing, "read test")

    probabilities = classifier.probabilities(inputs)  # (n, num_classes)
    labels = np.array([classifier.classes.index(label) for label in test["label"]])
    scored = metrics.score(probabilities, labels)
    evaluation = measure(scored, classifier.classes, params.evaluate, params.seed)
    evaluation["weights_sha256"] = classifier.card.weights_sha256  # whose measures these are
    predictions = _predictions(test, probabilities, scored, classifier.classes)

    publish_json(paths.METRICS, evaluation["overall"])
    publish_json(paths.EVALUATION, evaluation)
    publish_table(paths.PREDICTIONS, predictions)
    publish_table(paths.CONFUSION_PLOT, predictions[["label", "predicted"]].rename(columns={"label": "actual"}))
    publish_table(paths.RELIABILITY_PLOT, pd.DataFrame(evaluation["reliability"]))
    worst = _worst_errors(predictions, inputs, classifier.card.modality, params.evaluate.worst_errors)
    publish_text(paths.EVALUATION_REPORT, evaluation_page(evaluation, worst))
    accuracy = evaluation["overall"]["accuracy"]
    say(
        f"test accuracy {accuracy['value']:.4f} ({params.evaluate.confidence:.0%} interval {accuracy['low']:.4f} to "
        f"{accuracy['high']:.4f}) on {len(test):,} images: {paths.EVALUATION_REPORT}"
    )


def measure(scored: metrics.Scored, classes: Sequence[str], settings: Evaluate, seed: int) -> dict[str, Any]:
    """All measures as the plain values of reports/evaluation.json."""
    overall = intervals.with_intervals(
        scored, settings.calibration_bins, settings.bootstrap_samples, settings.confidence, seed
    )
    by_class = measures.per_class(scored)
    bins = measures.reliability(scored, settings.calibration_bins)
    return {
        "num_examples": len(scored.labels),
        "confidence": settings.confidence,
        "overall": {name: dataclasses.asdict(interval) for name, interval in overall.items()},
        "per_class": {
            label: {
                "precision": float(by_class["precision"][index]),
                "recall": float(by_class["recall"][index]),
                "f1": float(by_class["f1"][index]),
                "support": int(by_class["support"][index]),
            }
            for index, label in enumerate(classes)
        },
        "confusion": {"classes": list(classes), "counts": measures.confusion_matrix(scored).tolist()},
        "reliability": [
            {"confidence": float(confidence), "accuracy": float(accuracy), "count": int(count)}
            for confidence, accuracy, count in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True)
            if count
        ],
    }


def _predictions(
    test: pd.DataFrame, probabilities: np.ndarray, scored: metrics.Scored, classes: Sequence[str]
) -> pd.DataFrame:
    columns = {f"p:{label}": probabilities[:, index] for index, label in enumerate(classes)}
    return test[["path", "sha256", "label"]].assign(
        predicted=[classes[index] for index in scored.predicted], confidence=scored.confidence, **columns
    )


def _worst_errors(predictions: pd.DataFrame, inputs: Tensor, modality_name: str, count: int) -> list[dict[Any, Any]]:
    """The mistakes that the model was most certain of, as the network saw them."""
    wrong = predictions[predictions["predicted"] != predictions["label"]]
    worst = wrong.sort_values(["confidence", "path"], ascending=[False, True]).head(count)
    rows = worst[["path", "label", "predicted", "confidence"]].to_dict("records")
    picture = modality.examples(modality_name).picture
    pictures = [picture(inputs[int(index)].numpy()) for index in worst.index]
    return [{**row, "picture": picture} for row, picture in zip(rows, pictures, strict=True)]


if __name__ == "__main__":
    run_stage(main)
