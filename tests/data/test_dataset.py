"""Dataset statistics and normalisation against numpy on whole arrays; the contract of Split."""

import numpy as np
import pytest

from hwnas.data.dataset import Split, build_dataset
from hwnas.errors import InputError


def _split(rng: np.random.Generator, count: int, shape: tuple[int, int, int] = (3, 5, 7)) -> Split:
    return Split(rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, 4, count))


def _classes() -> tuple[str, ...]:
    return ("a", "b", "c", "d")


def test_statistics_are_those_of_the_training_pixels() -> None:
    rng = np.random.default_rng(0)
    train = _split(rng, 5000)  # more than one chunk
    dataset = build_dataset("x", train, _split(rng, 3), _split(rng, 3), _classes())
    pixels = train.images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)
    assert dataset.input_shape == (3, 5, 7)
    assert dataset.num_classes == 4


def test_normalised_training_pixels_have_mean_0_and_deviation_1() -> None:
    rng = np.random.default_rng(1)
    train = _split(rng, 200)
    dataset = build_dataset("x", train, _split(rng, 3), _split(rng, 3), _classes())
    normalised = dataset.normalise(train.images)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(normalised.std(axis=(0, 2, 3)), 1, atol=1e-5)
    expected = (train.images / 255 - np.reshape(dataset.mean, (3, 1, 1))) / np.reshape(dataset.std, (3, 1, 1))
    np.testing.assert_allclose(normalised, expected, atol=1e-5)


def test_a_constant_channel_stays_finite() -> None:
    images = np.full((4, 1, 2, 2), 77, np.uint8)
    split = Split(images, np.arange(4))
    dataset = build_dataset("x", split, split, split, _classes())
    np.testing.assert_allclose(dataset.normalise(images), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 1, 4, 4), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int32)),
    ],
)
def test_split_refuses_other_types_and_shapes(images: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(InputError):
        Split(images, labels)


def test_sets_must_agree() -> None:
    rng = np.random.default_rng(2)
    good = _split(rng, 4)
    with pytest.raises(InputError, match="one shape"):
        build_dataset("x", good, _split(rng, 4, (3, 5, 5)), good, _classes())
    with pytest.raises(InputError, match="is empty"):
        build_dataset("x", good, good, _split(rng, 0), _classes())
    with pytest.raises(InputError, match=r"0\.\.1"):
        build_dataset("x", good, good, Split(good.images, np.array([0, 1, 2, 0])), ("a", "b"))
