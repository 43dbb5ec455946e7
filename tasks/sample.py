"""Stage `sample`: writes the built-in data, 1,797 handwritten digits, as an image folder.

    python -m tasks.sample        -> data/digits/<digit>/<number>.png

The digits come with scikit-learn (Alpaydin and Kaynak 1998, UCI machine learning repository, "Optical
recognition of handwritten digits": https://archive.ics.uci.edu/dataset/80): 8 x 8 pixels, 17 levels of gray.
"""

import shutil

import numpy as np
from PIL import Image

from refit.errors import run_stage
from refit.files import publishing
from refit.paths import DIGITS
from refit.progress import say, track


def main() -> None:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    with publishing(DIGITS) as partial:
        partial.mkdir()
        for number, (image, target) in enumerate(track(zip(images, targets, strict=True), "write", len(images))):
            folder = partial / str(target)
            folder.mkdir(exist_ok=True)
            pixels = np.rint(image.reshape(8, 8) * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04d}.png")
        shutil.rmtree(DIGITS, ignore_errors=True)
    say(f"{len(images):,} images in {DIGITS}/")


if __name__ == "__main__":
    run_stage(main)
