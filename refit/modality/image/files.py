"""The torch-free half of the image modality: what an image file is, found out by decoding it once.

    inspection = inspect(Path("cat.jpg"))

An image is untrusted input: only the formats named here are tried, the size is bounded before the pixels are
decoded, and whatever is wrong with the bytes becomes the `error` of the record, never an exception.
"""

import hashlib
import io
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ..contract import Inspection

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 100_000_000  # 300 MB once decoded to RGB
MAX_BYTES = 256 * 1024 * 1024
MAX_ASPECT = 50
"""The longest shape, as long side by short side. A network sees a square of the picture whose shorter side is scaled
to it first: at 1:2500, a PNG of a few kilobytes would become 1.4 GB of pixels on the way."""

_HASH_SIDE = 32
_CODECS = ("pil", "jpg", "libjpeg_turbo", "zlib", "zlib_ng", "webp", "libtiff")  # of FORMATS, in Pillow's names


@dataclass(frozen=True, kw_only=True)
class ImageInspection(Inspection):
    """With what only pictures have; empty with an `error`. The content is the decoded RGB pixels."""

    width: int = 0  # as shown, after the EXIF orientation
    height: int = 0
    mode: str = ""
    format: str = ""
    phash: str = ""  # 64-bit perceptual hash, 16 hexadecimal digits: near images differ in few bits


INSPECTED = ImageInspection


def decided_by() -> dict[str, str | None]:
    """What decides an inspection, beside the bytes and this file: the versions of Pillow and of its codecs."""
    return {name: features.version(name) for name in _CODECS}


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of sane size.

    Raises:
        ValueError: not a regular file, empty, or too large; the message is for the user.
        OSError: the file cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size == 0:
        raise ValueError("empty file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 2**20} MiB")
    return path.read_bytes()


def decode(content: bytes, least_side: int | None = None) -> Image.Image:
    """Decode an image completely and turn it upright.

    Args:
        least_side: a JPEG may be decoded at a half, a quarter or an eighth of its size, if no side gets shorter than
            this. A photo of 12 megapixels for a network of 224 pixels then takes a fifth of the time.

    Raises:
        ValueError: no image, damaged, too large, or too long; the message is for the user.
        MemoryError: there is not enough of it.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,} in all")
            refuse_ribbon(image)
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            image.load()
            upright = ImageOps.exif_transpose(image)
            upright.format = image.format
            return upright
    except UnidentifiedImageError:
        raise ValueError(f"not an image ({_looks_like(content)})") from None
    except (ValueError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # decoders raise whatever they like on damaged input
        if "out of memory" in str(error):  # Pillow's words for the error -9 of a decoder
            raise MemoryError from None
        reason = re.sub(r"<[^>]* at 0x[0-9a-f]+>", "the file", str(error)) or type(error).__name__
        raise ValueError(f"damaged image: {reason}") from None


def refuse_ribbon(image: Image.Image) -> None:
    """Raise ValueError for a picture that is more than MAX_ASPECT times as long as it is wide, or the reverse."""
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels, longer than {MAX_ASPECT} times its width")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any supported mode as RGB; what is transparent becomes white, as on a page."""
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")


def inspect(path: Path) -> ImageInspection:
    """Read and decode one image file; never raises for a bad one.

    Raises:
        OSError: the file cannot be read.
        MemoryError: there is not enough of it.
    """
    try:
        content = read_bytes(path)
    except ValueError as error:
        return ImageInspection(error=str(error), rule="unreadable")
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        image = decode(content)
    except ValueError as error:
        return ImageInspection(sha256=sha256, bytes=len(content), error=str(error), rule="unreadable")
    rgb = to_rgb(image)
    phash, group = _perceptual_hashes(rgb)
    return ImageInspection(
        sha256=sha256,
        bytes=len(content),
        width=image.width,
        height=image.height,
        mode=image.mode,
        format=image.format or "",
        content_sha256=hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest(),
        phash=phash,
        group=group,
    )


def _integer_dct(side: int) -> np.ndarray:
    """DCT-II matrix scaled to integers, so that every machine computes the very same hash."""
    k, n = np.arange(side)[:, None], np.arange(side)[None, :]
    return np.asarray(np.rint(np.cos(np.pi * k * (2 * n + 1) / (2 * side)) * 4096), dtype=np.int64)


_DCT = _integer_dct(_HASH_SIDE)


def _perceptual_hashes(rgb: Image.Image) -> tuple[str, str]:
    """(phash, group) from the low frequencies of the picture's brightness.

    The phash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions") compares the
    8 x 8 lowest frequencies with their median. The group keeps only the signs of the lowest 4 x 4 but the mean:
    these coefficients are large, so re-encoding or resizing a picture rarely turns one.
    """
    gray = np.asarray(rgb.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BILINEAR), dtype=np.int64)
    frequencies = _DCT @ gray @ _DCT.T
    low = frequencies[:8, :8].ravel()
    phash = _as_hex(low > np.median(low[1:]), digits=16)
    group = _as_hex(frequencies[:4, :4].ravel()[1:] > 0, digits=4)
    return phash, group


def _as_hex(bits: np.ndarray, digits: int) -> str:
    number = int("".join("1" if bit else "0" for bit in bits), 2)
    return f"{number:0{digits}x}"


def _looks_like(content: bytes) -> str:
    if content.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer: run `git lfs pull`"
    if content[:512].lstrip()[:1] == b"<":
        return "HTML or XML"
    try:
        content[:512].decode("utf-8")
    except UnicodeDecodeError:
        return "unknown format"
    return "text"
