"""Stage `sample`: writes built-in examples of the modality in use: all can be tried without data and network.

python -m tasks.sample        -> data/sample/     (handwritten digits; docstrings of libraries)
"""

import shutil

from refit import modality
from refit.errors import run_stage
from refit.files import publishing
from refit.params import load_params
from refit.paths import SAMPLE
from refit.progress import say


def main() -> None:
    sample = modality.sample(load_params().data.modality)
    with publishing(SAMPLE) as partial:
        partial.mkdir()
        what = sample.write(partial)
        shutil.rmtree(SAMPLE, ignore_errors=True)
    say(f"{what} in {SAMPLE}/")


if __name__ == "__main__":
    run_stage(main)
