"""Stage `evaluate`: measures the model on the test images, which nothing before this has looked at.

    python -m tasks.evaluate      models/model.*, test rows of data/accepted.parquet
                                  -> metrics/evaluation.json (the measures of the whole set, for `dvc metrics`),
                                     reports/evaluation.json (all of them), reports/evaluation.html,
                                     data/predictions.parquet, plots/confusion.csv, plots/reliability.csv

`predictions.parquet` has path, sha256, label, predicted, confidence, and one column `p:<class>` per class.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from refit import modality, paths
from refit.errors import run_stage
from refit.files import publish_json, publish_table, publish_text
from refit.model.classifier import Classifier
from refit.params import load_params
from refit.progress import say
from refit.records import as_plain, publish_record
from refit.reports.evaluation import WorstError, evaluation_page
from refit.scoring import metrics
from refit.scoring.evaluation import evaluate
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
    settings = params.evaluate
    evaluation = evaluate(
        scored,
        classifier.classes,
        settings.calibration_bins,
        settings.bootstrap_samples,
        settings.confidence,
        params.seed,
        classifier.card.weights_sha256,
    )
    predictions = _predictions(test, probabilities, scored, classifier.classes)

    publish_json(paths.METRICS, as_plain(evaluation)["overall"])
    publish_record(paths.EVALUATION, evaluation)
    publish_table(paths.PREDICTIONS, predictions)
    publish_table(paths.CONFUSION_PLOT, predictions[["label", "predicted"]].rename(columns={"label": "actual"}))
    publish_table(paths.RELIABILITY_PLOT, pd.DataFrame(evaluation.reliability))
    worst = _worst_errors(predictions, inputs, classifier.card.modality, settings.worst_errors)
    publish_text(paths.EVALUATION_REPORT, evaluation_page(evaluation, worst))
    accuracy = evaluation.overall["accuracy"]
    say(
        f"test accuracy {accuracy.value:.4f} ({settings.confidence:.0%} interval {accuracy.low:.4f} to "
        f"{accuracy.high:.4f}) on {len(test):,} images: {paths.EVALUATION_REPORT}"
    )


def _predictions(
    test: pd.DataFrame, probabilities: np.ndarray, scored: metrics.Scored, classes: Sequence[str]
) -> pd.DataFrame:
    columns = {f"p:{label}": probabilities[:, index] for index, label in enumerate(classes)}
    return test[["path", "sha256", "label"]].assign(
        predicted=[classes[index] for index in scored.predicted], confidence=scored.confidence, **columns
    )


def _worst_errors(predictions: pd.DataFrame, inputs: Tensor, modality_name: str, count: int) -> list[WorstError]:
    """The mistakes that the model was most certain of, as the network saw them."""
    wrong = predictions[predictions["predicted"] != predictions["label"]]
    worst = wrong.sort_values(["confidence", "path"], ascending=[False, True]).head(count)
    picture = modality.examples(modality_name).picture
    columns = (worst[name] for name in ("path", "label", "predicted", "confidence"))
    pictures = [picture(inputs[int(row)].numpy()) for row in worst.index]
    return [WorstError(*row) for row in zip(*columns, pictures, strict=True)]


if __name__ == "__main__":
    run_stage(main)
