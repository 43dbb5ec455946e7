"""The torch-free half of the image modality: what an image file is, found out by decoding it once.

    inspection = inspect(Path("cat.jpg"))

An image is untrusted input: only the formats named here are tried, the size is bounded before the pixels are
decoded, and whatever is wrong with the bytes becomes the `error` of the record, never an exception.
"""

import base64
import contextlib
import hashlib
import io
import re
import stat
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, ImageStat, TiffImagePlugin, UnidentifiedImageError, features

from ..contract import Inspection, UnusableError

COLUMN = None
"""Pictures are files."""

KIND = "ImageObject"

try:  # the extra `heif`: photos as iPhones write them
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:
    pillow_heif = None  # type: ignore[assignment, unused-ignore]

FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"),
    *(("AVIF",) if features.check("avif") else ()),
    *(("HEIF",) if pillow_heif else ()),
)
MAX_PIXELS = 100_000_000  # 300 MB once decoded to RGB
MAX_BYTES = 256 * 1024 * 1024
MAX_ASPECT = 50
"""The longest shape, as long side by short side. A network sees a square of the picture whose shorter side is scaled
to it first: at 1:2500, a PNG of a few kilobytes would become 1.4 GB of pixels on the way."""

SIGNATURE_SIDE, COLOUR_SIDE, FINE_SIDE = 32, 8, 64
_LEAST_CONTRAST = 3.0  # of 255, standard deviation of the brightness
_SHOWN_SIDE, _SIDE_OF_TINY = 144, 48  # pixels, on a page
_MEASURED_SIDE = 512  # brightness, contrast and sharpness are those of the picture at this size
_CODECS = ("pil", "jpg", "libjpeg_turbo", "zlib", "zlib_ng", "webp", "libtiff", "avif", "littlecms2")
"""What decodes FORMATS and converts colours, in Pillow's names."""
_LIKE_SRGB = (
    16  # of 255: the largest difference of a colour; that of gray with gamma 2.2 is 7, of Display P3 more than 40
)
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, kw_only=True)
class ImageInspection(Inspection):
    """With what only pictures have; empty with an `error`. The content is the decoded RGB pixels."""

    width: int = 0  # as shown, after the EXIF orientation
    height: int = 0
    mode: str = ""
    format: str = ""
    frames: int = 0  # pictures or pages in the file, of which the first is used
    brightness: float = 0.0  # mean of gray, 0 to 255
    contrast: float = 0.0  # standard deviation of gray
    sharpness: float = 0.0  # standard deviation of the Laplacian of gray
    profile: str = ""  # of its colours, where they would look different as sRGB, as which they are read
    warnings: str = ""  # of the decoder, and what it could only guess


INSPECTED = ImageInspection


def decided_by() -> dict[str, str | None]:
    """What decides an inspection, beside the bytes and this file: the versions of Pillow and of its codecs."""
    heif = pillow_heif.__version__ if pillow_heif else None
    return {name: features.version(name) for name in _CODECS} | {"pillow_heif": heif}


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of sane size.

    Raises:
        UnusableError: not a regular file, empty, or too large; the message is for the user.
        OSError: the file cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableError("not_image", "not a regular file")
    if status.st_size == 0:
        raise UnusableError("empty", "empty file")
    if status.st_size > MAX_BYTES:
        raise UnusableError("bomb", f"larger than {MAX_BYTES // 2**20} MiB")
    return path.read_bytes()


def decode(content: bytes, least_side: int | None = None) -> Image.Image:
    """Decode an image completely and turn it upright.

    Args:
        least_side: a JPEG may be decoded at a half, a quarter or an eighth of its size, if no side gets shorter than
            this. A photo of 12 megapixels for a network of 224 pixels then takes a fifth of the time.

    Raises:
        UnusableError: (a ValueError) no image, damaged, too large, or too long; the message is for the user.
        MemoryError: there is not enough of it.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusableError("bomb", f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,} in all")
            refuse_ribbon(image)
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            image.load()
            upright = ImageOps.exif_transpose(image)
            upright.format = _format_of(image)
            _refuse_unfinished_runs(image, content)
            _refuse_missing_strips(image, content)
            return upright
    except UnidentifiedImageError:
        raise _not_an_image(content) from None
    except (UnusableError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise UnusableError("bomb", f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # decoders raise whatever they like on damaged input
        if "out of memory" in str(error):  # Pillow's words for the error -9 of a decoder
            raise MemoryError from None
        reason = re.sub(r"<[^>]* at 0x[0-9a-f]+>", "the file", str(error)) or type(error).__name__
        raise UnusableError("damaged", f"damaged image: {reason}") from None


def refuse_ribbon(image: Image.Image) -> None:
    """Raise ValueError for a picture that is more than MAX_ASPECT times as long as it is wide, or the reverse."""
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise UnusableError("bomb", f"{image.width} x {image.height} pixels, longer than {MAX_ASPECT} times its width")


def _format_of(image: Image.Image) -> str:
    """A JPEG to which a phone added a depth map or a preview (MPO) is a JPEG."""
    return "JPEG" if image.format == "MPO" else image.format or ""


def _frames_of(image: Image.Image) -> int:
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def _refuse_unfinished_runs(image: Image.Image, content: bytes) -> None:
    """Pillow fills up what a run-length coded BMP lacks with black."""
    if image.format == "BMP" and image.info.get("compression") in (1, 2) and b"\0\1" not in content[-5:]:
        raise UnusableError("damaged", "damaged image: image file is truncated")


def _refuse_missing_strips(image: Image.Image, content: bytes) -> None:
    """Pillow leaves black what no strip (or tile) of a TIFF covers, and libtiff trusts their sizes."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    width, height = tags[256], tags[257]
    is_tiled = 324 in tags
    begins, lengths = (_numbers(tags.get(tag, ())) for tag in ((324, 325) if is_tiled else (273, 279)))
    if any(begin + length > len(content) for begin, length in zip(begins, lengths, strict=False)):
        raise UnusableError("damaged", "damaged image: image file is truncated")
    across, down = (tags[322], tags[323]) if is_tiled else (width, tags.get(278, height))
    num_planes = tags.get(277, 1) if tags.get(284, 1) == 2 else 1
    num_bytes = height * (width * sum(_numbers(tags.get(258, 1))) // 8)
    is_short = tags.get(259, 1) == 1 and lengths and sum(lengths) < num_bytes  # not compressed
    if is_short or len(begins) < num_planes * -(-height // down) * -(-width // across):
        raise UnusableError("damaged", "damaged image: parts of it are missing")


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (int(str(value)),)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any supported mode as RGB, as it is seen.

    What is transparent becomes white, as on a page; of 16 bits of gray the upper 8 are kept; CMYK goes through the ink
    profile that the picture brings, if any.
    """
    if image.mode in _SIXTEEN_BITS:
        upper = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(upper).convert("RGB")
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a broken profile says nothing
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            seen = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if seen is not None:
                return seen
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
    except UnusableError as error:
        return ImageInspection(error=str(error), rule=error.rule)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            image, frames = decode(content), _count_frames(content)
    except UnusableError as error:
        return ImageInspection(sha256=sha256, bytes=len(content), error=str(error), rule=error.rule)
    rgb = to_rgb(image)
    brightness, contrast, sharpness = _measures(rgb)
    return ImageInspection(
        sha256=sha256,
        bytes=len(content),
        width=image.width,
        height=image.height,
        mode=image.mode,
        format=image.format or "",
        content_sha256=hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest(),
        frames=frames,
        brightness=brightness,
        contrast=contrast,
        sharpness=sharpness,
        profile=_profile(image),
        warnings="; ".join(dict.fromkeys([*(_one_line(warning.message) for warning in said), *_guesses(image)])),
        signature=_signature(rgb),
    )


def excerpt(content: bytes) -> str:
    """The picture as a page shows it: small, in new pixels of ours, with nothing of the file's own beside them.

    Raises:
        ValueError: the picture cannot be read; the message is for the user.
    """
    rgb = to_rgb(decode(content, _SHOWN_SIDE))
    rgb.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    kind = "JPEG" if max(rgb.size) > _SIDE_OF_TINY else "PNG"  # each dot of a tiny one counts
    pixels, buffer = Image.fromarray(np.asarray(rgb)), io.BytesIO()
    pixels.save(buffer, kind, quality=75)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _count_frames(content: bytes) -> int:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return _frames_of(image)


def _one_line(said: object) -> str:
    return " ".join(str(said).split())


def _guesses(image: Image.Image) -> list[str]:
    """What a picture leaves open, and how it is read."""
    if image.mode == "CMYK" and not image.info.get("icc_profile"):
        return ["CMYK without a profile: the colours are a guess"]
    return ["16 bits of gray, of which the upper 8 are used"] if image.mode in _SIXTEEN_BITS else []


def _profile(image: Image.Image) -> str:
    """The name of a colour profile that is not much like sRGB. (That of inks is applied.)"""
    icc = image.info.get("icc_profile")
    if not icc or image.mode == "CMYK":
        return ""
    return _name_if_unlike(icc, "L" if image.mode in ("1", "L", "LA", *_SIXTEEN_BITS) else "RGB")


@lru_cache(maxsize=64)  # a camera has one
def _name_if_unlike(icc: bytes, mode: str) -> str:
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(36, 6, 3)
    swatch = Image.fromarray(colours if mode == "RGB" else colours[:, :, 0].copy())
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        seen = ImageCms.profileToProfile(swatch, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        name = ImageCms.getProfileDescription(profile)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "one that cannot be read"
    difference = np.abs(np.asarray(seen, dtype=int) - np.asarray(swatch.convert("RGB"), dtype=int)).max()
    return "" if difference <= _LIKE_SRGB else "".join(filter(str.isprintable, name)).strip()[:60] or "without a name"


def _measures(rgb: Image.Image) -> tuple[float, float, float]:
    """(brightness, contrast, sharpness), of gray."""
    small = rgb.reduce(max(1, -(-max(rgb.size) // _MEASURED_SIDE)))
    gray = np.asarray(small.convert("L"), dtype=np.int64)  # (height, width)
    inner = gray[1:-1, 1:-1]
    edges = 4 * inner - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    sharpness = float(edges.std()) if edges.size else 0.0
    return round(float(gray.mean()), 2), round(float(gray.std()), 2), round(sharpness, 2)


def _signature(rgb: Image.Image) -> bytes:
    """Of the whole picture: brightness as 32 x 32 and two differences of colour as 8 x 8 bytes each; brightness as
    64 x 64, or zeros where it has fewer pixels; the shorter side, at most 255. Empty for a flat picture, which looks
    like any other flat one."""
    brightness, *colours = rgb.convert("YCbCr").split()
    parts = zip((brightness, *colours), (SIGNATURE_SIDE, COLOUR_SIDE, COLOUR_SIDE), strict=True)
    small = [part.resize((side, side), Image.Resampling.BILINEAR) for part, side in parts]
    if ImageStat.Stat(small[0]).stddev[0] < _LEAST_CONTRAST:
        return b""
    fine = bytes(FINE_SIDE**2)
    if min(rgb.size) >= FINE_SIDE:
        fine = brightness.resize((FINE_SIDE, FINE_SIDE), Image.Resampling.LANCZOS).tobytes()
    return b"".join(part.tobytes() for part in small) + fine + bytes([min(*rgb.size, 255)])


_POINTERS = {
    b"version https://git-lfs": "a git-lfs pointer: run `git lfs pull`",
    b"outs:": "a DVC pointer: run `dvc pull`",
    b"/annex/objects/": "a git-annex pointer: run `git annex get`",
}
_PHONE_PHOTOS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
"""Brands of HEIF, in bytes 8 to 12 after `ftyp`."""


def _not_an_image(content: bytes) -> UnusableError:
    """What it is instead."""
    for start, pointer in _POINTERS.items():
        if content.startswith(start) and len(content) < 2000:
            return UnusableError("pointer", f"not an image ({pointer})")
    if content[4:8] == b"ftyp" and content[8:12] in _PHONE_PHOTOS and not pillow_heif:
        way_out = "install the extra `heif`: `uv pip install --python .venv pillow-heif`"
        return UnusableError("not_image", f"a HEIC photo, which needs pillow-heif; {way_out}")
    if not content.strip(b"\0"):
        return UnusableError("damaged", "damaged image: nothing but zeros")
    has_header = content[:4].lower().startswith(_MAGIC)
    return UnusableError("damaged" if has_header else "not_image", f"not an image ({_looks_like(content)})")


def _looks_like(content: bytes) -> str:
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "HTML or XML: a page saved as a picture"
    if start.startswith(b"<"):
        return "HTML or XML"
    for known, name in _OTHERS.items():
        if start.startswith(known):
            return name
    if start.startswith(_MAGIC):
        return "its header is there, what follows is damaged"
    try:
        content[:512].decode("utf-8")
    except UnicodeDecodeError:
        return "unknown format"
    return "text"


_OTHERS = {b"pk\3\4": "a zip archive", b"%pdf": "a PDF", b"\x1f\x8b": "a gzip file", b"{": "JSON or text"}
_MAGIC = (b"\xff\xd8\xff", b"\x89png", b"riff", b"gif8", b"ii*\0", b"mm\0*", b"bm")
"""How FORMATS begin, in lower case."""
