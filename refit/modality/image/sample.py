"""The built-in pictures: 1,797 handwritten digits, 8 x 8 pixels with 17 levels of gray, as an image folder.

They come with scikit-learn (Alpaydin and Kaynak 1998, UCI machine learning repository, "Optical recognition of
handwritten digits": https://archive.ics.uci.edu/dataset/80).
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image


def decided_by() -> dict[str, str]:
    """Versions of what has them, and of what writes them."""
    return {name: version(name) for name in ("numpy", "pillow", "scikit-learn")}


def write(folder: Path) -> str:
    """`<folder>/<digit>/<number>.png`."""
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        (folder / str(target)).mkdir(exist_ok=True)
        pixels = np.rint(image.reshape(8, 8) * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / str(target) / f"{number:04d}.png")
    return f"{len(images):,} handwritten digits"
