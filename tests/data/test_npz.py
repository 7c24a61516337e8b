"""Archives of the user's own: the layouts they may have, and what is refused."""

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.data import Dataset, load_dataset
from hwnas.errors import InputError


def _images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _labels(count: int) -> np.ndarray:
    return np.arange(count) % 3


def _save(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "data.npz", **arrays)
    return f"npz:{folder / 'data.npz'}"


def _contents(dataset: Dataset) -> list[bytes]:
    return sorted(image.tobytes() for part in (dataset.train, dataset.validation, dataset.test) for image in part.images)


@pytest.mark.parametrize("shape", [(40, 6, 8), (40, 6, 8, 1), (40, 6, 8, 3), (40, 1, 6, 8), (40, 3, 6, 8)])
def test_each_layout_is_understood(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = _images(*shape)
    dataset = load_dataset(_save(tmp_path, images=images, labels=_labels(40)))
    if len(shape) == 3:
        expected = images[:, None]
    else:
        expected = np.moveaxis(images, 3, 1) if shape[3] in (1, 3) else images
    assert dataset.input_shape == expected.shape[1:]
    assert _contents(dataset) == sorted(image.tobytes() for image in expected)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [28, 6, 6]


@pytest.mark.parametrize("shape", [(40, 3, 8, 3), (40, 1, 8, 3), (40, 4, 8, 8)])
def test_an_ambiguous_layout_asks_for_an_option(tmp_path: Path, shape: tuple[int, ...]) -> None:
    spec = _save(tmp_path, images=_images(*shape), labels=_labels(40))
    with pytest.raises(InputError, match=r"layout=nchw or \?layout=nhwc"):
        load_dataset(spec)
    assert load_dataset(f"{spec}?layout=nchw").input_shape == shape[1:]
    assert load_dataset(f"{spec}?layout=nhwc").input_shape == (shape[3], shape[1], shape[2])
    with pytest.raises(InputError, match="nchw or nhwc, but is 'chw'"):
        load_dataset(f"{spec}?layout=chw")


def test_given_sets_are_kept_and_missing_ones_split_off(tmp_path: Path) -> None:
    train, validation, test = (_images(count, 8, 8, seed=count) for count in (60, 9, 12))
    arrays = {"x_train": train, "y_train": _labels(60)[:, None], "x_test": test, "y_test": _labels(12).astype(np.uint8)}
    dataset = load_dataset(_save(tmp_path, **arrays))
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [54, 6, 12]
    dataset = load_dataset(_save(tmp_path, **arrays, x_val=validation, y_val=_labels(9)))
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [60, 9, 12]
    for part, images in ((dataset.train, train), (dataset.validation, validation), (dataset.test, test)):
        position = {image.tobytes(): index for index, image in enumerate(images)}
        assert [position[image.tobytes()] % 3 for image in part.images] == part.labels.tolist()


def test_rgb_becomes_grey_grey_becomes_rgb_and_sizes_fit(tmp_path: Path) -> None:
    colours = np.zeros((30, 3, 10, 20), np.uint8)
    colours[:, 0], colours[:, 1], colours[:, 2, :, :3] = 200, 100, 255  # the blue border is cropped
    dataset = load_dataset(_save(tmp_path, images=colours, labels=_labels(30)), image_size=5, channels=1)
    assert dataset.input_shape == (1, 5, 5)
    assert np.unique(dataset.train.images).tolist() == [round(0.299 * 200 + 0.587 * 100)]
    spec = _save(tmp_path, images=_images(30, 4, 4), labels=_labels(30))
    assert load_dataset(spec, channels=3).input_shape == (3, 4, 4)
    spec = _save(tmp_path, images=_images(30, 5, 9, 9), labels=_labels(30))
    with pytest.raises(InputError, match="have 5 and 3 were asked for"):
        load_dataset(f"{spec}?layout=nchw", channels=3)


def test_class_names(tmp_path: Path) -> None:
    arrays = {"images": _images(40, 8, 8), "labels": _labels(40)}
    names = np.array(["cat", "dog", "eel", "fox"])
    assert load_dataset(_save(tmp_path, **arrays, classes=names)).classes == ("cat", "dog", "eel", "fox")
    with pytest.raises(InputError, match=r"0\.\.1 because .* names 2 classes, but the train set has 2"):
        load_dataset(_save(tmp_path, **arrays, classes=names[:2]))
    with pytest.raises(InputError, match="list of different names"):
        load_dataset(_save(tmp_path, **arrays, classes=np.array(["cat", "cat", "dog"])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((40, 8, 8), np.float32)}, "must be uint8 .* is float32 .*scale pixels"),
        ({"images": np.zeros((40, 64), np.uint8)}, r"must be uint8 .* \(40, 64\)"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, r"\(0, 8, 8\)"),
        ({"labels": np.zeros(40)}, "40 integers, .* is float64"),
        ({"labels": np.zeros(39, np.int64)}, r"40 integers, .*\(39,\)"),
        ({"labels": np.eye(40, dtype=np.int64)}, r"\(40, 40\)"),
        ({"labels": np.full(40, -1)}, "count from 0, but labels .* has -1"),
        ({"labels": np.full(40, 2**63, np.uint64)}, "count from 0"),
        ({"labels": np.array([None] * 40)}, "without pickles"),
        ({"labels": None}, "has images but not labels"),
        ({"images": None}, "has labels but not images"),
        ({"images": None, "labels": None}, "has neither"),
        ({"x_train": np.zeros(3)}, "keep one of the two forms"),
        ({"x_valid": np.zeros(3)}, "'x_valid', but the names known are"),
    ],
)
def test_bad_arrays_are_explained(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    arrays = {"images": _images(40, 8, 8), "labels": _labels(40), **changes}
    spec = _save(tmp_path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=message):
        load_dataset(spec)


def test_a_label_that_training_lacks_is_named(tmp_path: Path) -> None:
    images = _images(4, 8, 8)
    spec = _save(tmp_path, x_train=images, y_train=np.array([0, 1, 0, 1]), x_test=images, y_test=np.array([0, 1, 5, 1]))
    with pytest.raises(InputError, match="but 5 does not"):
        load_dataset(spec)


def test_other_files_are_explained(tmp_path: Path) -> None:
    np.save(tmp_path / "single.npy", _images(4, 8, 8))
    (tmp_path / "text.npz").write_text("not an archive")
    for name in ("single.npy", "text.npz"):
        with pytest.raises(InputError, match="cannot be read as an npz archive"):
            load_dataset(f"npz:{tmp_path / name}")
    with pytest.raises(InputError, match="is a folder"):
        load_dataset(f"npz:{tmp_path}")


def test_a_size_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(1000))
    size = (1000).to_bytes(4, "little")
    content = path.read_bytes()
    assert content.count(size) == 2  # local header and directory
    path.write_bytes(content.replace(size, b"\xf0\xff\xff\xff"))
    with pytest.raises(InputError, match=r"GiB|cannot be read"):
        load_dataset(f"npz:{path}")


def _archive() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=_images(12, 4, 4), labels=_labels(12))
    return buffer.getvalue()


ARCHIVE = _archive()


@settings(deadline=None)  # the machine may be busy
@given(
    st.one_of(
        st.binary(max_size=100),
        st.integers(0, len(ARCHIVE)).map(lambda end: ARCHIVE[:end]),
        st.lists(st.tuples(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255)), min_size=1, max_size=4).map(
            lambda edits: _edited(ARCHIVE, edits)
        ),
    )
)
def test_any_bytes_are_a_dataset_or_an_input_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.npz")
        path.write_bytes(content)
        try:
            dataset = load_dataset(f"npz:{path}")
        except InputError:
            return
        assert _contents(dataset) == sorted(image.tobytes() for image in _images(12, 4, 4))


def _edited(content: bytes, edits: list[tuple[int, int]]) -> bytes:
    result = bytearray(content)
    for position, value in edits:
        result[position] = value
    return bytes(result)


HEADERS = st.builds(
    lambda descr, shape, order: repr({"descr": descr, "fortran_order": order, "shape": shape}),
    st.sampled_from(["|u1", "<i8", "|O", "<U3", "|V0", [("a", "|u1")]]),
    st.lists(st.integers(-2, 2**62), max_size=4).map(tuple),
    st.booleans(),
)


@settings(deadline=None)  # the machine may be busy
@given(st.one_of(HEADERS, st.text(max_size=40)), st.binary(max_size=50))
def test_any_array_header_is_an_input_error(header: str, data: bytes) -> None:
    encoded = header.encode("utf-8", "replace") + b"\n"
    member = b"\x93NUMPY\x03\x00" + len(encoded).to_bytes(4, "little") + encoded + data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.npz")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", member)
        with pytest.raises(InputError):  # there are no labels, so none of these is a dataset
            load_dataset(f"npz:{path}")
