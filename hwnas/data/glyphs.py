"""Rendered characters: a generated dataset that needs no download, and is hard enough to tell networks apart.

Each image shows one character in one of matplotlib's fonts, turned, sheared, scaled and shifted, on a gradient with
stripes, amid pieces of other characters and strokes, in low contrast and noise. `difficulty` scales all of it.

Images are made in chunks of a fixed size, each from its own random stream (seed, set, chunk), so an image depends on
its index only: asking for more images, or for them in another order, changes none of them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwnas.data.dataset import Dataset, Split, build_dataset
from hwnas.data.images import to_grey
from hwnas.data.optional import require
from hwnas.data.request import Request, check_memory
from hwnas.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Without O, I and l (like 0 and 1), and without lower case that looks like upper case or like a digit.
CHARACTERS = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZaehnrdbtfg"

_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
_DEFAULT_SIZES = {"train": 12_000, "validation": 2_000, "test": 2_000}
_DEFAULT_SIZE = 32
_SMALLEST_SIZE = 8
_FONT_SCALE = 0.8  # em in image heights: the widest character still fits its cell
_CHUNK = 64  # part of the format: another value gives other images
_NUM_DISTRACTORS = 2

_Atlas = list[list["Image"]]


def load_glyphs(request: Request, classes: int = 36, difficulty: float = 0.4) -> Dataset:
    """Generates the dataset, 12,000 + 2,000 + 2,000 RGB images of 32 × 32 unless asked otherwise.

    Args:
        request: Size, channels, set sizes and seed.
        classes: Number of characters, from the front of `CHARACTERS`.
        difficulty: From 0 (clean print) to 1 (barely legible).

    Raises:
        InputError: A value is out of range, or the images would not fit in memory.
        UnavailableError: Pillow or matplotlib is missing.
    """
    if not 2 <= classes <= len(CHARACTERS):
        raise InputError(f"glyphs has 2 to {len(CHARACTERS)} classes, but {classes} were asked for: choose within that.")
    if not 0 <= difficulty <= 1:
        raise InputError(f"difficulty must lie in 0..1, but is {difficulty}: choose within that.")
    size, channels = request.image_size or _DEFAULT_SIZE, request.channels or 3
    if size < _SMALLEST_SIZE:
        raise InputError(f"glyphs are at least {_SMALLEST_SIZE} pixels high, but {size} was asked for: raise the size.")
    counts = {part: getattr(request, part) or default for part, default in _DEFAULT_SIZES.items()}
    check_memory(sum(counts.values()) * channels * size * size, "The dataset glyphs")

    require("The glyphs dataset", PIL="Pillow", matplotlib="matplotlib")
    atlas = _render_atlas(CHARACTERS[:classes], size)
    splits = {}
    for stream, (part, count) in enumerate(counts.items()):
        images = np.empty((count, channels, size, size), np.uint8)
        labels = np.arange(count) % classes  # in turn, so that every slice is balanced
        for chunk, start in enumerate(range(0, count, _CHUNK)):
            rng = np.random.default_rng([request.seed, stream, chunk])
            full = _draw_chunk(rng, atlas, np.arange(start, start + _CHUNK) % classes, size, difficulty)
            images[start : start + _CHUNK] = _to_uint8(full, channels)[: count - start]
        splits[part] = Split(images, labels.astype(np.int64))
    return build_dataset("glyphs", splits["train"], splits["validation"], splits["test"], tuple(CHARACTERS[:classes]))


def _render_atlas(characters: str, size: int) -> _Atlas:
    """Masks of every character (outer) in every font (inner), each centred in a cell of size × size."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(folder / f"{name}.ttf", round(_FONT_SCALE * size)) for name in _FONTS]
    atlas = []
    for character in characters:
        cells = []
        for font in fonts:
            left, top, right, bottom = font.getbbox(character)
            cell = Image.new("L", (size, size))
            ImageDraw.Draw(cell).text(
                ((size - left - right) / 2, (size - top - bottom) / 2), character, fill=255, font=font
            )
            cells.append(cell)
        atlas.append(cells)
    return atlas


def _draw_chunk(
    rng: np.random.Generator, atlas: _Atlas, labels: np.ndarray, size: int, difficulty: float
) -> np.ndarray:
    """One RGB image for each label: float32 (n, 3, size, size), nominally within 0..1."""
    count = len(labels)
    contrast = _uniform(rng, 0.75 - 0.5 * difficulty, 1 - 0.3 * difficulty, (count, 1))
    lighter = rng.integers(0, 2, (count, 1), np.uint8) == 1  # the character than its ground
    ground = _uniform(rng, 0, 1, (count, 3)) * (1 - contrast) + np.where(lighter, 0, contrast)
    ink = ground + np.where(lighter, contrast, -contrast) * _uniform(rng, 0.4, 1, (count, 3))

    def clutter_colour() -> np.ndarray:
        strength = min(1, 2 * difficulty) * _uniform(rng, 0, 1, (count, 1))
        return ground + strength * (_uniform(rng, 0, 1, (count, 3)) - ground)

    images = _draw_ground(rng, ground, size, difficulty)
    for _ in range(_NUM_DISTRACTORS):
        _lay(images, _draw_distractors(rng, atlas, count, size), clutter_colour())
    _lay(images, _draw_strokes(rng, count, size), clutter_colour())
    _lay(images, _draw_characters(rng, atlas, labels, size, difficulty), ink)
    _lay(images, _draw_strokes(rng, count, size), clutter_colour())  # across the character
    noise = rng.standard_normal(images.shape, np.float32)
    return images + noise * _uniform(rng, 0.01, 0.02 + 0.2 * difficulty, (count, 1, 1, 1))


def _draw_ground(rng: np.random.Generator, colour: np.ndarray, size: int, difficulty: float) -> np.ndarray:
    """A gradient of colour and stripes of brightness, each in a direction of its own: (n, 3, size, size)."""
    count = len(colour)
    slope = _uniform(rng, -difficulty, difficulty, (count, 3, 1, 1))
    stripes = _uniform(rng, 0, 0.2 * difficulty, (count, 1, 1))
    waves = _uniform(rng, 1, 5, (count, 1, 1))
    phase = _uniform(rng, 0, 2 * np.pi, (count, 1, 1))
    ramp = _project(_uniform(rng, 0, 2 * np.pi, (count, 1, 1)), size)
    along = _project(_uniform(rng, 0, 2 * np.pi, (count, 1, 1)), size)
    wave = stripes * np.sin(2 * np.pi * waves * along + phase)
    return colour[:, :, None, None] + slope * ramp[:, None] + wave[:, None]


def _draw_characters(
    rng: np.random.Generator, atlas: _Atlas, labels: np.ndarray, size: int, difficulty: float
) -> np.ndarray:
    """Masks (n, size, size) of the characters that the labels name."""
    count = len(labels)
    fonts = rng.integers(0, len(_FONTS), count)
    turn = difficulty * _uniform(rng, -0.8, 0.8, count)
    shear = difficulty * _uniform(rng, -0.6, 0.6, count)
    scale = _uniform(rng, 1 - 0.6 * difficulty, 1.1, (count, 1)) * _uniform(rng, 0.85, 1.15, (count, 2))
    shift = size * difficulty * _uniform(rng, -0.3, 0.3, (count, 2))
    cells = [atlas[label][font] for label, font in zip(labels.tolist(), fonts.tolist(), strict=True)]
    return _warp(cells, turn, shear, scale, shift, size)


def _draw_distractors(rng: np.random.Generator, atlas: _Atlas, count: int, size: int) -> np.ndarray:
    """Masks (n, size, size) of characters of any class, turned at will, of which the border leaves a part."""
    characters = rng.integers(0, len(atlas), count)
    fonts = rng.integers(0, len(_FONTS), count)
    turn = _uniform(rng, -np.pi, np.pi, count)
    scale = _uniform(rng, 0.5, 1.1, (count, 2))
    bearing = _uniform(rng, -np.pi, np.pi, count)
    distance = size * _uniform(rng, 0.4, 0.65, count)
    shift = np.stack([distance * np.cos(bearing), distance * np.sin(bearing)], axis=1)
    cells = [atlas[character][font] for character, font in zip(characters.tolist(), fonts.tolist(), strict=True)]
    return _warp(cells, turn, np.zeros(count), scale, shift, size)


def _draw_strokes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Masks (n, size, size) of one straight stroke each, from one random point to another."""
    start = size * _uniform(rng, 0, 1, (count, 2, 1, 1))
    vector = size * _uniform(rng, 0, 1, (count, 2, 1, 1)) - start
    half_width = size * _uniform(rng, 0.01, 0.03, (count, 1, 1))
    x, y = (axis - start[:, index] for index, axis in enumerate(_grid(size)))
    vx, vy = vector[:, 0], vector[:, 1]
    along = np.clip((x * vx + y * vy) / (vx**2 + vy**2 + 1e-6), 0, 1)  # nearest point of the stroke, from 0 to 1
    distance = np.hypot(x - along * vx, y - along * vy)
    return np.clip(half_width + 0.5 - distance, 0, 1)


def _warp(
    cells: list["Image"], turn: np.ndarray, shear: np.ndarray, scale: np.ndarray, shift: np.ndarray, size: int
) -> np.ndarray:
    """Shears, scales, turns, then shifts masks about their centre.

    Args:
        cells: n masks of size × size.
        turn: Radians (n,).
        shear: Horizontal shift per unit of height (n,).
        scale: Horizontal and vertical (n, 2).
        shift: Pixels, horizontal and vertical (n, 2).
        size: Side of the result.

    Returns:
        float32 (n, size, size) in 0..1.
    """
    from PIL.Image import Resampling, Transform

    # Pillow asks where each output pixel comes from: the inverse of turn · scale · shear.
    cos, sin = np.cos(turn), np.sin(turn)
    a, b = cos / scale[:, 0] - shear * -sin / scale[:, 1], sin / scale[:, 0] - shear * cos / scale[:, 1]
    c, d = -sin / scale[:, 1], cos / scale[:, 1]
    x, y = size / 2 + shift[:, 0], size / 2 + shift[:, 1]
    maps = np.stack([a, b, size / 2 - a * x - b * y, c, d, size / 2 - c * x - d * y], axis=1).tolist()
    warped = [
        np.asarray(cell.transform((size, size), Transform.AFFINE, numbers, Resampling.BILINEAR))
        for cell, numbers in zip(cells, maps, strict=True)
    ]
    return np.stack(warped).astype(np.float32) / 255


def _lay(images: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Paints a colour (n, 3) through masks (n, H, W) onto images (n, 3, H, W), in place."""
    images += mask[:, None] * (colour[:, :, None, None] - images)


def _to_uint8(images: np.ndarray, channels: int) -> np.ndarray:
    grey_or_rgb = to_grey(images) if channels == 1 else images
    return np.rint(np.clip(grey_or_rgb, 0, 1) * 255).astype(np.uint8)


def _project(angle: np.ndarray, size: int) -> np.ndarray:
    """How far each pixel lies along a direction, in image sizes from the centre: (n, size, size) from (n, 1, 1)."""
    x, y = (axis / size - 0.5 for axis in _grid(size))
    return np.cos(angle) * x + np.sin(angle) * y


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the pixels: x (1, size) and y (size, 1)."""
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    return centres[None, :], centres[:, None]


def _uniform(rng: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...]) -> np.ndarray:
    """float32 numbers in low..high."""
    return np.float32(low) + np.float32(high - low) * rng.random(shape, np.float32)
