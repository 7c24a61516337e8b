"""What a caller asks of any source: image size, channels, set sizes, seed; and whether memory allows it."""

from dataclasses import dataclass

import psutil

from hwnas.errors import InputError

_MEMORY_SHARE = 0.5  # of the memory that is free now; the rest is for training


@dataclass(frozen=True)
class Request:
    """What a dataset should be like; None leaves the choice to the source.

    Attributes:
        image_size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        train: Number of training images.
        validation: Number of validation images.
        test: Number of test images.
        seed: Seed of splits and of generated images.
    """

    image_size: int | None = None
    channels: int | None = None
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("image_size", "train", "validation", "test"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, but is {value}: give a positive number.")
        if self.channels not in (None, 1, 3):
            raise InputError(f"channels must be 1 (grey) or 3 (RGB), but is {self.channels}: give 1 or 3.")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, but is {self.seed}: give another seed.")


def check_memory(num_bytes: int, what: str) -> None:
    """Refuses what would not fit beside training.

    Raises:
        InputError: More than half of the free memory would be taken.
    """
    limit = psutil.virtual_memory().available * _MEMORY_SHARE
    if num_bytes > limit:
        raise InputError(
            f"{what} takes {num_bytes / 2**30:,.1f} GiB, and at most {limit / 2**30:,.1f} GiB (half of the free memory) may "
            "go to images: ask for a smaller size (?size=) or fewer images (?train=&validation=&test=)."
        )
