"""The MNIST family: IDX files, plain or gzipped (http://yann.lecun.com/exdb/mnist, "the IDX file format").

An IDX file is big-endian: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a
32-bit number, then the data. MNIST, Fashion-MNIST, KMNIST and EMNIST come so.
"""

import math
import re
import struct
from pathlib import Path

import numpy as np

from hwnas.data.dataset import Dataset
from hwnas.data.reading import existing_folder, open_binary, read_exactly, read_some
from hwnas.data.request import Request, check_memory
from hwnas.data.sources import array_source, assemble, classes_from_labels
from hwnas.errors import InputError


def load_idx(path: Path, request: Request) -> Dataset:
    """Loads train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-... and t10k-labels-..., each maybe `.gz`.

    EMNIST's names (emnist-letters-train-..., ...-test-...) serve too, one of its sets in a folder. Validation is split
    off train, and so is test where the folder has none.

    Raises:
        InputError: A file is missing, truncated, or not what its name says.
    """
    folder = existing_folder(path, "An idx dataset")
    sets = {"train": _read_set(folder, "train")}
    if _find(folder, "(t10k|test)", "images"):
        sets["test"] = _read_set(folder, "(t10k|test)")
    classes, numbered = classes_from_labels(*(numbers for _, numbers in sets.values()))
    sources = {
        part: array_source(images, numbers, request)
        for (part, (images, _)), numbers in zip(sets.items(), numbered, strict=True)
    }
    return assemble("idx", classes, request, **sources)


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes.

    Args:
        path: The file; gzipped if its name ends in .gz.
        num_dimensions: 3 for images (N, H, W), 1 for labels (N,).

    Raises:
        InputError: The file is truncated, longer than its header says, or of another type.
    """
    with open_binary(path) as file:
        magic = read_exactly(file, 4, path)
        expected = bytes((0, 0, 8, num_dimensions))
        if magic != expected:
            raise InputError(
                f"An IDX file of {num_dimensions} dimension(s) begins with {expected.hex()}, but {path} begins with "
                f"{magic.hex()}: it is another kind of file; fetch it again."
            )
        shape = struct.unpack(f">{num_dimensions}I", read_exactly(file, 4 * num_dimensions, path))
        if 0 in shape:
            raise InputError(f"{path} holds nothing: its header says {shape}; fetch it again.")
        size = math.prod(shape)
        check_memory(size, f"{path}, by its header,")
        data = read_exactly(file, size, path)
        if read_some(file, 1, path):
            raise InputError(f"{path} is longer than its header says ({shape}): it is damaged; fetch it again.")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_set(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, H, W) and labels (N,) of one set."""
    images_path, labels_path = _find(folder, prefix, "images"), _find(folder, prefix, "labels")
    if images_path is None or labels_path is None:
        missing = "images-idx3-ubyte" if images_path is None else "labels-idx1-ubyte"
        name = f"{'train' if prefix == 'train' else 't10k'}-{missing}"
        raise InputError(f"An idx dataset needs {name} (or {name}.gz), but {folder} has none: add it.")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise InputError(
            f"Each image needs a label, but {images_path} has {len(images)} and {labels_path} {len(labels)}: "
            "fetch both again from one place."
        )
    return images[:, None], labels


def _find(folder: Path, prefix: str, kind: str) -> Path | None:
    pattern = re.compile(rf"(.+-)?{prefix}-{kind}[-.]idx\d-ubyte(\.gz)?")
    found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    stems = {path.name.removesuffix(".gz") for path in found}
    if len(stems) > 1:
        raise InputError(
            f"An idx folder holds one dataset, but {folder} has {' and '.join(sorted(stems))}: use one folder for each."
        )
    return found[0] if found else None  # the plain file sorts before its .gz
