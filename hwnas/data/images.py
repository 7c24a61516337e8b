"""Pixels to the size and channels asked for: shorter side scaled, centre cropped; grey replicated, RGB to luma."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from hwnas.data.optional import require
from hwnas.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's own conversion


def fit_arrays(images: np.ndarray, image_size: int | None, channels: int | None) -> np.ndarray:
    """Brings images to a square size and a number of channels.

    Args:
        images: uint8 (N, C, H, W).
        image_size: Side in pixels; None keeps height and width.
        channels: 1 or 3; None keeps them.

    Raises:
        InputError: The images are neither grey nor RGB and another number of channels is asked for.
    """
    return _scale(_convert_channels(images, channels), image_size)


def to_grey(images: np.ndarray) -> np.ndarray:
    """Luma of RGB images: (N, 3, H, W), float or uint8, to (N, 1, H, W) of the same type."""
    weights = np.asarray(_LUMA, np.float32)
    luma = np.tensordot(images.astype(np.float32, copy=False), weights, axes=(1, 0))[:, None]
    return np.rint(luma).astype(np.uint8) if images.dtype == np.uint8 else luma


def read_images(paths: Sequence[str | os.PathLike[str]], image_size: int, channels: int) -> np.ndarray:
    """Decodes image files in parallel: uint8 (N, channels, image_size, image_size).

    The camera's orientation tag is obeyed, and transparent pixels become white.

    Raises:
        InputError: A file is damaged, too large to be an honest image, or not 8 bits a channel; the message names it.
    """
    require("Reading image files", PIL="Pillow")
    from PIL import Image

    images = np.empty((len(paths), channels, image_size, image_size), np.uint8)

    def decode(index: int) -> None:
        images[index] = _decode(paths[index], image_size, channels)

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with ThreadPoolExecutor() as pool:  # decoders release the interpreter's lock
            for _ in pool.map(decode, range(len(paths))):
                pass
    return images


def _decode(path: str | os.PathLike[str], image_size: int, channels: int) -> np.ndarray:
    """One file as uint8 (channels, image_size, image_size)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise InputError(f"Images must have 8 bits a channel, but {path} has more (mode {image.mode}): convert it.")
            image.draft("RGB", (image_size, image_size))  # JPEG: decode at a fraction of the size where that suffices
            upright = _flatten(ImageOps.exif_transpose(image)).convert("RGB" if channels == 3 else "L")
            fitted = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"An image may have at most {Image.MAX_IMAGE_PIXELS} pixels, but {path} has more: scale it down or remove it."
        ) from None
    except Exception as error:  # on damaged files decoders raise whatever their parsing met
        raise InputError(f"The image {path} cannot be decoded ({error}): replace or remove it.") from None
    return np.asarray(fitted).reshape(image_size, image_size, channels).transpose(2, 0, 1)


def _flatten(image: "Image") -> "Image":
    """Lays a transparent image on white; what lies under transparent pixels is arbitrary."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)


def _convert_channels(images: np.ndarray, channels: int | None) -> np.ndarray:
    present = images.shape[1]
    if channels is None or channels == present:
        return images
    if (present, channels) == (1, 3):
        return np.repeat(images, 3, axis=1)
    if (present, channels) == (3, 1):
        return to_grey(images)
    raise InputError(
        f"Only 1 and 3 channels convert into each other, but the images have {present} and {channels} were asked for: "
        "leave channels out."
    )


def _scale(images: np.ndarray, image_size: int | None) -> np.ndarray:
    count, channels, height, width = images.shape
    if image_size is None or (height, width) == (image_size, image_size):
        return images
    require("Scaling images", PIL="Pillow")
    from PIL import Image, ImageOps

    scaled = np.empty((count * channels, image_size, image_size), np.uint8)
    for index, plane in enumerate(images.reshape(-1, height, width)):
        scaled[index] = ImageOps.fit(Image.fromarray(plane), (image_size, image_size), Image.Resampling.BILINEAR)
    return scaled.reshape(count, channels, image_size, image_size)
