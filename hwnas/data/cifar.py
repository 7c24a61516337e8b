"""CIFAR-10, binary version (https://www.cs.toronto.edu/~kriz/cifar.html).

Each record is one label byte and 3,072 pixel bytes: red, green, blue plane, each 32 × 32, row by row. The "python
version" is a pickle, which may run code when it is read: it is refused.
"""

from pathlib import Path

import numpy as np

from hwnas.data.dataset import Dataset
from hwnas.data.reading import existing_folder
from hwnas.data.request import Request, check_memory
from hwnas.data.sources import array_source, assemble
from hwnas.errors import InputError

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_RECORD_BYTES = 1 + 3 * 32 * 32
_TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


def load_cifar10(path: Path, request: Request) -> Dataset:
    """Loads data_batch_1.bin to data_batch_5.bin and test_batch.bin; validation is split off train.

    Args:
        path: The folder of those files, or the one that holds `cifar-10-batches-bin`.
        request: Size, channels, set sizes and seed.

    Raises:
        InputError: A file is missing, truncated, or has a label above 9.
    """
    folder = existing_folder(path, "cifar10")
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    batches = [_read_batch(folder / name) for name in _TRAIN_FILES]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    train, test = array_source(images, labels, request), array_source(*_read_batch(folder / "test_batch.bin"), request)
    return assemble("cifar10", _CLASSES, request, train=train, test=test)


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels uint8 (N,) of one file."""
    try:
        check_memory(path.stat().st_size, str(path))
        data = path.read_bytes()
    except OSError as error:
        hint = "this is the python version; fetch the binary version" if path.with_suffix("").exists() else "add it"
        raise InputError(
            f"The binary version of CIFAR-10 has {path.name}, but {path} cannot be read ({error.strerror}): {hint}."
        ) from None
    if not data or len(data) % _RECORD_BYTES:
        raise InputError(
            f"A CIFAR-10 file is one or more records of {_RECORD_BYTES} bytes, but {path} has {len(data)} bytes: "
            "it is truncated or another kind of file; fetch it again."
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() >= len(_CLASSES):
        raise InputError(
            f"CIFAR-10 labels lie in 0..9, but {path} has {labels.max()}: it is damaged or CIFAR-100; fetch it again."
        )
    return records[:, 1:].reshape(-1, 3, 32, 32), labels
