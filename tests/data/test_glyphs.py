"""Generated characters: deterministic, disjoint, learnable, not trivial."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from hwnas.data import Dataset, load_dataset
from hwnas.data.glyphs import CHARACTERS


@pytest.fixture(scope="module")
def glyphs() -> Dataset:
    return load_dataset("glyphs", train=2000, validation=500, test=500)


def test_shape_classes_and_balance(glyphs: Dataset) -> None:
    assert glyphs.input_shape == (3, 32, 32)
    assert glyphs.classes == tuple("0123456789ABCDEFGHJKLMNPQRSTUVWXYZae")
    for split in (glyphs.train, glyphs.validation, glyphs.test):
        assert np.ptp(np.bincount(split.labels, minlength=36)) <= 1
        assert np.ptp(np.bincount(split.labels[100:172], minlength=36)) == 0  # any slice is balanced


def test_no_image_comes_twice_in_or_across_sets(glyphs: Dataset) -> None:
    images = [image.tobytes() for split in (glyphs.train, glyphs.validation, glyphs.test) for image in split.images]
    assert len(set(images)) == len(images) == 3000


def test_no_image_comes_twice_when_clean_and_tiny() -> None:
    easy = load_dataset("glyphs?difficulty=0&size=8&channels=1&classes=2", train=2000, validation=500, test=500)
    images = [image.tobytes() for split in (easy.train, easy.validation, easy.test) for image in split.images]
    assert len(set(images)) == 3000


def test_an_image_depends_on_seed_set_and_index_only(glyphs: Dataset) -> None:
    fewer = load_dataset("glyphs", train=100, validation=70, test=1)  # cuts chunks of 64 in other places
    np.testing.assert_array_equal(fewer.train.images, glyphs.train.images[:100])
    np.testing.assert_array_equal(fewer.validation.images, glyphs.validation.images[:70])
    np.testing.assert_array_equal(fewer.test.images, glyphs.test.images[:1])
    other = load_dataset("glyphs", train=100, validation=70, test=1, seed=1)
    assert all((mine != theirs).any() for mine, theirs in zip(fewer.train.images, other.train.images, strict=True))


def test_grey_is_the_luma_of_rgb() -> None:
    sizes = {"train": 64, "validation": 64, "test": 64}
    rgb = load_dataset("glyphs?difficulty=0.1", **sizes).train.images.astype(np.float64)
    grey = load_dataset("glyphs?difficulty=0.1", channels=1, **sizes).train.images
    unclipped = ((rgb > 0) & (rgb < 255)).all(axis=1)
    luma = np.tensordot(rgb, [0.299, 0.587, 0.114], axes=(1, 0))
    assert np.abs(luma - grey[:, 0])[unclipped].max() <= 1


def test_every_character_of_every_size_is_drawn() -> None:
    """Clean characters of one class look alike: the nearest class mean names most of them."""
    dataset = load_dataset("glyphs?difficulty=0&classes=44&channels=1", train=4400, validation=44, test=440)
    assert "".join(dataset.classes) == CHARACTERS and len(set(CHARACTERS)) == 44

    def shape(images: np.ndarray) -> np.ndarray:
        """Contrast against the corner, so that light on dark and dark on light look the same."""
        pixels = images.reshape(len(images), -1).astype(np.float64)
        contrast = np.abs(pixels - pixels[:, :1])
        return contrast / np.linalg.norm(contrast, axis=1, keepdims=True)

    train, test = shape(dataset.train.images), shape(dataset.test.images)
    means = np.stack([train[dataset.train.labels == label].mean(axis=0) for label in range(44)])
    distances = np.linalg.norm(test[:, None] - means, axis=2)
    assert np.mean(distances.argmin(axis=1) == dataset.test.labels) > 0.6


def test_difficulty_is_felt_and_pixels_do_not_give_the_class_away() -> None:
    accuracy = {}
    for difficulty in (0.0, 0.4):
        dataset = load_dataset(f"glyphs?difficulty={difficulty}&channels=1&size=16", train=2000, validation=100, test=500)
        flat = {part: dataset.normalise(getattr(dataset, part).images).reshape(-1, 256) for part in ("train", "test")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a rough answer is enough
            model = LogisticRegression(C=0.01, max_iter=60).fit(np.abs(flat["train"]), dataset.train.labels)
        accuracy[difficulty] = model.score(np.abs(flat["test"]), dataset.test.labels)
    chance = 1 / 36
    assert accuracy[0.0] > 0.4
    assert 1.5 * chance < accuracy[0.4] < 0.6
    assert accuracy[0.4] < accuracy[0.0] - 0.2
