"""Images of the user's own in one numpy archive; never with pickles, which may run code when they are read."""

import zipfile
from pathlib import Path

import numpy as np

from hwnas.data.dataset import Dataset
from hwnas.data.request import Request, check_memory
from hwnas.data.sources import Source, array_source, assemble, classes_from_labels
from hwnas.errors import InputError

_PAIRS = {"train": ("x_train", "y_train"), "validation": ("x_val", "y_val"), "test": ("x_test", "y_test")}
_UNDIVIDED = ("images", "labels")


def load_npz(path: Path, request: Request, layout: str | None = None) -> Dataset:
    """Loads `x_train, y_train[, x_val, y_val][, x_test, y_test]`, or `images, labels`; missing sets are split off.

    Images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; labels are integers (N,) or (N, 1). An array
    `classes` of text names the classes 0, 1, ...; without it they are named after the training set's labels.

    Args:
        path: The archive.
        request: Size, channels, set sizes and seed.
        layout: "nchw" or "nhwc" where the shape alone does not tell; any number of channels is then accepted.

    Raises:
        InputError: The archive is damaged, holds pickles, or its arrays are not as above.
    """
    if layout not in (None, "nchw", "nhwc"):
        raise InputError(f"layout must be nchw or nhwc, but is {layout!r}: choose one.")
    arrays = _read_arrays(path)
    pairs = _find_pairs(arrays, path)
    images = {part: _to_nchw(arrays[x], x, layout, path) for part, (x, _) in pairs.items()}
    labels = {part: _to_labels(arrays[y], y, len(images[part]), path) for part, (_, y) in pairs.items()}
    if "classes" in arrays:
        classes = _to_classes(arrays["classes"], path)
    else:
        classes, renumbered = classes_from_labels(*labels.values())
        labels = dict(zip(labels, renumbered, strict=True))
    _check_range(labels, classes, path)
    sources: dict[str, Source] = {part: array_source(images[part], labels[part], request) for part in pairs}
    return assemble("npz", classes, request, **sources)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that have a meaning here, by name."""
    if not path.is_file():
        state = "a folder" if path.exists() else "missing"
        raise InputError(f"An npz dataset is one file, but {path} is {state}: check the path.")
    known = {name for pair in (*_PAIRS.values(), _UNDIVIDED) for name in pair} | {"classes"}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            misnamed = sorted(name for name in members if name.startswith(("x_", "y_")) and name not in known)
            if misnamed:
                raise InputError(
                    f"{path} has an array {misnamed[0]!r}, but the names known are {', '.join(sorted(known))}: rename it."
                )
            check_memory(sum(member.file_size for member in members.values()), f"{path}, uncompressed,")
            return {name: _read_array(archive, member) for name, member in members.items() if name in known}
    except InputError:
        raise
    except Exception as error:  # on damaged files zip, deflate and array headers raise whatever their parsing met
        raise InputError(
            f"{path} cannot be read as an npz archive without pickles ({error}): "
            "write it with np.savez from arrays of numbers."
        ) from None


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _find_pairs(arrays: dict[str, np.ndarray], path: Path) -> dict[str, tuple[str, str]]:
    """Set to its names of images and labels, the training set first."""
    pairs = {part: pair for part, pair in _PAIRS.items() if pair[0] in arrays or pair[1] in arrays}
    if any(name in arrays for name in _UNDIVIDED):
        if pairs:
            raise InputError(f"{path} has both images/labels and x_.../y_... arrays: keep one of the two forms.")
        pairs = {"train": _UNDIVIDED}
    if "train" not in pairs:
        raise InputError(f"An npz dataset needs x_train and y_train, or images and labels, but {path} has neither: add them.")
    for pair in pairs.values():
        for name, other in (pair, pair[::-1]):
            if name not in arrays:
                raise InputError(f"{path} has {other} but not {name}: images and labels come in pairs; add it.")
    return pairs


def _to_nchw(images: np.ndarray, name: str, layout: str | None, path: Path) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(
            f"Images must be uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), but {name} in {path} is {images.dtype} "
            f"{images.shape}: scale pixels to 0..255 and save them as uint8."
        )
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if layout is None and first == last:
        why = "both the second and the last dimension" if first else "neither the second nor the last dimension"
        raise InputError(
            f"The channel dimension of {name} {images.shape} in {path} cannot be told, because {why} could be 1 or 3 "
            "channels: add ?layout=nchw or ?layout=nhwc to the dataset."
        )
    return images if layout == "nchw" or (layout is None and first) else images.transpose(0, 3, 1, 2)


def _to_labels(labels: np.ndarray, name: str, count: int, path: Path) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise InputError(
            f"Labels must be {count} integers, one for each image, but {name} in {path} is {labels.dtype} "
            f"{labels.shape}: save class numbers."
        )
    if labels.min() < 0 or labels.max() > np.iinfo(np.int64).max:
        raise InputError(f"Labels count from 0, but {name} in {path} has {labels.min()} to {labels.max()}: renumber them.")
    return labels.reshape(-1).astype(np.int64)


def _to_classes(classes: np.ndarray, path: Path) -> tuple[str, ...]:
    well_formed = classes.dtype.kind == "U" and classes.ndim == 1 and classes.size > 0
    if not well_formed or len(set(classes.tolist())) != classes.size:
        raise InputError(
            f"classes in {path} must be a list of different names, but is {classes.dtype} {classes.shape}: "
            "save np.array([\"first\", \"second\", ...])."
        )
    return tuple(classes.tolist())


def _check_range(labels: dict[str, np.ndarray], classes: tuple[str, ...], path: Path) -> None:
    for part, numbers in labels.items():
        if numbers.max() >= len(classes):
            raise InputError(
                f"Labels must lie in 0..{len(classes) - 1} because {path} names {len(classes)} classes, but the {part} "
                f"set has {numbers.max()}: renumber them or name all classes."
            )
