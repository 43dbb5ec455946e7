"""Bad pictures, made here: name -> (bytes, the rule that it breaks; None: it is good). Deterministic."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from .conftest import draw


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it is that large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def seeds() -> dict[str, tuple[bytes, str | None]]:
    picture = draw(5, 90, 70)
    found: dict[str, tuple[bytes, str | None]] = {}
    kinds = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "PPM": "ppm"}
    for kind, suffix in kinds.items():
        whole = encoded(picture, kind)
        found[f"good.{suffix}"] = whole, None
        for percent in (20, 40, 50, 60, 70, 80, 90, 95):
            found[f"cut-{percent}.{suffix}"] = whole[: len(whole) * percent // 100], "damaged"
        found[f"head.{suffix}"] = b"\0\1\2\3" * 4 + whole[16:], "not_image"
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"exif-{orientation}.jpg"] = encoded(picture, "JPEG", exif=exif), None
    pages = {"save_all": True, "append_images": [draw(6, 90, 70)]}
    for kind, suffix in (("GIF", "gif"), ("TIFF", "tif"), ("WEBP", "webp"), ("PNG", "png")):
        found[f"frames.{suffix}"] = encoded(picture, kind, **pages), "frames"
    gray = np.linspace(0, 65535, 90 * 70).reshape(70, 90).astype(np.uint16)
    found["sixteen.png"] = encoded(Image.fromarray(gray), "PNG"), "decoder"
    found["cmyk.jpg"] = encoded(picture.convert("CMYK"), "JPEG"), "decoder"
    found["float.tif"] = encoded(picture.convert("F"), "TIFF"), "mode"
    for mode in ("1", "L", "LA", "P", "RGBA"):
        found[f"mode-{mode}.png"] = encoded(picture.convert(mode), "PNG"), None
    for level in (0, 128, 255):
        found[f"blank-{level}.png"] = encoded(Image.new("RGB", (60, 50), (level,) * 3), "PNG"), "blank"
    for width, height in ((60000, 60000), (20000, 20000), (2**31 - 1, 1), (5000, 20), (1, 9000)):
        found[f"lie-{width}.png"] = png_of_size(width, height), "bomb"
    found["tiny.png"] = encoded(draw(1, 4, 4), "PNG"), "side"
    found["lfs.jpg"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "pointer"
    found["dvc.jpg"] = b"outs:\n- md5: 1\n  path: x.jpg\n", "pointer"
    found["annex.jpg"] = b"/annex/objects/SHA256E-s3--1.jpg\n", "pointer"
    found["page.jpg"] = b"<!DOCTYPE html><html>404</html>", "not_image"
    found["text.jpg"] = b"no picture", "not_image"
    found["empty.jpg"] = b"", "empty"
    found["zeros.jpg"] = bytes(500), "damaged"
    found["svg.png"] = b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_image"
    found["zip.jpg"] = b"PK\3\4" + bytes(60), "not_image"
    found["polyglot.jpg"] = encoded(picture, "JPEG") + b"PK\3\4<script>alert(1)</script>", None
    return found
