"""Specs: what they say, and what is wrong with the ones that say nothing useful."""

import pytest

from hwnas.data import load_dataset
from hwnas.errors import InputError

SMALL = "train=40&validation=20&test=20"


def test_options_and_arguments_say_the_same() -> None:
    by_option = load_dataset(f"glyphs?{SMALL}&size=16&channels=1&classes=5&difficulty=0.2")
    by_argument = load_dataset(
        "glyphs?classes=5&difficulty=0.2", image_size=16, channels=1, train=40, validation=20, test=20
    )
    assert by_option.input_shape == (1, 16, 16)
    assert by_option.train.images.tobytes() == by_argument.train.images.tobytes()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "one of glyphs, digits, imagefolder, npz, idx, cifar10"),
        ("mnist", "names 'mnist'"),
        ("glyphs?hard=1", "size, channels, train, validation, test, classes, difficulty"),
        ("digits?classes=3", "The options of digits are size"),
        ("glyphs?size", "'size'"),
        ("glyphs?size=big", "size must be a whole number, but is 'big'"),
        ("glyphs?difficulty=x", "difficulty must be a number"),
        ("glyphs?difficulty=nan", "must lie in 0..1"),
        ("glyphs?difficulty=1.5", "must lie in 0..1"),
        ("glyphs?classes=1", "2 to 44 classes"),
        ("glyphs?classes=45", "2 to 44 classes"),
        ("glyphs?size=4", "at least 8 pixels"),
        ("glyphs?size=0", "image_size must be at least 1"),
        ("glyphs?channels=2", "1 .grey. or 3 .RGB."),
        ("glyphs?size=16&size=16", "size twice"),
        ("glyphs?size=1000000", "GiB"),
        ("digits?size=1000000", "GiB"),
        ("glyphs:here", "glyphs takes no path"),
        ("idx", "idx needs a path, idx:PATH"),
        ("idx:", "idx needs a path"),
        ("idx:/nowhere/at/all", "/nowhere/at/all is missing"),
        ("cifar10:/nowhere", "/nowhere is missing"),
        ("npz:/nowhere", "/nowhere is missing"),
        ("imagefolder:/nowhere", "/nowhere is missing"),
        ("imagefolder:~nobody-of-that-name/images", "is missing"),
    ],
)
def test_a_bad_spec_is_explained(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(spec)


def test_a_contradiction_is_refused() -> None:
    with pytest.raises(InputError, match=r"image_size is 32, but the dataset .* says size=64"):
        load_dataset("glyphs?size=64", image_size=32)
    with pytest.raises(InputError, match="seed"):
        load_dataset("glyphs", seed=-1)
