"""IDX files against bytes written by hand; damaged ones."""

import gzip
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.data import load_dataset
from hwnas.data.idx import read_idx
from hwnas.errors import InputError

NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def _images_file(images: np.ndarray) -> bytes:
    return b"\x00\x00\x08\x03" + struct.pack(">III", *images.shape) + images.tobytes()


def _labels_file(labels: np.ndarray) -> bytes:
    return b"\x00\x00\x08\x01" + struct.pack(">I", len(labels)) + labels.astype(np.uint8).tobytes()


def _contents(first_label: int = 0) -> dict[tuple[str, str], bytes]:
    rng = np.random.default_rng(0)
    contents = {}
    for part, count in (("train", 100), ("test", 20)):
        contents[part, "images"] = _images_file(rng.integers(0, 256, (count, 28, 28), np.uint8))
        contents[part, "labels"] = _labels_file(np.arange(count) % 10 + first_label)
    return contents


def _write(folder: Path, contents: dict[tuple[str, str], bytes]) -> str:
    for key, content in contents.items():
        (folder / NAMES[key]).write_bytes(content)
    return f"idx:{folder}"


def test_reader_agrees_with_bytes_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(bytes.fromhex("00000803 00000002 00000002 00000003") + bytes(range(12)))
    images = read_idx(path, 3)
    assert images.dtype == np.uint8
    assert images.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_is_loaded(tmp_path: Path, zipped: bool) -> None:
    contents = _contents()
    if zipped:
        for key, content in contents.items():
            (tmp_path / f"{NAMES[key]}.gz").write_bytes(gzip.compress(content))
    else:
        _write(tmp_path, contents)
    dataset = load_dataset(f"idx:{tmp_path}")
    assert dataset.input_shape == (1, 28, 28)
    assert dataset.classes == tuple("0123456789")
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [90, 10, 20]
    assert np.bincount(dataset.validation.labels).tolist() == [1] * 10
    stored = np.frombuffer(contents["test", "images"][16:], np.uint8).reshape(20, 784)
    expected = sorted((image.tobytes(), index % 10) for index, image in enumerate(stored))
    loaded = [(image.tobytes(), label) for image, label in zip(dataset.test.images, dataset.test.labels, strict=True)]
    assert sorted(loaded) == expected


def test_size_channels_and_counting_from_one(tmp_path: Path) -> None:
    dataset = load_dataset(_write(tmp_path, _contents(first_label=1)), image_size=32, channels=3)
    assert dataset.input_shape == (3, 32, 32)
    assert dataset.classes == (*"123456789", "10")
    assert dataset.train.labels.min() == 0 and dataset.train.labels.max() == 9


def test_without_a_test_set_it_is_split_off(tmp_path: Path) -> None:
    contents = {key: content for key, content in _contents().items() if key[0] == "train"}
    dataset = load_dataset(_write(tmp_path, contents))
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [70, 15, 15]


def test_names_of_emnist_are_understood(tmp_path: Path) -> None:
    for (part, kind), content in _contents().items():
        name = f"emnist-letters-{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
        (tmp_path / name).write_bytes(content)
    assert len(load_dataset(f"idx:{tmp_path}").test) == 20
    (tmp_path / "emnist-digits-train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(InputError, match=r"one dataset, but .* emnist-digits-.* and emnist-letters-"):
        load_dataset(f"idx:{tmp_path}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for key in (("train", "images"), ("train", "labels"), ("test", "labels")):
        contents = _contents()
        del contents[key]
        folder = tmp_path / "-".join(key)
        folder.mkdir()
        with pytest.raises(InputError, match=NAMES[key]):
            load_dataset(_write(folder, contents))


def _damage(good: bytes) -> dict[str, tuple[bytes, str]]:
    return {
        "empty": (b"", "truncated"),
        "header": (good[:9], "truncated"),
        "short": (good[:-1], "truncated"),
        "long": (good + b"\0", "longer than its header"),
        "type": (good[:2] + b"\x0d" + good[3:], "begins with 00000d03"),
        "dimensions": (good[:3] + b"\x01" + good[4:], "begins with 00000801"),
        "nothing": (good[:4] + bytes(4) + good[8:], "holds nothing"),
        "huge": (good[:4] + b"\xff" * 12 + good[16:], "GiB"),
    }


@pytest.mark.parametrize("kind", list(_damage(bytes(20))))
def test_damage_is_explained(tmp_path: Path, kind: str) -> None:
    contents = _contents()
    damaged, message = _damage(contents["train", "images"])[kind]
    contents["train", "images"] = damaged
    with pytest.raises(InputError, match=message):
        load_dataset(_write(tmp_path, contents))


def test_labels_must_match_images_and_occur_in_training(tmp_path: Path) -> None:
    contents = _contents()
    contents["train", "labels"] = _labels_file(np.zeros(99))
    with pytest.raises(InputError, match=r"has 100 and .* 99"):
        load_dataset(_write(tmp_path, contents))
    contents["train", "labels"] = _labels_file(np.zeros(100))
    with pytest.raises(InputError, match="but 1 does not"):
        load_dataset(_write(tmp_path, contents))


@pytest.mark.parametrize("length", [5, 200, -1])
def test_a_truncated_gz_is_explained(tmp_path: Path, length: int) -> None:
    path = tmp_path / "images.gz"
    whole = gzip.compress(_contents()["train", "images"])
    path.write_bytes(whole[:length])
    with pytest.raises(InputError, match="damaged or truncated"):
        read_idx(path, 3)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(InputError, match="damaged or truncated"):
        read_idx(path, 3)


HEADERS = st.sampled_from([b"", b"\x00\x00\x08\x03", b"\x00\x00\x08\x03\x00\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00\x01"])


@settings(deadline=None)  # the machine may be busy
@given(HEADERS, st.binary(max_size=64), st.booleans(), st.integers(0, 80))
def test_any_bytes_are_an_array_or_an_input_error(header: bytes, rest: bytes, zipped: bool, cut: int) -> None:
    content = header + rest
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "images.gz" if zipped else "images")
        path.write_bytes(gzip.compress(content)[: cut + 20] if zipped else content)
        try:
            images = read_idx(path, 3)
        except InputError:
            return
        assert content == b"\x00\x00\x08\x03" + struct.pack(">III", *images.shape) + images.tobytes()
