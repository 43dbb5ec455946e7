"""Pictures that show the same: copies that were re-encoded, resized, mirrored, cropped, shifted, brightened.

    hashes = hashes_of(signatures, views)           what is searched (`refit/data/duplicates.py`)
    same(signatures, candidates)                    what is believed of what was found
    closer(signatures, candidates)                  and, where many look alike, of that

The first look is exact arithmetic on 64-bit perceptual hashes: those of the whole pictures differ in few bits,
mirrored or not; or that of one picture and that of one of 44 windows of the other. The second is at pixels: the two
signatures are laid over each other as well as they can be, and must then be the same but for brightness and contrast.
The third sees twice as fine, and is for sets of which all pictures look alike (cells of one grid): there, what is alike
says little, and what differs in any place says much.

A window's hash needs no window: resampling and the cosine transform are linear, so each is a pair of small matrices
around the picture's brightness. They are integers, and their products stay below 2^53: every machine finds the same.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from .files import COLOUR_SIDE, FINE_SIDE, SIGNATURE_SIDE

_CROPS = ((0.0, 1.0), (0.0, 0.95), (0.05, 1.0), (0.0, 0.9), (0.1, 1.0), (0.05, 0.95))
_SHIFTS = ((0.0, 1.0), (-0.125, 0.875), (0.125, 1.125))  # a pixel of a digit
_WINDOWS = (*itertools.product(_CROPS, _CROPS), *list(itertools.product(_SHIFTS, _SHIFTS))[1:])
"""What is seen of a picture, down and across, as shares of it; beyond its edge, the edge goes on."""
RADII = (11, *[7] * (len(_WINDOWS) - 1)) * 2
"""Bits, by view: of the whole picture 11 (96 % of photos half as bright again lie within, 91 % of those turned by 2
degrees), of a window 7 (98 % of crops of 5 %, 94 % of crops of 10 %), then the same mirrored."""
IS_BY_VIEW = False

_SIDE = SIGNATURE_SIDE
_PIECE, _FINE_PIECE = 256, 32  # pictures at once: what they need stays in a processor's cache
_COLOURS = slice(_SIDE**2, _SIDE**2 + 2 * COLOUR_SIDE**2)

_LEAST_CORRELATION = 0.92
_LEAST_OF_SMALL, _SMALL_SIDE = 0.985, 32
"""A picture of a few pixels has many that look alike: of 1,797 digits of 8 x 8, 665 pairs would pass as photos do."""

_LEAST_DETAIL = 0.87
"""Photos of clothes before one curtain correlate at 0.97, but not in what is left without the coarse; copies do."""
_LEAST_DETAIL_OF_SMALL = 0.94
_LARGEST_COLOUR_DIFFERENCE = 12.0  # of 255, on average
_LARGEST_GAIN = 2.5
_LEAST_OVERLAP = 0.6

_LARGEST_DIFFERENCE = 0.0045
"""Of structure, on average over the picture: of copies of photos and of solar cells 95 % lie below, of different solar
cells of one make 2 %. It is too strict for photos, of which no two look alike."""
_BAND, _NEIGHBOURHOOD = (2, 8), 8  # pixels of 128: structure between these radii, compared within this one
_NOISE = 8.0  # of brightness, squared; a difference below says little


def hashes_of(signatures: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """(n, …) uint8, of `files.inspect` -> (n, number of views) uint64: perceptual hashes of the whole (view 0), of its
    windows, and of the same mirrored (from 44 on).
    (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions")"""
    hashes = np.empty((len(signatures), len(views)), dtype=np.uint64)
    columns: dict[int, list[int]] = {}  # by the window that they see
    for column, view in enumerate(views):
        columns.setdefault(view % len(_WINDOWS), []).append(column)
    matrices = {window: [_cosines() @ _cut(*line) for line in _WINDOWS[window]] for window in columns}
    for start in range(0, len(signatures), _PIECE):
        piece = slice(start, start + _PIECE)
        brightness = _coarse(signatures[piece]).astype(np.float64)
        for window, (down, across) in matrices.items():
            frequencies = down @ brightness @ across.T  # (k, 8, 8)
            for column in columns[window]:
                is_mirrored = views[column] >= len(_WINDOWS)
                hashes[piece, column] = _bits(frequencies * _MIRROR if is_mirrored else frequencies)
    return hashes


def same(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(k,) bool: whether the pictures of each candidate show the same.

    Args:
        candidates: (k, 3 or more) int: one picture, another, and the view of the first that is like the second.
    """
    believed = np.zeros(len(candidates), dtype=bool)
    for start in range(0, len(candidates), _PIECE):
        rows = np.arange(start, min(start + _PIECE, len(candidates)))
        rows = rows[_may_be_same(signatures, candidates[rows])]
        if len(rows):
            believed[rows] = _same(signatures, candidates[rows])
    return believed


def _may_be_same(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """A glance, at a third of the cost of a look: laid over each other in three coarse steps. It loses no copy that a
    look believes, and leaves 330 of 4,450 pairs of digits that look alike."""
    correlation, detail, *_ = _laid_over(signatures, candidates, num_coarse=3, num_fine=0)
    is_small = _are_small(signatures, candidates)
    return np.asarray((correlation >= np.where(is_small, 0.97, 0.9)) & (detail >= np.where(is_small, 0.85, 0.7)))


def _are_small(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    return np.asarray(signatures[candidates[:, :2], -1].min(axis=1) < _SMALL_SIDE)


def _same(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    correlation, detail, gain, overlap, colour = _laid_over(signatures, candidates)
    is_small = _are_small(signatures, candidates)
    return np.asarray(
        (correlation >= np.where(is_small, _LEAST_OF_SMALL, _LEAST_CORRELATION))
        & (detail >= np.where(is_small, _LEAST_DETAIL_OF_SMALL, _LEAST_DETAIL))
        & (np.abs(np.log(gain)) <= np.log(_LARGEST_GAIN))
        & (overlap >= _LEAST_OVERLAP)
        & (colour <= _LARGEST_COLOUR_DIFFERENCE)
    )


def closer(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(k,) bool: whether pictures that seem to show the same do so in fine structure, everywhere. Yes, of those that
    have no finer structure."""
    believed = np.ones(len(candidates), dtype=bool)
    fine = np.flatnonzero(signatures[candidates[:, :2], -1].min(axis=1, initial=255) >= FINE_SIDE)
    for start in range(0, len(fine), _FINE_PIECE):
        rows = fine[start : start + _FINE_PIECE]
        believed[rows] = _difference(signatures, candidates[rows]) <= _LARGEST_DIFFERENCE
    return believed


def _difference(signatures: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(k,) from 0 to 2: how much structure differs, on average over the overlap; what SSIM compares beside brightness
    (Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment"), in a band of frequencies."""
    warp = _registration(*_two(signatures, candidates, _coarse), candidates, num_coarse=6, num_fine=2)
    source, target = _two(signatures, candidates, _fine)
    for _ in range(2):
        warp += _step(source, target, warp)
    seen, inside = _warped(source, warp)
    expected, _ = _lit(seen, target, inside)
    counted = _unclipped(target, inside).astype(np.float32)
    share = _around(counted, _NEIGHBOURHOOD)
    first, second = ((_around(part, _BAND[0]) - _around(part, _BAND[1])) * counted for part in (expected, target))
    energy, shared = (
        _around(part, _NEIGHBOURHOOD) / np.maximum(share, 1 / 8) for part in (first**2 + second**2, 2 * first * second)
    )
    where = share > 1 / 2
    unlike = np.where(where, (energy - shared) / (energy + _NOISE), 0)
    return np.asarray(unlike.sum(axis=(1, 2)) / np.maximum(where.sum(axis=(1, 2)), 1))


def _two(
    signatures: np.ndarray, candidates: np.ndarray, brightness: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(k, side, side) float32 each, the first mirrored where its view is."""
    source, target = (brightness(signatures[candidates[:, column]]).astype(np.float32) for column in (0, 1))
    is_mirrored = candidates[:, 2] >= len(_WINDOWS)
    source[is_mirrored] = source[is_mirrored, :, ::-1]
    return source, target


def _laid_over(
    signatures: np.ndarray, candidates: np.ndarray, num_coarse: int = 6, num_fine: int = 2
) -> tuple[np.ndarray, ...]:
    """Lay the first picture of each candidate over the second.

    Returns:
        (k,) each: correlation where they overlap, that of what is left without the coarse, gain, share of the second
        that is overlapped, and mean difference of colour.
    """
    source, target = _two(signatures, candidates, _coarse)
    seen, inside = _warped(source, _registration(source, target, candidates, num_coarse, num_fine))
    expected, slope = _lit(seen, target, inside)
    first, second = signatures[candidates[:, 0]], signatures[candidates[:, 1]]
    colour = _colour_difference(first, second, candidates[:, 2] >= len(_WINDOWS), slope)
    detail = _correlation(expected - _around(expected, 2), target - _around(target, 2), inside)
    overlap = inside.mean(axis=(1, 2))
    return _correlation(expected, target, inside), detail, np.maximum(slope, 1e-3), overlap, colour


def _registration(
    source: np.ndarray, target: np.ndarray, candidates: np.ndarray, num_coarse: int, num_fine: int
) -> np.ndarray:
    """(k, 4): scale and shift of each axis; they, and gain and offset of the brightness, by least squares (Lucas and
    Kanade 1981, "An iterative image registration technique")."""
    warp = _WARPS[candidates[:, 2] % len(_WINDOWS)]
    warp[candidates[:, 2] >= len(_WINDOWS), 3] *= -1
    coarse = [part.reshape(-1, _SIDE // 2, 2, _SIDE // 2, 2).mean(axis=(2, 4)) for part in (source, target)]
    for seen, goal in [coarse] * num_coarse + [[source, target]] * num_fine:
        warp += _step(seen, goal, warp)
    return np.asarray(warp)


def _lit(seen: np.ndarray, target: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is seen, as bright as the target, and the gain that this takes."""
    slope, offset = _line(seen, target, inside)
    return np.clip(slope[:, None, None] * seen + offset[:, None, None], 0, 255), slope


def _step(source: np.ndarray, target: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """(k, 4): how the warp improves, by one step of Gauss and Newton."""
    seen, inside = _warped(source, warp)
    slope, offset = _line(seen, target, inside)
    down, across = np.gradient(seen, np.float32(2 / seen.shape[1]), axis=(1, 2))
    down *= (slope / warp[:, 0])[:, None, None]
    across *= (slope / warp[:, 2])[:, None, None]
    unit = _unit(seen.shape[1])
    parts = np.stack([down * unit[:, None], down, across * unit, across, seen, np.ones_like(seen)], axis=1)
    counts = _unclipped(target, inside)
    parts = (parts * counts[:, None]).reshape(len(seen), 6, seen[0].size)
    rest = ((target - slope[:, None, None] * seen - offset[:, None, None]) * counts).reshape(len(seen), seen[0].size, 1)
    normal = parts @ parts.transpose(0, 2, 1)
    damping = (1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6 + 1e-3) * np.eye(6, dtype=np.float32)
    step = np.linalg.solve(normal + damping, parts @ rest)[:, :4, 0]
    step = np.clip(step, -0.1, 0.1)
    step[:, ::2] = np.clip(warp[:, ::2] + step[:, ::2], 0.5, 2.0) - warp[:, ::2]
    return np.asarray(step, dtype=np.float32)


def _warped(source: np.ndarray, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source under the target's pixels, and which of these it covers: (k, side, side) float32 and bool."""
    unit = _unit(source.shape[1])
    rows, columns = (warp[:, axis, None] * unit + warp[:, axis + 1, None] for axis in (0, 2))
    inside = (np.abs(rows) <= 1)[:, :, None] & (np.abs(columns) <= 1)[:, None, :]
    seen = np.ascontiguousarray(_interpolated(source, rows).transpose(0, 2, 1))
    # In one layout, whatever NumPy does with few pictures or many: so that the bits of none depend on its company.
    return np.ascontiguousarray(_interpolated(seen, columns).transpose(0, 2, 1)), inside


def _interpolated(lines: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Between the lines (axis 1) of each picture, at places from -1 to 1."""
    side = lines.shape[1]
    place = np.clip((where + 1) * (side / 2) - 0.5, 0, side - 1)
    below = np.minimum(place.astype(np.int64), side - 2)
    share = (place - below).astype(np.float32)[:, :, None]
    low = np.take_along_axis(lines, below[:, :, None], axis=1)
    high = np.take_along_axis(lines, below[:, :, None] + 1, axis=1)
    return np.asarray(low + (high - low) * share)


def _line(seen: np.ndarray, target: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(k,) each: slope and offset of the target's brightness as a line of the seen one's."""
    mean_seen, mean_target, of_seen, _, of_both = _moments(seen, target, _unclipped(target, inside))
    slope = of_both / np.maximum(of_seen, 1e-3)
    return slope, mean_target - slope * mean_seen


def _correlation(seen: np.ndarray, target: np.ndarray, inside: np.ndarray) -> np.ndarray:
    _, _, of_seen, of_target, of_both = _moments(seen, target, inside)
    return np.asarray(of_both / np.sqrt(np.maximum(of_seen * of_target, 1e-6)))


def _around(pictures: np.ndarray, radius: int) -> np.ndarray:
    """What a square around each pixel has on average; beyond the edge, the edge goes on."""
    average = _average(pictures.shape[1], radius)
    return np.asarray(average @ pictures @ average.T)


@lru_cache
def _average(side: int, radius: int) -> np.ndarray:
    """(side, side) float32"""
    matrix = np.zeros((side, side), dtype=np.float32)
    for shift in range(-radius, radius + 1):
        np.add.at(matrix, (np.arange(side), np.clip(np.arange(side) + shift, 0, side - 1)), 1)
    return np.asarray(matrix / (2 * radius + 1), dtype=np.float32)


def _unclipped(target: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pixels that say how bright: not those that a brighter copy has at its limit, unless these are nearly all."""
    between = inside & (target > 4) & (target < 251)
    is_enough = between.mean(axis=(1, 2)) >= 1 / 8
    return np.where(is_enough[:, None, None], between, inside)


def _moments(seen: np.ndarray, target: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means, variances and covariance where the seen picture lies."""
    count = np.maximum(inside.sum(axis=(1, 2)), 1).astype(np.float32)
    mean_seen, mean_target = ((part * inside).sum(axis=(1, 2)) / count for part in (seen, target))
    from_seen, from_target = (
        (part - mean[:, None, None]) * inside for part, mean in ((seen, mean_seen), (target, mean_target))
    )
    products = ((from_seen, from_seen), (from_target, from_target), (from_seen, from_target))
    return mean_seen, mean_target, *((left * right).sum(axis=(1, 2)) / count for left, right in products)


def _colour_difference(first: np.ndarray, second: np.ndarray, mirrored: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Mean difference of the colours; none where one of the two is gray, as a copy may be."""
    left, right = (
        part[:, _COLOURS].reshape(-1, 2, COLOUR_SIDE, COLOUR_SIDE).astype(np.float32) - 128 for part in (first, second)
    )
    left[mirrored] = left[mirrored, :, :, ::-1]
    is_gray = (np.abs(left).max(axis=(1, 2, 3)) <= 1) | (np.abs(right).max(axis=(1, 2, 3)) <= 1)
    differences = [np.abs(left * factor - right).mean(axis=(1, 2, 3)) for factor in (1, gain[:, None, None, None])]
    return np.where(is_gray, 0, np.minimum(*differences))


def _coarse(signatures: np.ndarray) -> np.ndarray:
    """(k, 32, 32) uint8"""
    return signatures[:, : _SIDE**2].reshape(-1, _SIDE, _SIDE)


def _fine(signatures: np.ndarray) -> np.ndarray:
    """(k, 128, 128) float32: the 64 x 64, and what they say of the places between them."""
    pixels = signatures[:, -1 - FINE_SIDE**2 : -1].reshape(-1, FINE_SIDE, FINE_SIDE).astype(np.float32)
    return np.asarray(_BETWEEN @ pixels @ _BETWEEN.T)


def _unit(side: int) -> np.ndarray:
    """Where the middles of pixels are, from -1 to 1."""
    return ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32)


def _cosines() -> np.ndarray:
    """The 8 lowest rows of the DCT-II, as integers."""
    k, n = np.arange(8)[:, None], np.arange(_SIDE)
    return np.rint(np.cos(np.pi * k * (2 * n + 1) / (2 * _SIDE)) * 512)


def _between(count: int, finer: int) -> np.ndarray:
    """(finer, count) float32: samples of a line -> more of it, by the cosines that go through them."""
    k = np.arange(count)[:, None]
    seen, wanted = (np.cos(np.pi * k * (2 * np.arange(side) + 1) / (2 * side)) for side in (count, finer))
    weights = np.where(k == 0, 1, 2) / count
    return np.asarray(wanted.T @ (weights * seen), dtype=np.float32)


def _cut(low: float, high: float) -> np.ndarray:
    """(32, 32): a line of 32 pixels -> the part from `low` to `high` of it, again as 32 pixels, in 32nds."""
    place = (low + (high - low) * (np.arange(_SIDE) + 0.5) / _SIDE) * _SIDE - 0.5
    below = np.floor(place).astype(int)
    share = np.rint((place - below) * 32)
    matrix = np.zeros((_SIDE, _SIDE))
    lines = np.arange(_SIDE)
    np.add.at(matrix, (lines, np.clip(below, 0, _SIDE - 1)), 32 - share)
    np.add.at(matrix, (lines, np.clip(below + 1, 0, _SIDE - 1)), share)
    return matrix


def _bits(frequencies: np.ndarray) -> np.ndarray:
    """(k, 8, 8) -> (k,) uint64: which lie above their median, the mean brightness left out of it."""
    flat = frequencies.reshape(len(frequencies), 64)
    median = np.partition(flat[:, 1:], 31, axis=1)[:, 31]
    return np.packbits(flat > median[:, None], axis=1).view(np.uint64).ravel()


_MIRROR = np.where(np.arange(8) % 2, -1.0, 1.0)
_WARPS = np.array([[b - a, a + b - 1, d - c, c + d - 1] for (a, b), (c, d) in _WINDOWS], dtype=np.float32)
_BETWEEN = _between(FINE_SIDE, 2 * FINE_SIDE)
