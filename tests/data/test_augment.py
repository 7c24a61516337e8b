"""Augmentation against a plain loop over images, and its determinism."""

import numpy as np
import pytest
import torch

from hwnas.data.augment import augment_batch
from hwnas.errors import InputError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Every pixel of an image differs and none is 0, so that where each came from shows."""
    return (torch.arange(1, 64 * 2 * 6 * 8 + 1).reshape(64, 2, 6, 8) % 251 + 1).to(dtype)


def _shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    result = np.zeros_like(image)
    height, width = image.shape[1:]
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[:, row, column] = image[:, row - down, column - right]
    return result


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("flip", [False, True])
def test_each_image_is_one_of_all_shifts(dtype: torch.dtype, flip: bool) -> None:
    images = _batch(dtype)
    result = augment_batch(images, _generator(), max_shift=2, flip=flip)
    assert result.dtype == dtype and result.shape == images.shape
    seen = set()
    for before, after in zip(images.numpy(), result.numpy(), strict=True):
        candidates = {
            (down, right, mirrored): _shifted(before, down, right)[..., :: -1 if mirrored else 1]
            for down in range(-2, 3)
            for right in range(-2, 3)
            for mirrored in ({False, True} if flip else {False})
        }
        matches = [key for key, candidate in candidates.items() if np.array_equal(candidate, after)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 15  # images move independently


def test_cutout_clears_a_square() -> None:
    images = _batch()
    result = augment_batch(images, _generator(), max_shift=0, cutout=3)
    sizes = set()
    for before, after in zip(images, result, strict=True):
        cleared = (after == 0).all(0)
        assert torch.equal(after, torch.where(cleared, 0, before))
        rows, columns = cleared.any(1), cleared.any(0)
        assert torch.equal(cleared, rows[:, None] & columns[None, :])
        sizes.add((int(rows.sum()), int(columns.sum())))
    assert (3, 3) in sizes and max(sizes) == (3, 3)


def test_nothing_asked_nothing_changed() -> None:
    images = _batch()
    assert torch.equal(augment_batch(images, _generator(), max_shift=0), images)


def test_the_generator_is_the_only_randomness() -> None:
    images = _batch()
    before = images.clone()
    generator = _generator(1)
    first = augment_batch(images, generator, flip=True, cutout=2)
    state = generator.get_state()
    second = augment_batch(images, generator, flip=True, cutout=2)
    assert torch.equal(images, before)
    assert torch.equal(augment_batch(images, _generator(1), flip=True, cutout=2), first)
    assert not torch.equal(first, second)
    resumed = torch.Generator()
    resumed.set_state(state)
    assert torch.equal(augment_batch(images, resumed, flip=True, cutout=2), second)


@pytest.mark.parametrize("options", [{"max_shift": -1}, {"cutout": -1}])
def test_negative_amounts_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 0"):
        augment_batch(_batch(), _generator(), **options)
