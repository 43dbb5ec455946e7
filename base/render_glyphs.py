"""Render printed glyphs as an image folder: the data the embedded base checkpoint is pretrained on.

    python base/render_glyphs.py OUTPUT_FOLDER [--variants N] [--seed S]

The only input is the fonts that matplotlib ships. Each glyph is drawn large, thickened or
thinned, slanted, rotated and bent, then reduced to 8x8 by averaging blocks of a black-and-white
bitmap, which is how scikit-learn's handwritten digits were made. No handwriting is read here.

An image depends on nothing but (seed, class, variant): asking for more variants adds files and
leaves those already there as they were.
"""

from __future__ import annotations

import argparse
import string
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# The text faces among matplotlib's fonts; the others hold symbols, or only part of the alphabet.
FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)

# Folder name -> glyph. The prefix keeps `upper_A` and `lower_a` apart where case does not.
GLYPHS = {
    **{f"digit_{glyph}": glyph for glyph in string.digits},
    **{f"lower_{glyph}": glyph for glyph in string.ascii_lowercase},
    **{f"upper_{glyph}": glyph for glyph in string.ascii_uppercase},
}

IMAGE_SIDE = 8
BITMAP_SIDE = 32  # averaged in 4x4 blocks, hence 17 grey levels
DRAWN_HEIGHT = 64
CANVAS_SIDE = 128  # twice the drawn height: room for the widest glyph, turned and bent
BEND_CELLS = 4

Random = np.random.Generator


def render(name: str, variant: int, seed: int) -> Image.Image:
    """Return one image: white ink on black, full height, centred sideways."""
    random = np.random.default_rng([seed, list(GLYPHS).index(name), variant])
    face = FACES[random.integers(len(FACES))]
    drawn = change_weight(draw(GLYPHS[name], face), random)
    return reduce_to_blocks(fit_to_bitmap(bend(drawn, random), random))


@cache
def draw(glyph: str, face: str) -> Image.Image:
    """Draw a glyph at full height in the middle of the canvas."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    large = Image.new("L", (4 * CANVAS_SIDE, 4 * CANVAS_SIDE))
    ImageDraw.Draw(large).text(
        (2 * CANVAS_SIDE, 2 * CANVAS_SIDE),
        glyph,
        fill=255,
        font=ImageFont.truetype(path, 3 * CANVAS_SIDE),
        anchor="mm",
    )
    ink = large.crop(large.getbbox())
    # A narrow glyph ("l") sets the scale by its height, a wide one ("m") by its width.
    scale = min(DRAWN_HEIGHT / ink.height, 1.25 * DRAWN_HEIGHT / ink.width)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))))
    canvas = Image.new("L", (CANVAS_SIDE, CANVAS_SIDE))
    canvas.paste(ink, ((CANVAS_SIDE - ink.width) // 2, (CANVAS_SIDE - ink.height) // 2))
    return canvas


def change_weight(drawn: Image.Image, random: Random) -> Image.Image:
    """Thicken the strokes at random, or thin them where enough ink stays."""
    width = int(random.choice([-5, -3, 1, 3, 5, 7]))
    if width > 0:
        return drawn.filter(ImageFilter.MaxFilter(width))
    thinned = drawn.filter(ImageFilter.MinFilter(-width))
    # Hairlines of a light face would vanish and leave pieces of a glyph.
    keeps_its_shape = np.asarray(thinned).sum() > 0.55 * np.asarray(drawn).sum()
    return thinned if keeps_its_shape else drawn


def bend(drawn: Image.Image, random: Random) -> Image.Image:
    """Rotate, slant and stretch the glyph, and shake a grid laid over it (elastic deformation)."""
    angle = np.deg2rad(random.normal(0, 7))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[1, random.normal(0, 0.2)], [0, 1]])
    ticks = np.linspace(-0.5, 0.5, BEND_CELLS + 1) * CANVAS_SIDE
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    grid = grid @ (turn @ slant).T + random.normal(0, 0.07 * DRAWN_HEIGHT, grid.shape)
    grid += CANVAS_SIDE / 2
    cell = CANVAS_SIDE // BEND_CELLS
    mesh = [
        (
            (column * cell, row * cell, (column + 1) * cell, (row + 1) * cell),
            # Pillow's order of corners: upper left, lower left, lower right, upper right.
            (
                *grid[row, column],
                *grid[row + 1, column],
                *grid[row + 1, column + 1],
                *grid[row, column + 1],
            ),
        )
        for row in range(BEND_CELLS)
        for column in range(BEND_CELLS)
    ]
    return drawn.transform(drawn.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def fit_to_bitmap(drawn: Image.Image, random: Random) -> Image.Image:
    """Scale the ink to the full height of a black-and-white bitmap, and centre it."""
    ink = drawn.crop(drawn.getbbox())
    width = ink.width / ink.height * BITMAP_SIDE * random.uniform(0.75, 1.15)
    ink = ink.resize((round(min(max(width, 4), BITMAP_SIDE)), BITMAP_SIDE))
    bitmap = Image.new("L", (BITMAP_SIDE, BITMAP_SIDE))
    bitmap.paste(ink, ((BITMAP_SIDE - ink.width) // 2, 0))
    return bitmap.point(lambda level: 255 if level > 127 else 0)


def reduce_to_blocks(bitmap: Image.Image) -> Image.Image:
    """Average the bitmap in blocks, down to the image's side."""
    return bitmap.reduce(BITMAP_SIDE // IMAGE_SIDE)


def write_folder(folder: Path, variants: int, seed: int) -> None:
    """Write `variants` images of every glyph, one folder per class."""
    for name in GLYPHS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for variant in range(variants):
            render(name, variant, seed).save(folder / name / f"{variant:04d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Render printed glyphs as an image folder.")
    parser.add_argument("output_folder", type=Path)
    parser.add_argument("--variants", type=int, default=300, help="images of each glyph")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_folder(arguments.output_folder, arguments.variants, arguments.seed)


if __name__ == "__main__":
    main()
