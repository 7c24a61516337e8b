"""Splits: disjoint, stratified, deterministic; the numbers of images asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.data.dataset import Dataset
from hwnas.data.request import Request
from hwnas.data.sources import array_source, assemble, classes_from_labels, stratified_order
from hwnas.errors import InputError

CLASSES = ("a", "b", "c")


def _numbered(count: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images that carry their own number in four pixels, classes in the proportion 1 : 2 : 3."""
    numbers = np.arange(first, first + count, dtype=">u4")
    labels = np.array([0, 1, 1, 2, 2, 2])[np.arange(count) % 6]
    return numbers.view(np.uint8).reshape(count, 1, 2, 2), labels


def _numbers(images: np.ndarray) -> list[int]:
    return np.ascontiguousarray(images).reshape(-1, 4).view(">u4")[:, 0].tolist()


def _divided(request: Request) -> Dataset:
    return assemble("x", CLASSES, request, array_source(*_numbered(600), request))


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 5), min_size=1, max_size=120), st.integers(0, 3), st.data())
def test_every_slice_of_the_order_is_in_proportion(labels: list[int], seed: int, data: st.DataObject) -> None:
    numbers = np.array(labels)
    order = stratified_order(numbers, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(labels)))
    start = data.draw(st.integers(0, len(labels)))
    end = data.draw(st.integers(start, len(labels)))
    for label in set(labels):
        share = np.mean(numbers == label)
        excess = np.sum(numbers[order[start:end]] == label) - share * (end - start)
        # Each end of the slice may cut every class by up to one image.
        assert abs(excess) <= 1 + share * len(set(labels)) + 1


def test_three_ways_disjoint_complete_and_stratified() -> None:
    dataset = _divided(Request())
    parts = [dataset.train, dataset.validation, dataset.test]
    assert [len(part) for part in parts] == [420, 90, 90]
    assert sorted(number for part in parts for number in _numbers(part.images)) == list(range(600))
    for part in parts:
        np.testing.assert_allclose(np.bincount(part.labels) / len(part), [1 / 6, 2 / 6, 3 / 6], atol=0.02)
        expected = np.array([0, 1, 1, 2, 2, 2])[np.array(_numbers(part.images)) % 6]
        np.testing.assert_array_equal(part.labels, expected)


def test_validation_alone_is_split_off_where_there_is_a_test_set() -> None:
    request = Request()
    dataset = assemble(
        "x",
        CLASSES,
        request,
        train=array_source(*_numbered(600), request),
        test=array_source(*_numbered(60, first=600), request),
    )
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (540, 60, 60)
    assert sorted(_numbers(dataset.test.images)) == list(range(600, 660))
    assert sorted(_numbers(dataset.train.images) + _numbers(dataset.validation.images)) == list(range(600))


def test_all_given_sets_are_kept() -> None:
    request = Request()
    sources = [array_source(*_numbered(12, first), request) for first in (0, 12, 24)]
    dataset = assemble("x", CLASSES, request, *sources)
    for part, first in zip((dataset.train, dataset.validation, dataset.test), (0, 12, 24), strict=True):
        assert sorted(_numbers(part.images)) == list(range(first, first + 12))


def test_the_seed_decides_the_split() -> None:
    first, again, other = (_divided(Request(seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert set(_numbers(first.test.images)) != set(_numbers(other.test.images))


def test_numbers_asked_for_are_met_or_refused() -> None:
    dataset = _divided(Request(train=60, validation=30, test=12))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (60, 30, 12)
    assert np.bincount(dataset.train.labels).tolist() == [10, 20, 30]
    with pytest.raises(InputError, match="train=500 images were asked for, but x has 420"):
        _divided(Request(train=500))
    with pytest.raises(InputError, match="training set of x is empty"):
        assemble("x", CLASSES, Request(), array_source(*_numbered(2), Request()))


def test_labels_become_classes() -> None:
    classes, (train, test) = classes_from_labels(np.array([3, 1, 26, 1], np.uint8), np.array([26, 1], np.uint8))
    assert classes == ("1", "3", "26")
    assert train.tolist() == [1, 0, 2, 0] and test.tolist() == [2, 0]
    with pytest.raises(InputError, match="but 4 does not"):
        classes_from_labels(np.array([1, 2]), np.array([4]))
