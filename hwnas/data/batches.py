"""The order of training: a pure function of (seed, epoch), so that a resumed run sees the very same batches."""

from collections.abc import Iterator

import numpy as np

from hwnas.errors import InputError


def batch_indices(
    num_images: int, batch_size: int, epoch: int, seed: int, drop_last: bool = True
) -> Iterator[np.ndarray]:
    """Yields the batches of one epoch, each an int64 array of image indices; each image comes at most once.

    Resume within an epoch with `itertools.islice(batch_indices(...), done, None)`.

    Args:
        num_images: Images in the set.
        batch_size: Images in a batch.
        epoch: Which epoch, from 0.
        seed: The run's seed.
        drop_last: Leave out a last batch that is not full.

    Raises:
        InputError: A number is out of range, or the epoch would have no batch.
    """
    bounds = (("num_images", num_images, 1), ("batch_size", batch_size, 1), ("epoch", epoch, 0), ("seed", seed, 0))
    for name, value, least in bounds:
        if value < least:
            raise InputError(f"{name} must be at least {least}, but is {value}: raise it.")
    if drop_last and batch_size > num_images:
        raise InputError(
            f"batch_size <= number of images must hold, but a batch has {batch_size} and the set {num_images}: "
            "lower the batch size."
        )
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    end = num_images - num_images % batch_size if drop_last else num_images
    return (order[start : start + batch_size] for start in range(0, end, batch_size))
