"""CIFAR-10's binary version, written record by record; damaged files."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.data import load_dataset
from hwnas.errors import InputError

NAMES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def _record(label: int, seed: int) -> bytes:
    return bytes([label]) + np.random.default_rng(seed).bytes(3072)


def _write(folder: Path, records: int = 20) -> str:
    for number, name in enumerate(NAMES):
        content = b"".join(_record(index % 10, 1000 * number + index) for index in range(records))
        (folder / name).write_bytes(content)
    return f"cifar10:{folder}"


def test_records_are_read_plane_by_plane(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    red, green, blue = b"\x01" * 1024, b"\x02" * 1024, bytes(range(32)) * 32
    (tmp_path / "test_batch.bin").write_bytes(b"\x07" + red + green + blue)
    dataset = load_dataset(spec)
    assert dataset.test.labels.tolist() == [7] and dataset.classes[7] == "horse"
    image = dataset.test.images[0]
    assert (image[0] == 1).all() and (image[1] == 2).all()
    assert (image[2] == np.arange(32)).all()  # a row of pixels is a run of bytes


def test_all_records_are_loaded_once(tmp_path: Path) -> None:
    dataset = load_dataset(_write(tmp_path))
    assert dataset.input_shape == (3, 32, 32)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [90, 10, 20]
    loaded = {
        bytes([label]) + image.tobytes()
        for part in (dataset.train, dataset.validation)
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert loaded == {_record(index % 10, 1000 * number + index) for number in range(5) for index in range(20)}


def test_the_folder_of_the_archive_is_found(tmp_path: Path) -> None:
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    _write(inner)
    assert len(load_dataset(f"cifar10:{tmp_path}").test) == 20


@pytest.mark.parametrize("length", [0, 1, 3072, 3074, 20 * 3073 - 1])
def test_a_truncated_file_is_explained(tmp_path: Path, length: int) -> None:
    spec = _write(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=f"data_batch_3.bin has {length} bytes"):
        load_dataset(spec)


def test_missing_files_and_other_versions_are_explained(tmp_path: Path) -> None:
    spec = _write(tmp_path)
    (tmp_path / "data_batch_5.bin").rename(tmp_path / "data_batch_5")
    with pytest.raises(InputError, match=r"data_batch_5.bin cannot be read.*fetch the binary version"):
        load_dataset(spec)
    (tmp_path / "data_batch_5").unlink()
    with pytest.raises(InputError, match=r"data_batch_5.bin cannot be read.*add it"):
        load_dataset(spec)
    (tmp_path / "data_batch_5.bin").write_bytes(_record(10, 0))
    with pytest.raises(InputError, match="has 10: it is damaged or CIFAR-100"):
        load_dataset(spec)


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=40), st.integers(0, 2), st.integers(-1, 1))
def test_any_bytes_are_a_dataset_or_an_input_error(start: bytes, records: int, excess: int) -> None:
    content = start.ljust(max(0, 3073 * records + excess), b"\x03")
    with tempfile.TemporaryDirectory() as folder:
        spec = _write(Path(folder), records=2)
        Path(folder, "test_batch.bin").write_bytes(content)
        try:
            dataset = load_dataset(spec)
        except InputError:
            return
        assert sum(part.size for part in (dataset.test.images, dataset.test.labels)) == len(content)
