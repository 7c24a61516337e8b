"""Image files in one folder for each class.

All images are decoded once, into memory: quick to train on, bounded by memory. A set that would take over half of the
free memory is refused before anything is decoded.
"""

from pathlib import Path

import numpy as np

from hwnas.data.dataset import Dataset
from hwnas.data.images import read_images
from hwnas.data.reading import existing_folder
from hwnas.data.request import Request
from hwnas.data.sources import Source, assemble
from hwnas.errors import InputError

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_DEFAULT_SIZE = 224
_DEFAULT_CHANNELS = 3


def load_imagefolder(path: Path, request: Request) -> Dataset:
    """Loads PATH/train/<class>/* (and PATH/val, PATH/test if they exist) or PATH/<class>/*; splits off missing sets.

    Each image's shorter side is scaled to the size (224 unless asked otherwise), then its centre is cropped; images
    become RGB unless `channels` is 1. Files in subfolders of a class count; other kinds of files and hidden ones do
    not.

    Raises:
        InputError: A class folder is empty, a class lacks training images, an image is damaged, or memory is short.
    """
    folder = existing_folder(path, "An imagefolder dataset")
    sets = _find_sets(folder)
    classes = tuple(child.name for child in _subfolders(sets["train"]))
    if not classes:
        raise InputError(
            f"An imagefolder needs one folder for each class, but {sets['train']} has none: sort the images into folders."
        )
    size, channels = request.image_size or _DEFAULT_SIZE, request.channels or _DEFAULT_CHANNELS
    sources = {part: _folder_source(root, classes, size, channels) for part, root in sets.items()}
    return assemble("imagefolder", classes, request, **sources)


def _find_sets(folder: Path) -> dict[str, Path]:
    """Set to its folder; "train" alone, the folder itself, where it is not divided.

    A folder "train" that holds no folders is a class (of vehicles, say), not a set.
    """
    if not (folder / "train").is_dir() or not _subfolders(folder / "train"):
        return {"train": folder}
    sets: dict[str, Path] = {}
    for child in _subfolders(folder):
        part = _SPLITS.get(child.name)
        if part is None or part in sets:
            raise InputError(
                f"Beside train an imagefolder may have one val (or valid, validation) and one test, but there is {child}: "
                "rename or move it."
            )
        sets[part] = child
    return sets


def _folder_source(root: Path, classes: tuple[str, ...], size: int, channels: int) -> Source:
    paths: list[Path] = []
    labels: list[int] = []
    for folder in _subfolders(root):
        if folder.name not in classes:
            raise InputError(f"Every class needs training images, but {folder} has none: add train/{folder.name} or remove it.")
        images = sorted(file for file in folder.rglob("*") if _is_image(file))
        if not images:
            raise InputError(
                f"The class folder {folder} holds no image ({', '.join(sorted(_SUFFIXES))}): add images or remove it."
            )
        paths += images
        labels += [classes.index(folder.name)] * len(images)
    return Source(
        np.asarray(labels, np.int64),
        lambda indices: read_images([paths[index] for index in indices], size, channels),
        channels * size * size,
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
