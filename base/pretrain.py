"""Rebuilds the embedded base checkpoint, with Refit itself: render glyphs, then train on them from scratch.

    python base/pretrain.py                 -> base/glyphs.safetensors, base/glyphs.json     (minutes on one core)

The pretraining is an ordinary Refit project in a temporary folder: `data.source` is the folder of rendered
glyphs, `checkpoint.uri` is `scratch`, and the stages run as they always do. No handwriting is used.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from refit.files import publish_json, publishing, sha256_of_file

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS, PROVENANCE = ROOT / "base" / "glyphs.safetensors", ROOT / "base" / "glyphs.json"
STAGES = ("ingest", "validate", "fetch", "finetune", "evaluate")

RECIPE = {
    "data": {"source": "glyphs", "test_fraction": 0.05, "val_fraction": 0.1},
    "validate": {"min_examples_per_class": {"train": 5, "val": 2, "test": 2}},
    "checkpoint": {"uri": "scratch", "sha256": None},
    "finetune": {
        "model": "shufflenet_v2_x0_5",
        "epochs": 14,
        "batch_size": 64,
        "learning_rate": 0.004,
        "weight_decay": 0.01,
        "label_smoothing": 0.1,
        "warmup_fraction": 0.1,
        "device": "cpu",
        "num_threads": 1,
    },
    "image": {
        "finetune": {
            "size": 64,
            "augment": {"rotation": 10.0, "translation": 0.06, "scale": 1.1, "horizontal_flip": False},
        },
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=300, help="images per glyph")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        _run(
            sys.executable,
            str(ROOT / "base/render_glyphs.py"),
            "glyphs",
            "--variants",
            str(arguments.variants),
            cwd=project,
        )
        _write_params(project / "params.yaml")
        for stage in STAGES:
            _run(sys.executable, "-m", f"tasks.{stage}", cwd=project)
        _export(project, arguments.variants)


def _write_params(target: Path) -> None:
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    for section, values in RECIPE.items():
        params[section].update(values)
    yaml.dump(params, target)


def _export(project: Path, variants: int) -> None:
    card = json.loads((project / "models/model.json").read_text())
    evaluation = json.loads((project / "metrics/evaluation.json").read_text())
    description = {name: card[name] for name in ("architecture", "classes", "preprocessing")}
    with publishing(WEIGHTS) as partial:
        save_file(load_file(project / "models/model.safetensors"), partial, metadata={"refit": json.dumps(description)})
        partial.chmod(0o644)
    provenance = {
        "made_by": "python base/pretrain.py",
        "sha256": sha256_of_file(WEIGHTS),
        "data": f"{variants} rendered variants of each of {len(card['classes'])} glyphs; no handwriting",
        "fonts": "DejaVu, STIX and Computer Modern as shipped with matplotlib",
        "recipe": RECIPE,
        "test_accuracy": evaluation["overall"]["accuracy"],
        "data_digest": card["lineage"]["data_digest"],
        "environment": card["environment"],
        "license": "Apache-2.0",
    }
    publish_json(PROVENANCE, provenance)
    print(f"{WEIGHTS.relative_to(ROOT)}: checkpoint.sha256 is {provenance['sha256']}")


def _run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


if __name__ == "__main__":
    main()
