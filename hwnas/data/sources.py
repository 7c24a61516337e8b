"""From what a source holds to three disjoint sets: missing ones are split off the training images.

A source gives labels at once and pixels on demand, so that images nobody asked for are never decoded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwnas.data.dataset import Dataset, Split, build_dataset
from hwnas.data.images import fit_arrays
from hwnas.data.request import Request, check_memory
from hwnas.errors import InputError

_VALIDATION_SHARE = 0.10  # of the training images, where the source has a test set of its own
_HELD_OUT_SHARE = 0.15  # of all images, for validation and for test each, where it has none


@dataclass(frozen=True)
class Source:
    """One set as a source holds it.

    Attributes:
        labels: int64 (N,), from 0.
        read: From indices to their images, uint8 (n, C, H, W) in the size and channels asked for.
        image_bytes: Bytes of one image that `read` gives.
    """

    labels: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]
    image_bytes: int


def array_source(images: np.ndarray, labels: np.ndarray, request: Request) -> Source:
    """A source whose images are in memory, uint8 (N, C, H, W), in any size."""
    _, channels, height, width = images.shape
    wanted = request.channels or channels
    pixels = request.image_size**2 if request.image_size else height * width
    return Source(
        labels.astype(np.int64),
        lambda indices: fit_arrays(images[indices], request.image_size, request.channels),
        wanted * pixels,
    )


def assemble(
    name: str,
    classes: tuple[str, ...],
    request: Request,
    train: Source,
    validation: Source | None = None,
    test: Source | None = None,
) -> Dataset:
    """Builds the dataset; a set that the source lacks is split off its training images, stratified by class.

    Raises:
        InputError: More images are asked for than there are, or memory does not allow them.
    """
    rng = np.random.default_rng(request.seed)
    order = stratified_order(train.labels, rng)
    share = _HELD_OUT_SHARE if test is None else _VALIDATION_SHARE
    chosen: dict[str, tuple[Source, np.ndarray]] = {}
    for part, source, wanted in (("test", test, request.test), ("validation", validation, request.validation)):
        if source is None:
            count = max(1, round(share * len(train.labels))) if wanted is None else wanted
            chosen[part] = train, _take(order, count, part, name)
            order = order[count:]
        else:
            chosen[part] = source, _take(stratified_order(source.labels, rng), wanted, part, name)
    chosen["train"] = train, _take(order, request.train, "train", name)

    check_memory(sum(source.image_bytes * len(indices) for source, indices in chosen.values()), f"The dataset {name}")
    splits = {
        part: Split(np.ascontiguousarray(source.read(indices)), source.labels[indices])
        for part, (source, indices) in chosen.items()
    }
    return build_dataset(name, splits["train"], splits["validation"], splits["test"], classes)


def stratified_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of which every slice holds the classes in proportion, to within an image or so of each class.

    The k-th image of a class with n images stands at (k + ½) / n of the way, so all classes run out together.

    Args:
        labels: int64 (N,), not negative.
        rng: Source of the order within and across classes.

    Returns:
        Indices (N,).
    """
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, counts = np.unique(labels, return_counts=True)
    starts = np.cumsum(counts) - counts
    rank_in_class = np.arange(len(labels)) - np.repeat(starts, counts)
    position = (rank_in_class + 0.5) / np.repeat(counts, counts)
    return by_class[np.lexsort((rng.permutation(len(labels)), position))]


def classes_from_labels(*sets: np.ndarray) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names the classes after the distinct labels of the first set, and renumbers all sets from 0.

    Some published sets count from 1 (EMNIST letters); their names keep the number.

    Args:
        sets: Integer labels (N,) each, the training set's first.

    Raises:
        InputError: A later set has a label that the first lacks.
    """
    known = np.unique(sets[0])
    for labels in sets[1:]:
        unknown = np.setdiff1d(labels, known)
        if len(unknown):
            raise InputError(
                f"Every label must occur among the training images, but {unknown[0]} does not: "
                "add training images of it or leave it out of the other sets."
            )
    return tuple(str(label) for label in known), [np.searchsorted(known, labels).astype(np.int64) for labels in sets]


def _take(order: np.ndarray, count: int | None, part: str, name: str) -> np.ndarray:
    if count is not None and count > len(order):
        raise InputError(
            f"{part}={count} images were asked for, but {name} has {len(order)} left for that set: ask for fewer."
        )
    return order[:count]
