"""Every path that a stage reads or writes, named once. All are relative to the project's root folder.

`tests/test_architecture.py` compares this table with dvc.yaml.
"""

from pathlib import Path

PARAMS = Path("params.yaml")
PARAMS_SCHEMA = Path("params.schema.json")
LOCK = Path("dvc.lock")

ENVIRONMENT = Path("reports/environment.json")  # environment

SAMPLE = Path("data/sample")  # sample

MANIFEST = Path("data/manifest.parquet")  # ingest
ACCIDENTS = Path(".refit/accidents.json")  # ingest, for the flow: what could not be inspected this time
UNPACKED = Path("data/unpacked")  # ingest: the images, when the data source is an archive

EXCEPTIONS = Path("data/exceptions.csv")  # what people have looked at and found good
ACCEPTED = Path("data/accepted.parquet")  # validate
CROISSANT = Path("data/croissant.json")
REJECTED = Path("data/rejected.parquet")
VALIDATION_SUMMARY = Path("reports/validation.json")
VALIDATION_REPORT = Path("reports/validation.html")
FINDINGS = Path("reports/findings.json")

BASE_WEIGHTS = Path("checkpoints/base.safetensors")  # fetch
BASE_CARD = Path("checkpoints/base.json")

MODEL_WEIGHTS = Path("models/model.safetensors")  # finetune
MODEL_CARD = Path("models/model.json")
HISTORY = Path("plots/history.csv")
STATES = Path(".refit/state")  # of trainings that go on: <fingerprint>/state.safetensors, best-<epoch>.safetensors
LIVE_HISTORY = Path(".refit/live/history.csv")  # so far, with the columns of HISTORY

WORK = Path(".refit/live/work.json")  # and what was computed for it

METRICS = Path("metrics/evaluation.json")  # evaluate
EVALUATION = Path("reports/evaluation.json")
PREDICTIONS = Path("data/predictions.parquet")
CONFUSION_PLOT = Path("plots/confusion.csv")
RELIABILITY_PLOT = Path("plots/reliability.csv")
EVALUATION_REPORT = Path("reports/evaluation.html")

CHANGES = Path("reports/changes.json")  # in the flow and `refit validate`, of which DVC knows nothing
CHANGES_REPORT = Path("reports/changes.html")
LABEL_ANSWERS = Path("data/label_answers.csv")  # what people have found out about labels that looked wrong
LABEL_SUSPECTS = Path("reports/label_suspects.csv")  # suspects
LABEL_SUSPECTS_REPORT = Path("reports/label_suspects.html")
FEATURES = Path("data/features.safetensors")

COMPARISON = Path("reports/comparison.json")  # compare, an effect: DVC knows nothing of these
COMPARISON_REPORT = Path("reports/comparison.html")
COMPARISON_SUMMARY = Path("reports/comparison.md")
REVIEW = Path("reports/review.html")  # register, and `refit review`
GOLDEN = Path("reports/golden.json")
EXAMPLES = Path("reports/examples.csv")
PROFILE = Path("reports/profile.json")

STAGE_OUTPUTS: dict[str, tuple[Path, ...]] = {
    "environment": (ENVIRONMENT,),
    "sample": (SAMPLE,),
    "ingest": (MANIFEST, UNPACKED),
    "validate": (ACCEPTED, CROISSANT, REJECTED, VALIDATION_SUMMARY, VALIDATION_REPORT, FINDINGS),
    "fetch": (BASE_WEIGHTS, BASE_CARD),
    "finetune": (MODEL_WEIGHTS, MODEL_CARD, HISTORY),
    "evaluate": (METRICS, EVALUATION, PREDICTIONS, CONFUSION_PLOT, RELIABILITY_PLOT, EVALUATION_REPORT),
    "suspects": (LABEL_SUSPECTS, LABEL_SUSPECTS_REPORT, FEATURES),
}
"""Stage name -> what it writes, in the order of the work."""
