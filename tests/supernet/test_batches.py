"""Batches: the same images and augmentation however they are cut, and prepared in a thread or not."""

import dataclasses

import pytest
import torch

from hwnas.data import batch_indices
from hwnas.data.augment import augment_batch
from hwnas.errors import InputError
from hwnas.supernet.batches import Feed, ahead
from hwnas.supernet.distributed import Group
from tests.supernet.loop_samples import CONFIG

CPU = torch.device("cpu")
AUGMENTED = dataclasses.replace(CONFIG, flip=True, cutout=5, max_shift=3)


def test_a_part_is_augmented_as_it_is_within_the_whole():
    images = torch.randn(12, 3, 9, 11)
    settings = {"max_shift": 3, "flip": True, "cutout": 4}
    whole = augment_batch(images, torch.Generator().manual_seed(2), **settings)
    parts = [augment_batch(images[first:first + 4], torch.Generator().manual_seed(2), first=first, of=12, **settings)
             for first in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), whole)


def test_ranks_and_micro_batches_cut_the_same_batch(dataset):
    whole = Feed(dataset, AUGMENTED, Group(), CPU)
    expected = [whole.part(batch, 0) for batch in whole.batches(0, 20)]
    for accumulation, size in ((2, 1), (1, 2), (2, 4), (4, 2)):
        config = dataclasses.replace(AUGMENTED, accumulation=accumulation)
        feeds = [Feed(dataset, config, Group(rank, size), CPU) for rank in range(size)]
        for step, batches in enumerate(zip(*(feed.batches(0, 20) for feed in feeds), strict=True)):
            parts = [feed.part(batch, index) for feed, batch in zip(feeds, batches, strict=True) for index in range(accumulation)]
            for field in (0, 1):
                assert torch.equal(torch.cat([part[field] for part in parts]), expected[step][field])


def test_an_image_is_what_the_dataset_and_the_augmentation_make_of_it(dataset):
    config = dataclasses.replace(CONFIG, max_shift=0)
    feed = Feed(dataset, config, Group(), CPU)
    batch = next(feed.batches(13, 20))
    indices = list(batch_indices(160, 16, 1, config.seed))[3]
    images, labels = feed.part(batch, 0)
    assert batch.step == 13
    assert torch.equal(images, torch.from_numpy(dataset.normalise(dataset.train.images[indices])))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == dataset.train.labels[indices].tolist()


def test_batches_may_begin_and_end_anywhere(dataset):
    feed = Feed(dataset, CONFIG, Group(), CPU)
    whole = list(feed.batches(0, 20))
    assert [batch.step for batch in whole] == [*range(20)]
    part = list(feed.batches(7, 15))
    assert [batch.step for batch in part] == [*range(7, 15)]
    assert all(torch.equal(one.weights[0], other.weights[0]) for one, other in zip(part, whole[7:15], strict=True))
    assert list(feed.batches(20, 20)) == []


def test_ranks_cut_the_architectures_batch_too(dataset):
    whole = Feed(dataset, AUGMENTED, Group(), CPU, architecture_share=0.5)
    halves = [Feed(dataset, AUGMENTED, Group(rank, 2), CPU, architecture_share=0.5) for rank in range(2)]
    expected, _ = whole.architecture(next(whole.batches(3, 4)))
    assert torch.equal(torch.cat([feed.architecture(next(feed.batches(3, 4)))[0] for feed in halves]), expected)


@pytest.mark.parametrize(("batch_size", "size"), [(16, 3), (4, 4), (18, 4)])
def test_batches_that_cannot_be_cut_are_refused(dataset, batch_size, size):
    with pytest.raises(InputError, match=f"use a multiple of {size}"):
        Feed(dataset, dataclasses.replace(CONFIG, batch_size=batch_size), Group(0, size), CPU)


def test_preparing_ahead_changes_nothing_and_passes_errors_on():
    assert list(ahead(iter([[3], [1], [2]]))) == [[3], [1], [2]]
    assert list(ahead(iter([]))) == []

    def failing():
        yield [1]
        raise ZeroDivisionError

    items = ahead(failing())
    assert next(items) == [1]
    with pytest.raises(ZeroDivisionError):
        next(items)
