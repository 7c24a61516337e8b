"""Folders of image files: how they are divided, decoded, fitted; files that are not what they seem."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwnas.data import load_dataset
from hwnas.errors import InputError


def _write(folder: Path, classes: dict[str, int], first: int = 0, suffix: str = ".png") -> int:
    """Images 8 × 8 whose every pixel is their own number; returns the next number."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            Image.new("RGB", (8, 8), (first, first, first)).save(folder / name / f"{first}{suffix}")
            first += 1
    return first


def _numbers(images: np.ndarray) -> list[int]:
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def test_undivided_folders_are_split_three_ways(tmp_path: Path) -> None:
    _write(tmp_path, {"cat": 20, "dog": 20})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    dataset = load_dataset(f"imagefolder:{tmp_path}?size=8")
    assert dataset.classes == ("cat", "dog")
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [len(part) for part in parts] == [28, 6, 6]
    assert sorted(number for part in parts for number in _numbers(part.images)) == list(range(40))
    for part in parts:
        assert [number // 20 for number in _numbers(part.images)] == part.labels.tolist()


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_divided_folders_are_kept(tmp_path: Path, validation: str) -> None:
    following = _write(tmp_path / "train", {"cat": 5, "dog": 7})
    following = _write(tmp_path / validation, {"dog": 3}, following)
    _write(tmp_path / "test", {"cat": 2, "dog": 2}, following)
    dataset = load_dataset(f"imagefolder:{tmp_path}", image_size=8)
    assert sorted(_numbers(dataset.train.images)) == list(range(12))
    assert sorted(_numbers(dataset.validation.images)) == [12, 13, 14]
    assert dataset.validation.labels.tolist() == [1, 1, 1]
    assert sorted(_numbers(dataset.test.images)) == [15, 16, 17, 18]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    _write(tmp_path, {"car": 10, "train": 10})
    assert load_dataset(f"imagefolder:{tmp_path}?size=8").classes == ("car", "train")


def test_only_images_asked_for_are_decoded(tmp_path: Path) -> None:
    _write(tmp_path / "train", {"cat": 5})
    _write(tmp_path / "test", {"cat": 1})
    (tmp_path / "test" / "cat" / "broken.png").write_bytes(b"")
    sound = 0
    for seed in range(10):  # either of the two test images is chosen
        try:
            load_dataset(f"imagefolder:{tmp_path}?size=8&test=1", seed=seed)
            sound += 1
        except InputError as error:
            assert "broken.png" in str(error)
    assert 0 < sound < 10


def test_the_shorter_side_is_scaled_and_the_centre_cropped(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8))
    (tmp_path / "wide").mkdir()
    for number in range(3):
        noise.save(tmp_path / "wide" / f"{number}.bmp")
    dataset = load_dataset(f"imagefolder:{tmp_path}", image_size=10)
    assert dataset.input_shape == (3, 10, 10)
    expected = np.asarray(noise.resize((30, 10), Image.Resampling.BILINEAR).crop((10, 0, 20, 10)))
    np.testing.assert_allclose(dataset.train.images[0].transpose(1, 2, 0).astype(int), expected, atol=1)


def test_modes_and_formats(tmp_path: Path) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    grey = Image.new("L", (9, 9), 100)
    grey.save(folder / "grey.png")
    grey.convert("P").save(folder / "palette.gif")
    grey.convert("RGB").save(folder / "rgb.JPEG", quality=100)
    grey.convert("CMYK").save(folder / "cmyk.jpg", quality=100)
    Image.new("RGBA", (9, 9), (100, 100, 100, 255)).save(folder / "opaque.png")
    Image.new("1", (9, 9), 1).save(folder / "bits.png")
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(folder / "clear.webp", lossless=True)
    for channels in (1, 3):
        dataset = load_dataset(f"imagefolder:{tmp_path}?size=9&validation=1&test=1", channels=channels)
        parts = (dataset.train, dataset.validation, dataset.test)
        numbers = sorted(int(np.median(image)) for part in parts for image in part.images)
        np.testing.assert_allclose(numbers, [100] * 5 + [255, 255], atol=2)


def test_the_orientation_tag_is_obeyed(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255
    tags = Image.Exif()
    tags[0x0112] = 3  # upside down
    (tmp_path / "class").mkdir()
    for number in range(3):
        Image.fromarray(pixels).save(tmp_path / "class" / f"{number}.png", exif=tags)
    image = load_dataset(f"imagefolder:{tmp_path}?size=16&channels=1").train.images[0, 0]
    np.testing.assert_array_equal(image, pixels[::-1])


def test_the_default_is_rgb_224(tmp_path: Path) -> None:
    _write(tmp_path, {"cat": 4, "dog": 4})
    assert load_dataset(f"imagefolder:{tmp_path}").input_shape == (3, 224, 224)


def _png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data lacks."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded"),
        (b"<html>not found</html>", "cannot be decoded"),
        (_png(8, 8)[:30], "cannot be decoded"),
        (_png(80, 80), "cannot be decoded"),
        (_png(10_000, 10_000), "at most .* pixels"),
        (_png(50_000, 50_000), "at most .* pixels"),
    ],
)
def test_a_bad_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    _write(tmp_path, {"cat": 9})
    bad = tmp_path / "cat" / "bad.png"
    bad.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(f"imagefolder:{tmp_path}?size=8")
    assert str(bad) in str(caught.value)


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, {"cat": 9})
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(tmp_path / "cat" / "deep.png")
    with pytest.raises(InputError, match=r"8 bits a channel, but .*deep.png"):
        load_dataset(f"imagefolder:{tmp_path}?size=8")


def test_folders_that_do_not_make_sense_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one folder for each class"):
        load_dataset(f"imagefolder:{tmp_path}")
    _write(tmp_path / "train", {"cat": 9})
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no image"):
        load_dataset(f"imagefolder:{tmp_path}")
    (tmp_path / "train" / "empty").rmdir()
    _write(tmp_path / "test", {"dog": 1})
    with pytest.raises(InputError, match="add train/dog or remove it"):
        load_dataset(f"imagefolder:{tmp_path}?size=8")
    (tmp_path / "dev").mkdir()
    with pytest.raises(InputError, match=r"there is .*dev"):
        load_dataset(f"imagefolder:{tmp_path}?size=8")


def test_memory_is_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for number in range(9):
        (tmp_path / "cat" / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"takes 251\.\d GiB.*fewer images"):
        load_dataset(f"imagefolder:{tmp_path}?size=100000")
