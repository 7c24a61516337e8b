"""What a rank computes of each step's batch: which images, and the same images normalised and augmented on its device.

A batch is `batch_size` images over all ranks and micro-batches. It is cut into equal chunks in order, rank after rank, and
augmentation is drawn for the whole, so how many ranks there are changes neither the order nor the augmentation of images.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hwnas.data import Dataset, batch_indices
from hwnas.data.augment import augment_batch
from hwnas.errors import InputError
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.distributed import Group
from hwnas.supernet.streams import stream_seed

Batch = tuple[Tensor, Tensor]
"""Normalised and augmented images, (N, C, H, W), and their labels, (N,)."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class HostBatch:
    """A rank's share of a step, as it lies in memory: images uint8 (N, C, H, W) and labels (N,).

    Attributes:
        step: Which step, from 0.
        weights: For the weights, all micro-batches.
        architecture: For the architecture, or None.
    """

    step: int
    weights: Batch
    architecture: Batch | None


class Feed:
    """The batches of a run, as functions of (seed, step).

    Attributes:
        steps_per_epoch: Steps in a pass over the images that train the weights.
        chunks: Chunks that a batch is cut into: micro-batches times ranks.
    """

    def __init__(self, dataset: Dataset, config: LoopConfig, group: Group, device: torch.device, architecture_share: float = 0.0,
                 architecture_epoch: int = 0) -> None:
        """Splits the training images.

        Args:
            dataset: Of which the training images are used.
            config: How to train.
            group: The ranks that share a batch.
            device: Where batches are prepared.
            architecture_share: Share of the images, the last ones, that is kept for the architecture.
            architecture_epoch: The epoch from which there are batches for it.

        Raises:
            InputError: The batches are larger than the set, or cannot be cut into equal chunks of at least 2.
        """
        self._train, self._config, self._group, self._device = dataset.train, config, group, device
        self._kept = int(architecture_share * len(dataset.train))
        self._images = len(dataset.train) - self._kept
        self.chunks = config.accumulation * group.size
        self._chunk = config.batch_size // self.chunks
        if config.batch_size % self.chunks or self._chunk < 2:
            raise InputError(f"batch_size must give each of {group.size} processes {config.accumulation} equal micro-batches of "
                             f"2 images or more, but is {config.batch_size}: use a multiple of {self.chunks}, at least "
                             f"{2 * self.chunks}.")
        batch_indices(self._images, config.batch_size, 0, config.seed)  # refuses batches larger than the set
        if architecture_share:
            batch_indices(self._kept, self._chunk * group.size, 0, config.seed)
        self.steps_per_epoch = self._images // config.batch_size
        self._architecture_step = architecture_epoch * self.steps_per_epoch if architecture_share else None
        mean, std = (np.asarray(values, np.float64).reshape(-1, 1, 1) for values in (dataset.mean, dataset.std))
        self._scale, self._offset = (torch.from_numpy(values.astype(np.float32)).to(device)
                                     for values in (1 / (255 * std), -mean / std))

    def batches(self, start: int, end: int) -> Iterator[HostBatch]:
        """The steps from `start` to before `end`. For a GPU, the next one is gathered while one is computed."""
        batches = self._gathered(start, end)
        return batches if self._device.type == "cpu" else ahead(batches)  # on the CPU gathering takes microseconds

    def part(self, batch: HostBatch, index: int) -> Batch:
        """One of this rank's micro-batches, ready to compute with."""
        part = slice(index * self._chunk, (index + 1) * self._chunk)
        first = (self._group.rank * self._config.accumulation + index) * self._chunk
        images, labels = batch.weights
        return self._prepared((images[part], labels[part]), batch.step, "augmentation", first, self._config.batch_size)

    def architecture(self, batch: HostBatch) -> Batch | None:
        """This rank's batch for the architecture, as large as a micro-batch, ready to compute with."""
        if batch.architecture is None:
            return None
        return self._prepared(batch.architecture, batch.step, "architecture augmentation", self._group.rank * self._chunk,
                              self._chunk * self._group.size)

    def _gathered(self, start: int, end: int) -> Iterator[HostBatch]:
        config, share = self._config, self._chunk * self._config.accumulation
        for epoch in range(start // self.steps_per_epoch, config.epochs):
            order = batch_indices(self._images, config.batch_size, epoch, config.seed)
            first = start % self.steps_per_epoch if epoch == start // self.steps_per_epoch else 0
            for step, indices in islice(enumerate(order, epoch * self.steps_per_epoch), first, None):
                if step == end:
                    return
                mine = slice(self._group.rank * share, (self._group.rank + 1) * share)
                yield HostBatch(step, self._taken(indices[mine]), self._architecture_images(step))

    def _architecture_images(self, step: int) -> Batch | None:
        """Drawn anew in each step, without repetition within it."""
        if self._architecture_step is None or step < self._architecture_step:
            return None
        rng = np.random.default_rng(stream_seed(self._config.seed, "architecture images", step))
        indices = self._images + rng.choice(self._kept, self._chunk * self._group.size, replace=False)
        return self._taken(indices[self._group.rank * self._chunk:][:self._chunk])

    def _taken(self, indices: np.ndarray) -> Batch:
        images, labels = (torch.from_numpy(each[indices]) for each in (self._train.images, self._train.labels))
        if self._device.type != "cuda":
            return images, labels
        with torch.cuda.device(self._device):  # a thread begins with the first GPU
            return images.pin_memory(), labels.pin_memory()

    def _prepared(self, batch: Batch, step: int, purpose: str, first: int, of: int) -> Batch:
        """Uploads 8-bit images, then normalises and augments them; channels last."""
        config = self._config
        images, labels = (each.to(self._device, non_blocking=True) for each in batch)
        images = images.to(torch.float32).mul_(self._scale).add_(self._offset)
        generator = torch.Generator().manual_seed(stream_seed(config.seed, purpose, step))
        images = augment_batch(images, generator, max_shift=config.max_shift, flip=config.flip, cutout=config.cutout, first=first,
                               of=of)
        return images.contiguous(memory_format=torch.channels_last), labels


def ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The same items, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1, "batches") as executor:
        following = executor.submit(next, items, None)
        while (item := following.result()) is not None:
            following = executor.submit(next, items, None)
            yield item
