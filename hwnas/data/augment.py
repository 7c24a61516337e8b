"""Augmentation of a training batch in plain tensor code: shift, flip, cutout (DeVries and Taylor, arXiv:1708.04552).

All randomness comes from the generator that the caller passes, so a run that stores its state resumes exactly.
"""

import torch
from torch import Tensor
from torch.nn import functional

from hwnas.errors import InputError


def augment_batch(
    images: Tensor, generator: torch.Generator, *, max_shift: int = 4, flip: bool = False, cutout: int = 0,
    first: int = 0, of: int | None = None,
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
        first: Where a larger batch has these images, if they are a part of one.
        of: Images of that larger batch; None for a batch of its own. A part gets what it would get within the whole.

    Returns:
        A tensor like `images`.

    Raises:
        InputError: `max_shift` or `cutout` is negative.
    """
    if max_shift < 0 or cutout < 0:
        raise InputError(f"max_shift and cutout must be at least 0, but are {max_shift} and {cutout}: use 0 for none.")
    count, _, height, width = images.shape

    def draw(low: int, high: int) -> Tensor:
        """One whole number in low..high for each image, (N, 1)."""
        drawn = torch.randint(low, high + 1, (of or count, 1), generator=generator, device=generator.device)
        return drawn[first:first + count].to(images.device)

    # All windows of the padded images, (N, C, rows, columns, H, W), a view; of each image, one is copied.
    windows = functional.pad(images, [max_shift] * 4).unfold(2, height, 1).unfold(3, width, 1)
    top, left = draw(0, 2 * max_shift)[:, 0], draw(0, 2 * max_shift)[:, 0]
    result = windows[torch.arange(count, device=images.device), :, top, left]
    if flip:
        result = torch.where(draw(0, 1)[:, :, None, None] == 1, result.flip(3), result)
    if cutout:
        top, left = draw(0, height - 1) - cutout // 2, draw(0, width - 1) - cutout // 2
        row, column = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        in_rows = (row >= top) & (row < top + cutout)
        in_columns = (column >= left) & (column < left + cutout)
        result = result.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)
    return result
