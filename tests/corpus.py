"""Bad pictures, made here: name -> (bytes, the rules that it breaks and words of the reason; "": it is good).
Deterministic."""

import io
import os
import socket
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

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


def tiff_of_strips(**changes: int) -> bytes:
    """An uncompressed gray TIFF of 64 x 64 in one strip, with other values for some of its tags."""
    pixels = np.asarray(draw(5, 64, 64).convert("L")).tobytes()
    tags = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offset": 273,
            "samples": 277, "rows": 278, "length": 279}  # fmt: skip
    values = dict(zip(tags, (64, 64, 8, 1, 1, 8, 1, 64, len(pixels)), strict=True)) | changes
    entries = b"".join(struct.pack("<HHII", tags[name], 4, 1, value) for name, value in values.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


def display_p3() -> bytes:
    """Pillow's profile of sRGB with the primaries of Display P3."""
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2920, 0.6922, 0.0419),
        b"bXYZ": (0.1571, 0.0666, 0.7841),
    }
    for number in range(struct.unpack(">I", icc[128:132])[0]):
        name, offset, _ = struct.unpack(">4sII", icc[132 + 12 * number : 144 + 12 * number])
        if name in primaries:
            icc[offset + 8 : offset + 20] = struct.pack(">3i", *(round(value * 65536) for value in primaries[name]))
    return bytes(icc).replace("sRGB built-in".encode("utf-16-be"), "Display P3   ".encode("utf-16-be"))


@cache
def seeds() -> dict[str, tuple[bytes, str]]:
    """What is expected is `<rule> <rule>: <words>`."""
    picture = draw(5, 90, 70)
    found: dict[str, tuple[bytes, str]] = {}
    kinds = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "PPM": "ppm"}
    for kind, suffix in kinds.items():
        whole = encoded(picture, kind)
        found[f"good.{suffix}"] = whole, ""
        for percent in (20, 40, 50, 60, 70, 80, 90, 95):
            found[f"cut-{percent}.{suffix}"] = (
                whole[: len(whole) * percent // 100],
                f"damaged: {'decoder object' if kind == 'WEBP' else 'runcated'}",
            )
        found[f"head.{suffix}"] = b"\0\1\2\3" * 4 + whole[16:], "not_image: unknown format"
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"exif-{orientation}.jpg"] = encoded(picture, "JPEG", exif=exif), ""
    pages = {"save_all": True, "append_images": [draw(6, 90, 70)]}
    for kind, suffix in (("GIF", "gif"), ("TIFF", "tif"), ("WEBP", "webp"), ("PNG", "png")):
        found[f"frames.{suffix}"] = encoded(picture, kind, **pages), "frames: frames is 2"
    gray = np.linspace(0, 65535, 90 * 70).reshape(70, 90).astype(np.uint16)
    found["sixteen.png"] = (
        encoded(Image.fromarray(gray), "PNG"),
        "decoder blurred: 16 bits of gray, of which the upper 8 are used",
    )
    found["cmyk.jpg"] = encoded(picture.convert("CMYK"), "JPEG"), "decoder: CMYK without a profile"
    found["float.tif"] = encoded(picture.convert("F"), "TIFF"), "mode: mode is F"
    for mode in ("1", "L", "LA", "P", "RGBA"):
        found[f"mode-{mode}.png"] = encoded(picture.convert(mode), "PNG"), ""
    for level in (0, 128, 255):
        also = {0: " dark", 128: "", 255: " bright"}[level]
        flat = Image.new("RGB", (60, 50), (level,) * 3)
        found[f"blank-{level}.png"] = encoded(flat, "PNG"), f"blank blurred{also}: contrast is 0"
    for width, height in ((60000, 60000), (20000, 20000), (2**31 - 1, 1), (5000, 20), (1, 9000)):
        found[f"lie-{width}.png"] = (
            png_of_size(width, height),
            f"bomb: {'50 times' if width in (1, 5000) else 'more than 100,000,000'}",
        )
    photo = draw(5, 90, 70)
    found["p3.jpg"] = encoded(photo, "JPEG", icc_profile=display_p3()), "profile: profile is Display P3"
    found["bad-profile.jpg"] = encoded(photo, "JPEG", icc_profile=b"no profile" * 20), "profile: cannot be read"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found["srgb.jpg"] = encoded(photo, "JPEG", icc_profile=srgb), ""
    found["a-jpeg.png"] = encoded(photo, "JPEG"), "ending: .png of a JPEG"
    found["PHOTO.JPG"] = encoded(photo, "JPEG"), ""
    found["no-ending"] = encoded(photo, "PNG"), ""
    found["long.png"] = encoded(draw(5, 500, 30), "PNG"), "aspect: aspect is 16.6667"
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        whole = encoded(picture, "TIFF", compression=compression)
        found[f"{compression}.tif"] = whole, ""
        found[f"cut-{compression}.tif"] = whole[: len(whole) * 7 // 10], "damaged: what follows is damaged"
    found["strips.tif"] = tiff_of_strips(), ""
    for name, change in {
        "fewer-bytes": {"length": 1000}, "no-bytes": {"length": 0}, "more-bytes": {"length": 10**6},
        "beyond": {"offset": 10**6}, "fewer-strips": {"rows": 16}, "twice-as-high": {"height": 128},
    }.items():  # fmt: skip
        words = "truncated" if name in ("more-bytes", "beyond") else "parts of it are missing"
        found[f"{name}.tif"] = tiff_of_strips(**change), f"damaged: {words}"
    found["tiny.png"] = encoded(draw(1, 4, 4), "PNG"), "side: height is 4"
    found["lfs.jpg"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "pointer: git lfs pull"
    found["dvc.jpg"] = b"outs:\n- md5: 1\n  path: x.jpg\n", "pointer: dvc pull"
    found["annex.jpg"] = b"/annex/objects/SHA256E-s3--1.jpg\n", "pointer: git annex get"
    found["page.jpg"] = b"<!DOCTYPE html><html>404</html>", "not_image: a page saved as a picture"
    found["text.jpg"] = b"no picture", "not_image: (text)"
    found["empty.jpg"] = b"", "empty: empty file"
    found["zeros.jpg"] = bytes(500), "damaged: nothing but zeros"
    found["svg.png"] = b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_image: HTML or XML"
    found["zip.jpg"] = b"PK\3\4" + bytes(60), "not_image: a zip archive"
    found["polyglot.jpg"] = encoded(picture, "JPEG") + b"PK\3\4<script>alert(1)</script>", ""
    return found


def odd_files(folder: Path, outside: Path) -> dict[str, str]:
    """Devices, links and names in a class folder, with what is expected of each, as for `seeds`."""
    good = encoded(draw(8, 90, 70), "PNG")
    (outside / "secret.png").write_bytes(good)
    links = {
        "device.png": (Path("/dev/zero"), "misplaced: leaves the data source"),
        "null.png": (Path("/dev/null"), "misplaced: leaves the data source"),
        "away.png": (outside / "secret.png", "misplaced: leaves the data source"),
        "dotted.png": (Path("../../../" + outside.name + "/secret.png"), "misplaced: leaves the data source"),
        "proc.png": (Path("/proc/self/environ"), "misplaced: leaves the data source"),
        "gone.png": (folder / "nowhere.png", "unreadable: No such file"),
        "loop.png": (folder / "loop.png", "misplaced: leaves the data source"),
        "folder.png": (outside, "misplaced: a linked folder"),
        "inside.png": (folder / "plain.png", ""),
    }
    (folder / "plain.png").write_bytes(good)
    for name, (target, _) in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "s.png"))
    contents = [encoded(draw(seed, 90, 70), "PNG") for seed in range(20, 26)]
    names = ["Stra\u00dfe.png", "STRASSE.png", "u\u0308.png", "\u00fc.png", "a\nb.png", "x" * 250 + ".png"]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(encoded(draw(30, 90, 70), "PNG"))
    copy = "duplicate: the same as data/images/cat/inside.png"
    collide = "colliding_names: differs in case or Unicode form only from"
    return {name: expected for name, (_, expected) in links.items()} | {
        "plain.png": copy, "pipe.png": "not_image: not a regular file", "s.png": "not_image: not a regular file",
        "STRASSE.png": "", "Stra\u00dfe.png": collide, "u\u0308.png": "", "\u00fc.png": collide, "a\nb.png": "",
        "x" * 250 + ".png": "", "caf\ufffd.png": "misplaced: not UTF-8",
    }  # fmt: skip
