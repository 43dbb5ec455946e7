"""The effect `compare`: candidate against champion, on the same test examples; what the gate says about it.

    comparison = compare()      the outputs of the stages, the champion in the registry
                                -> reports/comparison.{json,html,md}, reports/golden.json, reports/examples.csv,
                                   reports/profile.json

Not a DVC stage: it depends on a server. The champion is asked for directly by its alias; "there is none yet" is
only believed from a registry that answers so, and whose decisions know of none. It predicts in a process of its own,
with its own stored code, and without anything that is secret here.

comparison.json is a record (`refit/gate/comparison.py`). `examples.csv` has path, sha256, label, split of every
accepted example: what the next comparison tells changes from. `profile.json` (`refit/data/profile.py`) says what the
training examples look like: what it tells a shift from.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from refit import modality, paths
from refit.data.changes import data_changes, params_changes
from refit.data.profile import Features, Profile, profile_of, read_features
from refit.data.shift import Shift, shift_since
from refit.data.summary import ValidationSummary
from refit.errors import EvidenceError, TrackingError, WorkspaceError, run_stage
from refit.files import publish_table, publish_text, sha256_of_file
from refit.gate import evidence
from refit.gate.checks import Check, Groups, Labels, Side
from refit.gate.comparison import (
    FORMAT,
    Changes,
    Compared,
    Comparison,
    Costs,
    SideName,
    class_rows,
    side_measures,
    slice_rows,
)
from refit.gate.data_checks import leak_checks, shift_checks
from refit.gate.decide import Decision, decide
from refit.gate.evidence import Bundle
from refit.gate.golden import NUM_GOLDEN, golden
from refit.locks import one_at_a_time
from refit.model.card import read_card
from refit.params import Params, as_dict, load_params, public
from refit.progress import say
from refit.records import publish_record, read_record
from refit.registry import releases, versions
from refit.registry.probe import Answer, Bare, Question, ask, ask_both
from refit.registry.records import Version
from refit.reports.comparison import comparison_markdown, comparison_page
from refit.reports.disagreements import disagreements
from refit.scoring import metrics
from refit.scoring.clusters import numbered
from refit.scoring.metrics import Scored

_NEEDED = (
    *(paths.MANIFEST, paths.ACCEPTED, paths.VALIDATION_SUMMARY, paths.PREDICTIONS, paths.EVALUATION),
    *(paths.MODEL_CARD, paths.MODEL_WEIGHTS, paths.FEATURES),
)


@dataclass(frozen=True)
class _Champion:
    """The version, what it says of the test examples, and what it was made of."""

    version: Version
    answer: Answer
    bundle: Bundle
    images: pd.DataFrame  # path, sha256, label, split
    profile: Profile | None  # of its training examples; None: registered before there were profiles


def main() -> None:
    comparison = compare()
    say(f"gate: {comparison.verdict}: {'; '.join(comparison.reasons)}: {paths.COMPARISON_REPORT}")


@one_at_a_time()
def compare() -> Comparison:
    """Compare what is in the workspace with the champion, and write the comparison.

    Raises:
        WorkspaceError: an output of a stage is missing.
        TrackingError: the registry does not answer.
        EvidenceError: the champion is gone or does not load, or what it was made of cannot be read.
    """
    params = load_params()
    _require_outputs()
    test, accepted = _test_images()
    candidate, champion = _ask(params, test)
    labels = _labels(params, test, candidate, champion)
    new, old = _sides(candidate, champion, test, labels)
    features = read_features(paths.FEATURES)
    shift = _shift(params, champion, accepted, features)
    bins, about_data = params.evaluate.calibration_bins, _about_data(params, shift)
    slices = _slices(accepted, params)
    decision = decide(new, old, labels, slices, params.gate, bins, params.seed, about_data)
    comparison = _describe(params, decision, champion, new, old, labels, slices, accepted, shift)
    train = accepted[accepted["split"] == "train"]
    publish_record(paths.PROFILE, profile_of(train, _columns(params), features))
    _publish(params, comparison, test, accepted, new, old, labels, candidate)
    return comparison


def _require_outputs() -> None:
    missing = [path.as_posix() for path in _NEEDED if not path.exists()]
    if missing:
        raise WorkspaceError(
            f"nothing to compare yet: {', '.join(missing)} missing; run `dvc repro` or `refit retrain`"
        )


def _test_images() -> tuple[pd.DataFrame, pd.DataFrame]:
    """path, sha256, label and group of the images that the candidate was tested on; and all accepted images."""
    accepted = pd.read_parquet(paths.ACCEPTED)
    predictions = pd.read_parquet(paths.PREDICTIONS, columns=["path", "sha256", "label"])
    test = accepted[accepted["split"] == "test"].reset_index(drop=True)
    if not test["sha256"].equals(predictions["sha256"]) or not test["label"].equals(predictions["label"]):
        raise EvidenceError(
            f"{paths.PREDICTIONS} is not about the test examples of {paths.ACCEPTED}; run `dvc repro evaluate`"
        )
    for path, sha256 in zip(test["path"], test["sha256"], strict=True):
        evidence.require_as_validated(Path(path), sha256)
    return predictions.assign(group=test["group"]), accepted


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
        first = [next(file.iter_batches(NUM_GOLDEN, columns=[f"p:{label}"])) for label in classes]
    return np.column_stack([batch.column(0).to_numpy() for batch in first])


def _ask(params: Params, test: pd.DataFrame) -> tuple[Answer, _Champion | None]:
    """What the trained model says of the golden examples, the champion of all test examples; and what both cost."""
    files = [Path(name) for name in test["path"]]
    asked = Question(Bare(paths.MODEL_WEIGHTS, paths.MODEL_CARD), files[:NUM_GOLDEN], paths.MODEL_WEIGHTS.as_posix())
    version = releases.champion(params.register)
    if version is None:
        candidate, champion = ask(asked), None
    else:
        bundle, images, profile = _made_of(params, version)
        with tempfile.TemporaryDirectory(prefix="refit-champion-") as folder:
            model = versions.fetch_packed(version, bundle, params.register, Path(folder))
            candidate, said = ask_both(asked, Question(model, files, version.uri))
        champion = _Champion(version, said, bundle, images, profile)
    _require_same_model(candidate)
    return candidate, champion


def _made_of(params: Params, version: Version) -> tuple[Bundle, pd.DataFrame, Profile | None]:
    """The champion's evidence, the list of its examples and their profile, from the copy in its own release."""
    try:
        bundle = versions.bundle_of(version, params.register)
        images = versions.images_of(version, bundle, params.register)
        return bundle, images, versions.profile_of(version, bundle, params.register)
    except TrackingError as error:
        if error.retryable:
            raise
        raise EvidenceError(f"{version.uri} has no readable evidence; it was not promoted by Refit") from None


def _sides(
    candidate: Answer, champion: _Champion | None, test: pd.DataFrame, labels: Labels
) -> tuple[Side, Side | None]:
    """Both models in the indices of `labels.names`."""
    lasting = labels.lasting(frozenset((champion.answer if champion else candidate).classes))
    stored = _stored_probabilities(candidate.classes)
    new = _side(candidate, stored, test, labels, lasting, paths.MODEL_WEIGHTS.stat().st_size)
    if champion is None:
        return new, None
    said = champion.answer
    return new, _side(said, said.probabilities.T, test, labels, lasting, _bytes_of(champion.version))


def _labels(params: Params, test: pd.DataFrame, candidate: Answer, champion: _Champion | None) -> Labels:
    """All classes that a model knows or an image has; and those that the data source has, usable images or not."""
    known = {*candidate.classes, *(champion.answer.classes if champion else ())}
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
    scored = Scored(true, predicted, highest, loss, len(labels.names), numbered(test["group"].tolist()))
    return Side(frozenset(answer.classes), scored, among, answer.milliseconds, num_bytes)


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


def _columns(params: Params) -> tuple[str, ...]:
    """Of the table of accepted examples: by what a shift is told."""
    kind = modality.settings(params.data.modality)
    return ("label", *kind.SLICES, *kind.STATISTICS)


def _shift(params: Params, champion: _Champion | None, accepted: pd.DataFrame, features: Features) -> Shift | None:
    """None: there is no champion, or nobody wants to know."""
    if champion is None or params.gate.shift.policy == "off":
        return None
    if champion.profile is None:
        said = f"{champion.version.uri} was registered before versions had a profile of their training examples."
        return Shift(num_before=0, num_new=0, questions=(), remarks=(said,))
    train = accepted[accepted["split"] == "train"]
    return shift_since(champion.profile, champion.images["sha256"].tolist(), train, features, params.seed)


def _about_data(params: Params, shift: Shift | None) -> list[Check]:
    """What the gate makes of the data."""
    validation = read_record(
        paths.VALIDATION_SUMMARY, ValidationSummary, WorkspaceError, "; run `dvc repro -f validate`"
    )
    leaks = leak_checks(validation, params.validate.rules.leak)
    return [*leaks, *shift_checks(shift, params.gate.shift)]


def _describe(
    params: Params,
    decision: Decision,
    champion: _Champion | None,
    new: Side,
    old: Side | None,
    labels: Labels,
    slices: Sequence[Groups],
    accepted: pd.DataFrame,
    shift: Shift | None,
) -> Comparison:
    settings, bins = params.gate, params.evaluate.calibration_bins
    sides: dict[SideName, Side] = {"candidate": new}
    if old is not None:
        sides["champion"] = old
    measured = {
        name: side_measures(side.scored, bins, settings.bootstrap_samples, settings.confidence, params.seed)
        for name, side in sides.items()
    }
    return Comparison(
        format=FORMAT,
        verdict=decision.verdict,
        reasons=decision.reasons,
        images_needed=decision.images_needed,
        checks=decision.checks,
        candidate=Compared(read_card(paths.MODEL_CARD).weights_sha256, sha256_of_file(paths.EVALUATION)),
        champion=champion.version.identity if champion else None,
        num_images=len(new.scored.labels),
        overall=measured,
        per_class=class_rows(new, old, labels.names),
        per_slice=slice_rows(new, old, slices),
        costs={name: Costs(side.milliseconds_per_image, side.bytes) for name, side in sides.items()},
        changes=_changes(params, champion, accepted) if champion else None,
        gate=as_dict(settings),
        seed=params.seed,
        shift=shift,
    )


def _changes(params: Params, champion: _Champion, accepted: pd.DataFrame) -> Changes:
    return Changes(
        data=data_changes(champion.images, accepted),
        params=params_changes(champion.bundle.params, public(params)),
    )


def _publish(
    params: Params,
    comparison: Comparison,
    test: pd.DataFrame,
    accepted: pd.DataFrame,
    new: Side,
    old: Side | None,
    labels: Labels,
    candidate: Answer,
) -> None:
    first = test.iloc[:NUM_GOLDEN]
    probabilities = _stored_golden_probabilities(candidate.classes)
    examples = golden([Path(name) for name in first["path"]], list(first["label"]), candidate.classes, probabilities)
    card = read_card(paths.MODEL_CARD)
    pictures = None if old is None else disagreements(test, new.scored, old.scored, labels.names, card)
    name = params.register.model_name
    publish_record(paths.GOLDEN, examples)
    publish_table(paths.EXAMPLES, accepted[["path", "sha256", "label", "split"]])
    publish_text(paths.COMPARISON_REPORT, comparison_page(comparison, pictures, name))
    publish_text(paths.COMPARISON_SUMMARY, comparison_markdown(comparison, name) + "\n")
    publish_record(paths.COMPARISON, comparison)


if __name__ == "__main__":
    run_stage(main)
