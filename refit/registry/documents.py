"""What a release says of itself to others: a model card that Hugging Face reads, and a CycloneDX bill of materials.

    README.md     header for search and measures, then text: https://huggingface.co/docs/hub/model-cards
    bom.json      CycloneDX 1.6 with a model card and the libraries: https://cyclonedx.org/docs/1.6/json/

Both are functions of the evidence, the card and the required libraries: no clock, no machine. The bill's `modelCard`
and the header's `model-index` hold the measures of the evidence; the bill has their intervals too.
"""

from collections.abc import Sequence

from ..gate.evidence import Bundle
from ..model.card import Card
from ..params import as_yaml

_TITLES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "expected_calibration_error": "Expected calibration error",
    "negative_log_likelihood": "Log loss",
}


def model_card(bundle: Bundle, card: Card) -> str:
    """README.md of a release."""
    header = as_yaml(_header(bundle, card))
    measures = "\n".join(
        f"| {_TITLES.get(name, name)} | {measure.value:.4f} | {measure.low:.4f} to {measure.high:.4f} |"
        for name, measure in sorted(bundle.metrics.items())
    )
    verdict = bundle.comparison.verdict
    reasons = "".join(f"\n- {reason}" for reason in bundle.comparison.reasons)
    return f"""---
{header}---

# {bundle.model_name}

{_task(card).replace("-", " ").capitalize()} by {card.architecture}; it knows {", ".join(card.classes)}.
Fine-tuned from `{card.lineage.base_uri}`; probabilities are calibrated.

## Use

```python
mlflow.pyfunc.load_model(".").predict({{"{card.modality}": [open("example", "rb").read()]}})
```

It needs what `requirements.txt` names, and brings its code in `code/`.

## Measures

On {bundle.comparison.num_images} examples that it was not trained on:

| measure | value | interval |
|---|---:|---|
{measures}

The gate says **{verdict}**:{reasons}

## Limits

It knows the classes above and nothing else: whatever it is shown becomes one of them. The measures hold for data like
that which it was tested on.

## Where it comes from

| | |
|---|---|
| commit | {bundle.git.commit} |
| data | {bundle.lineage.data_digest} |
| base checkpoint | {bundle.lineage.base_sha256} |
| params | {bundle.lineage.params_digest} |
| weights | {bundle.lineage.weights_sha256} |

`refit/evidence.json` is all that the decision to release it rests on; `bom.json` lists what it is made of.
"""


def _task(card: Card) -> str:
    """Hugging Face's word."""
    return f"{card.modality}-classification"


def _header(bundle: Bundle, card: Card) -> dict[str, object]:
    metrics = [
        {"type": name, "name": _TITLES.get(name, name), "value": measure.value}
        for name, measure in sorted(bundle.metrics.items())
    ]
    task, dataset = _task(card), {"type": "private", "name": bundle.lineage.data_digest[:12], "split": "test"}
    base = card.lineage.base_uri
    results = [{"task": {"type": task}, "dataset": dataset, "metrics": metrics}]
    return {
        "library_name": "mlflow",
        "pipeline_tag": task,
        "tags": ["refit", card.architecture],
        **({"base_model": "/".join(base.removeprefix("hf:").split("/")[:2])} if base.startswith("hf:") else {}),
        "model-index": [{"name": bundle.model_name, "results": results}],
    }


def bill_of_materials(bundle: Bundle, card: Card, requirements: Sequence[str]) -> dict[str, object]:
    """bom.json of a release.

    Args:
        requirements: lines such as numpy==2.4.6.
    """
    name, lineage = bundle.model_name, bundle.lineage
    model, data, base = f"model:{lineage.weights_sha256}", f"data:{lineage.data_digest}", f"base:{lineage.base_sha256}"
    libraries = [_library(line) for line in requirements if "==" in line]
    measures: list[dict[str, object]] = [
        {
            "type": measure_name,
            "value": repr(measure.value),
            "confidenceInterval": {"lowerBound": repr(measure.low), "upperBound": repr(measure.high)},
        }
        for measure_name, measure in sorted(bundle.metrics.items())
    ]
    refs = [str(library["bom-ref"]) for library in libraries]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": model,
                "name": name,
                "version": bundle.content_digest[:12],
                "hashes": [{"alg": "SHA-256", "content": lineage.weights_sha256}],
                "modelCard": {
                    "modelParameters": {
                        "task": _task(card),
                        "architectureFamily": "neural network",
                        "modelArchitecture": card.architecture,
                        "datasets": [{"ref": data}],
                        "inputs": [{"format": card.modality}],
                        "outputs": [{"format": "label and calibrated probabilities"}],
                    },
                    "quantitativeAnalysis": {"performanceMetrics": measures},
                    "considerations": {
                        "technicalLimitations": ["It knows its classes only: whatever it is shown becomes one of them."]
                    },
                },
                "properties": [
                    {"name": "refit:commit", "value": bundle.git.commit},
                    {"name": "refit:params", "value": lineage.params_digest},
                    {"name": "refit:gate", "value": bundle.comparison.verdict},
                ],
            }
        },
        "components": [
            {
                "type": "data",
                "bom-ref": data,
                "name": "training data",
                "version": lineage.data_digest[:12],
                "hashes": [{"alg": "SHA-256", "content": lineage.data_digest}],
                "data": [{"type": "dataset", "name": "training data"}],
            },
            {
                "type": "machine-learning-model",
                "bom-ref": base,
                "name": card.lineage.base_uri,
                "hashes": [{"alg": "SHA-256", "content": lineage.base_sha256}],
            },
            *libraries,
        ],
        "dependencies": [{"ref": model, "dependsOn": sorted([data, base, *refs])}],
    }


def _library(requirement: str) -> dict[str, object]:
    name, _, version = requirement.strip().partition("==")
    address = f"pkg:pypi/{name}@{version}"
    return {"type": "library", "bom-ref": address, "name": name, "version": version, "purl": address}
