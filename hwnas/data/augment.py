"""Augmentation of a training batch in plain tensor code: shift, flip, cutout (DeVries and Taylor, arXiv:1708.04552).

All randomness comes from the generator that the caller passes, so a run that stores its state resumes exactly.
"""

import torch
from torch import Tensor
from torch.nn import functional

from hwnas.errors import InputError


def augment_batch(
    images: Tensor, generator: torch.Generator, *, max_shift: int = 4, flip: bool = False, cutout: int = 0
) -> Tensor:
    """Shifts, mirrors and masks each image of a batch at random; what is shifted in or cut out is 0.

    Normalise first, so that 0 is the mean colour. A mirrored character is another character or none: leave `flip` off
    for glyphs and digits.

    Args:
        images: (N, C, H, W), any dtype and device; not changed.
        generator: Source of all randomness. On the CPU it gives the same result whatever the images' device.
        max_shift: Largest shift in pixels, in each direction (0: none).
        flip: Mirror half of the images left to right.
        cutout: Side in pixels of a square that is set to 0, its centre anywhere in the image (0: none).

    Returns:
        A tensor like `images`.

    Raises:
        InputError: `max_shift` or `cutout` is negative.
    """
    if max_shift < 0 or cutout < 0:
        raise InputError(f"max_shift and cutout must be at least 0, but are {max_shift} and {cutout}: use 0 for none.")
    count, channels, height, width = images.shape

    def draw(low: int, high: int) -> Tensor:
        """One whole number in low..high for each image, (N, 1)."""
        drawn = torch.randint(low, high + 1, (count, 1), generator=generator, device=generator.device)
        return drawn.to(images.device)

    # Source row and column of each output pixel, in the padded image: (N, H) and (N, W).
    rows = torch.arange(height, device=images.device) + draw(0, 2 * max_shift)
    columns = torch.arange(width, device=images.device) + draw(0, 2 * max_shift)
    if flip:
        columns = torch.where(draw(0, 1) == 1, columns.flip(1), columns)
    padded = functional.pad(images, [max_shift] * 4)
    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    result = padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    if cutout:
        top, left = draw(0, height - 1) - cutout // 2, draw(0, width - 1) - cutout // 2
        row, column = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        in_rows = (row >= top) & (row < top + cutout)
        in_columns = (column >= left) & (column < left + cutout)
        result = result.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)
    return result
