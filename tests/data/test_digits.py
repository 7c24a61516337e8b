"""The digits that scikit-learn ships."""

import numpy as np
from sklearn import datasets

from hwnas.data import load_dataset


def test_all_digits_are_there_once() -> None:
    dataset = load_dataset("digits?size=8")
    bunch = datasets.load_digits()
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [len(part) for part in parts] == [1257, 270, 270]
    loaded = sorted(
        (int(label), image.tobytes())
        for part in parts
        for image, label in zip(np.rint(part.images[:, 0] / 255 * 16).astype(np.uint8), part.labels, strict=True)
    )
    original = sorted(
        (int(label), image.astype(np.uint8).tobytes())
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert loaded == original
    assert len({content for _, content in loaded}) == 1797  # so the sets are disjoint by content, too
    assert all(np.ptp(np.bincount(part.labels) / len(part)) < 0.02 for part in parts)


def test_size_and_channels() -> None:
    assert load_dataset("digits").input_shape == (1, 32, 32)
    rgb = load_dataset("digits", image_size=16, channels=3)
    assert rgb.input_shape == (3, 16, 16)
    np.testing.assert_array_equal(rgb.train.images[:, 0], rgb.train.images[:, 2])
    assert rgb.classes == tuple("0123456789")
