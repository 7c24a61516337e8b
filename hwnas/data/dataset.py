"""What a dataset is: three sets of 8-bit images in memory, class names, and the statistics that normalise them."""

from dataclasses import dataclass

import numpy as np

from hwnas.errors import InputError

_CHUNK = 4096  # images per step where a whole set in a wider type would not fit in memory


@dataclass(frozen=True)
class Split:
    """One set of images.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), indices into the dataset's classes.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise InputError(
                f"Images must be uint8 (N, C, H, W), but they are {self.images.dtype} {self.images.shape}: convert them."
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise InputError(
                f"{len(self.images)} images need int64 labels ({len(self.images)},), but the labels are "
                f"{self.labels.dtype} {self.labels.shape}: give one label for each image."
            )

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint sets of one shape; the search sees `train` and `validation`, never `test`.

    Every slice of a set holds the classes in proportion, so a part of it is a fair sample of the whole.

    Attributes:
        name: The source ("glyphs", "cifar10", ...).
        classes: Class names; a label is an index into them.
        mean: Per channel, of the training pixels scaled to 0..1.
        std: Per channel, likewise; 1 for a channel that never varies.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Returns (images / 255 - mean) / std, per channel, as float32.

        Args:
            images: uint8 (N, C, H, W).
        """
        mean, std = (np.asarray(values, np.float64).reshape(-1, 1, 1) for values in (self.mean, self.std))
        scale, offset = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
        return images * scale + offset


def build_dataset(name: str, train: Split, validation: Split, test: Split, classes: tuple[str, ...]) -> Dataset:
    """Makes a dataset of three sets and computes the statistics of the training pixels.

    Raises:
        InputError: A set is empty, the shapes differ, or a label is not an index into the classes.
    """
    for part, split in (("training", train), ("validation", validation), ("test", test)):
        if len(split) == 0:
            raise InputError(f"The {part} set of {name} is empty, and each set needs an image: give more images.")
        if split.images.shape[1:] != train.images.shape[1:]:
            raise InputError(
                f"All images must have one shape (C, H, W), but in {name} the {part} set has {split.images.shape[1:]} and "
                f"the training set {train.images.shape[1:]}: ask for one size and number of channels."
            )
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(classes):
            raise InputError(
                f"Labels must lie in 0..{len(classes) - 1}, but the {part} set of {name} has {low if low < 0 else high}: "
                "renumber the labels or name the missing classes."
            )
    mean, std = _channel_statistics(train.images)
    return Dataset(name, train, validation, test, classes, mean, std)


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, from exact counts of the 256 pixel values."""
    channels = images.shape[1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        for channel in range(channels):
            counts[channel] += np.bincount(images[start : start + _CHUNK, channel].reshape(-1), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    std[(counts > 0).sum(axis=1) == 1] = 1.0  # rounding may leave a constant channel a hair above zero
    return tuple(mean.tolist()), tuple(std.tolist())
