"""From a picture, however it comes, to the square that a network reads. No torch: a registered model carries this."""

import base64
import binascii
import io

import numpy as np
from PIL import Image

from . import files
from .preprocessing import Preprocessing

INPUT = "image"
"""The name of a request's column: {"image": [...]}."""

REQUIRES = ("pillow", "torchvision")

slices = None
"""A picture is judged apart by the manifest's columns alone."""

Example = bytes | np.ndarray
"""An encoded file; or pixels, (height, width), or (height, width, channels) with 1 (gray), 3 (RGB) or 4 (RGBA)
channels, uint8."""


def prepare(picture: Example, preprocessing: Preprocessing) -> np.ndarray:
    """One picture as the network's square (3, crop_size, crop_size) uint8.

    Raises:
        ValueError: the picture cannot be read; the message is for the user.
    """
    resize, crop = preprocessing.resize_size, preprocessing.crop_size
    image = _from_pixels(picture) if isinstance(picture, np.ndarray) else files.decode(picture, resize)
    rgb = files.to_rgb(image)
    width, height = (max(crop, side * resize // min(rgb.size)) for side in rgb.size)
    rgb = rgb.resize((width, height), Image.Resampling[preprocessing.interpolation.upper()])
    left, top = round((width - crop) / 2), round((height - crop) / 2)  # rounded as torchvision does
    square = rgb.crop((left, top, left + crop, top + crop))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))  # (3, crop, crop) uint8


def parse(value: object) -> Example:
    """An example of a request: bytes, a file in base64 (as it comes over HTTP), or pixels, as array or nested lists.

    Raises:
        ValueError: it is none of these; the message is for the user.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except binascii.Error:
            raise ValueError("a string must be an encoded image file in base64") from None
    return _as_pixels(value)


def request(content: bytes) -> bytes:
    """A file's bytes as a request has them: as they are."""
    return content


def picture(prepared: np.ndarray, preprocessing: Preprocessing) -> str:  # noqa: ARG001
    """(3, height, width) uint8 as the address of a PNG that holds it all: what a page shows of an example."""
    buffer = io.BytesIO()
    Image.fromarray(prepared.transpose(1, 2, 0)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _as_pixels(value: object) -> np.ndarray:
    try:
        pixels = np.asarray(value)
    except ValueError:
        raise ValueError("pixels must be rows of equal length") from None
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(f"pixels must be whole numbers from 0 to 255, found {pixels.dtype}")
    if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
        raise ValueError(f"pixels must be whole numbers from 0 to 255, found {pixels.min()} to {pixels.max()}")
    return pixels.astype(np.uint8)


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4) or not pixels.size:
        raise ValueError(
            f"pixels must be (height, width) or (height, width, 1, 3 or 4) uint8, found {pixels.shape} {pixels.dtype}"
        )
    image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and channels == 1 else pixels)
    files.refuse_ribbon(image)
    return image
