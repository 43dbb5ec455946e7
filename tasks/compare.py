"""The effect `compare`: candidate against champion, on the same test images; what the gate says about it.

    comparison = compare()      the outputs of the stages, the champion in the registry
                                -> reports/comparison.{json,html,md}, reports/golden.json, reports/images.csv

Not a DVC stage: it depends on a server. The champion is asked for directly by its alias; "there is none yet" is
only believed from a registry that answers so. It predicts in a process of its own, with its own stored code.

`comparison.json` has `verdict`, `reasons`, `images_needed`, `checks`; `candidate` and `champion` (null: none yet) with
their digests; `overall` and `per_class` for both; `costs`; `changes` in data and params; `gate`, the settings used.
`images.csv` has path, sha256, label, split of every accepted image: what the next comparison tells changes from.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from refit import paths
from refit.data.changes import data_changes, params_changes
from refit.errors import EvidenceError, TrackingError, WorkspaceError, run_stage
from refit.files import publish_json, publish_table, publish_text, sha256_of_file
from refit.gate import decide as gate
from refit.gate.checks import Groups, Labels, Side
from refit.gate.decide import Decision
from refit.params import Params, as_dict, load_params, public
from refit.progress import say
from refit.registry import probe, tracking, versions
from refit.registry.probe import Answer
from refit.registry.records import Version
from refit.registry.tracking import CHAMPION
from refit.reports.comparison import comparison_markdown, comparison_page
from refit.reports.disagreements import disagreements
from refit.scoring import intervals, measures, metrics
from refit.scoring.metrics import Scored

_NEEDED = (paths.MANIFEST, paths.ACCEPTED, paths.PREDICTIONS, paths.EVALUATION, paths.MODEL_CARD, paths.MODEL_WEIGHTS)


def main() -> None:
    comparison = compare()
    say(f"gate: {comparison['verdict']}: {'; '.join(comparison['reasons'])}: {paths.COMPARISON_REPORT}")


def compare() -> dict[str, Any]:
    """Compare what is in the workspace with the champion, and write the comparison.

    Raises:
        WorkspaceError: an output of a stage is missing.
        TrackingError: the registry does not answer.
        EvidenceError: the champion does not load, or what it was made of cannot be read.
    """
    params = load_params()
    _require_outputs()
    test, accepted = _test_images()
    champion = tracking.version_with_alias(params.register, CHAMPION)
    golden_files = [Path(name) for name in test["path"].iloc[: probe.NUM_GOLDEN]]
    candidate_answer = probe.ask(None, golden_files, {}, params.finetune.num_threads)
    _require_same_model(candidate_answer)
    champion_answer = None if champion is None else _champion_answer(params, champion, test)
    labels = _labels(params, test, candidate_answer, champion_answer)
    classes = list(labels.names)
    lasting = labels.lasting(frozenset((champion_answer or candidate_answer).classes))
    stored = _stored_probabilities(candidate_answer.classes)
    new = _side(candidate_answer, stored, test, labels, lasting, paths.MODEL_WEIGHTS.stat().st_size)
    old = None
    if champion is not None and champion_answer is not None:
        old = _side(champion_answer, champion_answer.probabilities.T, test, labels, lasting, _bytes_of(champion))
    slices = _slices(accepted, params)
    decision = gate.decide(new, old, labels, slices, params.gate, params.evaluate.calibration_bins, params.seed)
    before = None if champion is None else _history_of(params, champion)
    comparison = _describe(params, decision, champion, new, old, classes, accepted, before)
    _publish(params, comparison, test, accepted, new, old, classes, candidate_answer)
    return comparison


def _require_outputs() -> None:
    missing = [path.as_posix() for path in _NEEDED if not path.exists()]
    if missing:
        raise WorkspaceError(
            f"nothing to compare yet: {', '.join(missing)} missing; run `dvc repro` or `refit retrain`"
        )


def _test_images() -> tuple[pd.DataFrame, pd.DataFrame]:
    """path, sha256 and label of the images that the candidate was tested on; and all accepted images."""
    accepted = pd.read_parquet(paths.ACCEPTED)
    predictions = pd.read_parquet(paths.PREDICTIONS, columns=["path", "sha256", "label"])
    test = accepted[accepted["split"] == "test"].reset_index(drop=True)
    if not test["sha256"].equals(predictions["sha256"]) or not test["label"].equals(predictions["label"]):
        raise EvidenceError(
            f"{paths.PREDICTIONS} is not about the test images of {paths.ACCEPTED}; run `dvc repro evaluate`"
        )
    named = zip(test["path"], test["sha256"], strict=True)
    changed = [path for path, sha256 in named if sha256_of_file(Path(path)) != sha256]
    if changed:
        raise EvidenceError(f"{changed[0]} was changed after it was validated; run `dvc repro -f ingest`")
    return predictions, accepted


def _require_same_model(probed: Answer) -> None:
    columns = [name for name in pq.read_schema(paths.PREDICTIONS).names if name.startswith("p:")]
    if [f"p:{label}" for label in probed.classes] != columns:
        raise EvidenceError(f"{paths.PREDICTIONS} was made by another model than models/; run `dvc repro evaluate`")


def _stored_probabilities(classes: Sequence[str]) -> Iterator[np.ndarray]:
    """The candidate's probabilities of the test images, (n,) of a class at a time: together they may not fit memory."""
    with pq.ParquetFile(paths.PREDICTIONS) as file:
        for label in classes:
            yield file.read([f"p:{label}"], use_threads=False).column(0).to_numpy()


def _stored_golden_probabilities(classes: Sequence[str]) -> np.ndarray:
    """(NUM_GOLDEN or fewer, num_classes): the same of the first images only."""
    with pq.ParquetFile(paths.PREDICTIONS) as file:
        first = [next(file.iter_batches(probe.NUM_GOLDEN, columns=[f"p:{label}"])) for label in classes]
    return np.column_stack([batch.column(0).to_numpy() for batch in first])


def _champion_answer(params: Params, champion: Version, test: pd.DataFrame) -> Answer:
    files = [Path(name) for name in test["path"]]
    return probe.ask(champion.uri, files, tracking.environment(params.register), params.finetune.num_threads)


def _labels(params: Params, test: pd.DataFrame, candidate: Answer, champion: Answer | None) -> Labels:
    """All classes that a model knows or an image has; and those that the data source has, usable images or not."""
    known = {*candidate.classes, *(champion.classes if champion else ())}
    allowed = params.validate.labels
    found = pd.read_parquet(paths.MANIFEST, columns=["label"])["label"].unique() if allowed is None else allowed
    return Labels(
        names=tuple(sorted(known | set(test["label"]))),
        source=frozenset(found) - {""},  # a row of a table without a label
        retired=frozenset(params.validate.retired_labels),
    )


def _side(
    answer: Answer,
    columns: Iterable[np.ndarray],
    test: pd.DataFrame,
    labels: Labels,
    lasting: frozenset[str],
    num_bytes: int,
) -> Side:
    """What one model says, in the indices of `labels.names`; a class that it does not know has no probability.

    Args:
        columns: (n,) probabilities of each of `answer.classes`.
        lasting: the classes among which it must choose for `Side.among`.
    """
    true = pd.Categorical(test["label"], list(labels.names)).codes.astype(np.int64)
    probability = np.zeros(len(true))  # of the true class
    highest, predicted = np.full(len(true), -np.inf), np.full(len(true), -1)
    highest_lasting, among = highest.copy(), predicted.copy()
    for name, column in zip(answer.classes, columns, strict=True):
        index = labels.names.index(name)
        probability[true == index] = column[true == index]
        _choose(column, index, highest, predicted)
        if name in lasting:
            _choose(column, index, highest_lasting, among)
    loss = -np.log(np.maximum(probability, metrics.SMALLEST_PROBABILITY))
    scored = Scored(true, predicted, highest, loss, len(labels.names))
    return Side(frozenset(answer.classes), scored, among, answer.milliseconds_per_image, num_bytes)


def _choose(column: np.ndarray, index: int, highest: np.ndarray, chosen: np.ndarray) -> None:
    """Take a class where it is likelier than all before. What is not a number stays so, for the gate to refuse."""
    chosen[column > highest] = index
    np.maximum(highest, column, out=highest)


def _bytes_of(champion: Version) -> int:
    try:
        return int(champion.tags["refit.weights_bytes"])
    except (KeyError, ValueError):
        raise EvidenceError(f"{champion.uri} does not say how large it is; it was not promoted by Refit") from None


def _slices(accepted: pd.DataFrame, params: Params) -> list[Groups]:
    """The slices that split the test images at all."""
    rows = accepted[accepted["split"] == "test"]
    found = []
    for name in params.gate.slices:
        codes, values = pd.factorize(rows[name], sort=True)
        if len(values) > 1:
            found.append(Groups(tuple(f"{name} {value}" for value in values), codes))
    return found


def _history_of(params: Params, champion: Version) -> dict[str, Any]:
    """What the champion was made of, from the copy in its own release."""

    try:
        bundle = versions.bundle_of(champion, params.register)
        return {"params": bundle["params"], "images": versions.images_of(champion, bundle, params.register)}
    except TrackingError as error:
        if error.retryable:
            raise
        raise EvidenceError(f"{champion.uri} has no readable evidence; it was not promoted by Refit") from None


def _describe(
    params: Params,
    decision: Decision,
    champion: Version | None,
    new: Side,
    old: Side | None,
    classes: list[str],
    accepted: pd.DataFrame,
    before: dict[str, Any] | None,
) -> dict[str, Any]:
    card = json.loads(paths.MODEL_CARD.read_text())
    sides = {"candidate": new, "champion": old}
    return {
        "format": 1,
        "verdict": decision.verdict,
        "reasons": list(decision.reasons),
        "images_needed": decision.images_needed,
        "checks": [dataclasses.asdict(check) for check in decision.checks],
        "candidate": {
            "weights_sha256": card["weights_sha256"],
            "evaluation_sha256": sha256_of_file(paths.EVALUATION),
        },
        "champion": None if champion is None else champion.identity,
        "num_images": len(new.scored.labels),
        "overall": {name: _overall(side, params) for name, side in sides.items() if side},
        "per_class": _per_class(new, old, classes),
        "costs": {
            name: {"milliseconds_per_image": side.milliseconds_per_image, "bytes": side.bytes}
            for name, side in sides.items()
            if side
        },
        "changes": None
        if before is None
        else {
            "data": data_changes(before["images"], accepted),
            "params": params_changes(before["params"], public(params)),
        },
        "gate": as_dict(params.gate),
        "seed": params.seed,
    }


def _overall(side: Side, params: Params) -> dict[str, Any]:
    bins, settings = params.evaluate.calibration_bins, params.gate
    found = intervals.with_intervals(side.scored, bins, settings.bootstrap_samples, settings.confidence, params.seed)
    table = measures.reliability(side.scored, bins)
    return {
        **{name: dataclasses.asdict(interval) for name, interval in found.items()},
        "reliability": [
            {"confidence": float(confidence), "accuracy": float(accuracy), "count": int(count)}
            for confidence, accuracy, count in zip(table["confidence"], table["accuracy"], table["count"], strict=True)
            if count
        ],
    }


def _per_class(new: Side, old: Side | None, classes: list[str]) -> dict[str, Any]:
    right = _right_by_class(new.scored)
    was_right = None if old is None else _right_by_class(old.scored)
    support = np.bincount(new.scored.labels, minlength=len(classes))
    return {
        label: {
            "images": int(support[index]),
            "right": int(right[index]),
            "was_right": None if was_right is None else int(was_right[index]),
        }
        for index, label in enumerate(classes)
    }


def _right_by_class(scored: Scored) -> np.ndarray:
    return np.bincount(scored.labels[scored.predicted == scored.labels], minlength=scored.num_classes)


def _publish(
    params: Params,
    comparison: dict[str, Any],
    test: pd.DataFrame,
    accepted: pd.DataFrame,
    new: Side,
    old: Side | None,
    classes: list[str],
    candidate: Answer,
) -> None:
    files = [Path(name) for name in test["path"].iloc[: probe.NUM_GOLDEN]]
    labels = list(test["label"].iloc[: probe.NUM_GOLDEN])
    golden = probe.golden(files, labels, candidate.classes, _stored_golden_probabilities(candidate.classes))
    pictures = (
        None
        if old is None
        else disagreements(test, new.scored, old.scored, classes, json.loads(paths.MODEL_CARD.read_text()))
    )
    name = params.register.model_name
    publish_json(paths.GOLDEN, golden)
    publish_table(paths.IMAGES, accepted[["path", "sha256", "label", "split"]])
    publish_text(paths.COMPARISON_REPORT, comparison_page(comparison, pictures, name))
    publish_text(paths.COMPARISON_SUMMARY, comparison_markdown(comparison, name) + "\n")
    publish_json(paths.COMPARISON, comparison)


if __name__ == "__main__":
    run_stage(main)
