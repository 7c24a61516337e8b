"""Scoring: how accurate a network is with the weights it inherits from the supernet.

The score of an architecture is a pure function of (weights, data, architecture): each question works on a network of its
own, extracted and recalibrated, so neither the supernet nor the next candidate's score changes. All candidates meet the
same images; the test set is never read.

Batch norm is recalibrated on training images (Guo et al., arXiv 1904.00420, sec. 3.4), or uses the statistics of the
validation images that it computes at once (Bender et al., ICML 2018). The second needs no pass over training images, but an
image's answer then depends on those beside it, so such a score is no forecast for a network that sees one image at a time; as
the batches are always the same, it is still the same for the same architecture.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from hwnas.data import Dataset
from hwnas.errors import InputError, VerificationError
from hwnas.ir.architecture import Architecture
from hwnas.ir.shape import TensorShape
from hwnas.lower.torch import NetworkModule, get_weights
from hwnas.supernet.batchnorm import fold_batch_norm, recalibrate_batch_norm
from hwnas.supernet.supernet import Supernet, extract, module_device

_CALIBRATION_BATCH = 128
_BATCH = 64  # small enough for activations to stay near the cache: larger batches were slower on a CPU


class SupernetEvaluator:
    """Gives architectures their validation accuracy: the evaluator that a search calls.

    Every slice of a dataset holds the classes in proportion, so the first images of a set stand for the whole.

    Attributes:
        supernet: The trained supernet; never changed.
        dataset: Training images recalibrate batch norm, validation images score.
        batch_size: The most images computed at once.
    """

    def __init__(self, supernet: Supernet, dataset: Dataset, *, validation_images: int | None = None,
                 calibration_images: int = 1024, batch_size: int = _BATCH, batch_statistics: bool = False) -> None:
        """Chooses the images once for all candidates.

        Args:
            supernet: The trained supernet.
            dataset: Of the supernet's input shape.
            validation_images: How many score a candidate; None for all.
            calibration_images: The most that recalibrate batch norm; fewer are used where the statistics settle early.
            batch_size: The most images computed at once; batches are as equal in size as can be.
            batch_statistics: Batch norm uses the statistics of these batches, and no training images are read. Scores then
                depend on `batch_size`.

        Raises:
            InputError: A number is below 1, or calibration_images below 2, more validation images are asked for than there
                are, a batch whose statistics are wanted has one image, or the dataset does not fit the space.
        """
        check_dataset(dataset, supernet.space.input_shape)
        available = len(dataset.validation)
        wanted = available if validation_images is None else validation_images
        for name, value, high in (("validation_images", wanted, available), ("batch_size", batch_size, None)):
            if value < 1 or (high is not None and value > high):
                raise InputError(f"{name} must be at least 1{f' and at most {high}' if high else ''}, but is {value}.")
        _check_calibration_images(calibration_images)
        if batch_statistics and wanted // -(-wanted // batch_size) < 2:
            short = "validation_images" if wanted == 1 else "batch_size"
            raise InputError(f"Batch statistics need at least 2 images in every batch, but {wanted} validation images in batches "
                             f"of at most {batch_size} leave one alone: raise {short}.")
        self.supernet = supernet
        self.dataset = dataset
        self._batch_statistics = batch_statistics
        self._validation_images = wanted
        self._calibration_images = calibration_images
        self.batch_size = batch_size

    def __call__(self, architectures: Sequence[Architecture]) -> list[float]:
        """Top-1 accuracy of each, from 0 to 1.

        Raises:
            InputError: An architecture is not of the supernet's space.
            VerificationError: A network's outputs are not finite.
        """
        return [self._score(architecture) for architecture in architectures]

    def _score(self, architecture: Architecture) -> float:
        if self._batch_statistics:
            module = extract(self.supernet, architecture).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            _forget_statistics(module)
        else:
            module = recalibrated(self.supernet, architecture, self.dataset, calibration_images=self._calibration_images)
            fold_batch_norm(module)
        split, count = self.dataset.validation, self._validation_images
        try:
            return evaluate_module(module, self.dataset, split.images[:count], split.labels[:count], self.batch_size)
        except VerificationError as error:
            raise VerificationError(f"Architecture {architecture}: {error}") from None


def evaluate_module(module: nn.Module, dataset: Dataset, images: NDArray[np.uint8], labels: NDArray[np.int64],
                    batch_size: int = _BATCH) -> float:
    """Top-1 accuracy of a network, from 0 to 1; the network is left as it was.

    Args:
        module: From normalised images (N, C, H, W) to logits (N, classes). A `NetworkModule` gets them at its own resolution.
        dataset: Whose statistics normalise the images.
        images: (N, C, H, W).
        labels: (N,).
        batch_size: The most images computed at once; batches are as equal in size as can be.

    Raises:
        VerificationError: Outputs are not finite.
    """
    modes = {each: each.training for each in module.modules()}
    device = module_device(module)
    correct = torch.zeros((), dtype=torch.long, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    module.eval()
    try:
        with torch.inference_mode():
            for part, answers in zip(_parts(images, batch_size), _parts(labels, batch_size), strict=True):
                logits = module(_batch(dataset, part, device, module))
                target = torch.from_numpy(answers).to(device)
                correct += (logits.argmax(1) == target).sum()
                finite &= logits.isfinite().all()
    finally:
        for each, mode in modes.items():
            each.training = mode
    if not finite:
        raise VerificationError("A network's outputs must be finite, but it gives NaN or infinity on validation images: train "
                                "again with a lower learning rate.")
    return int(correct) / len(images)


def recalibrated(supernet: Supernet, architecture: Architecture, dataset: Dataset, *,
                 calibration_images: int = 1024) -> NetworkModule:
    """Extracts a network and recomputes its batch-norm statistics on the first training images.

    Raises:
        InputError: The architecture is not of the supernet's space, or calibration_images is below 2.
    """
    _check_calibration_images(calibration_images)
    module = extract(supernet, architecture).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    device = module_device(module)
    parts = _parts(dataset.train.images[:calibration_images], _CALIBRATION_BATCH)
    recalibrate_batch_norm(module, (_batch(dataset, part, device, module) for part in parts))
    return module


def inherited_weights(supernet: Supernet, architecture: Architecture, dataset: Dataset, *,
                      calibration_images: int = 1024) -> dict[str, NDArray[np.float32]]:
    """An architecture's weights, batch norm recalibrated: what is exported, where retraining starts, and, but for scores by
    batch statistics, what the evaluator scored.

    Raises:
        InputError: The architecture is not of the supernet's space.
    """
    return get_weights(recalibrated(supernet, architecture, dataset, calibration_images=calibration_images))


def check_dataset(dataset: Dataset, input_shape: Sequence[int], classes: int | None = None) -> None:
    """Checks that images and labels fit a network.

    Raises:
        InputError: The shapes, or the numbers of classes, differ.
    """
    if tuple(dataset.input_shape) != tuple(input_shape):
        shapes = ["x".join(map(str, shape)) for shape in (input_shape, dataset.input_shape)]
        raise InputError(f"The images must have the network's input shape {shapes[0]}, but those of {dataset.name} are "
                         f"{shapes[1]}: load them with that size and number of channels, or change the space.")
    if classes is not None and dataset.num_classes != classes:
        raise InputError(f"The network must have an output for each class, but has {classes} and {dataset.name} has "
                         f"{dataset.num_classes} classes: change the space's classifier or the dataset.")


def fit_images(images: Tensor, shape: TensorShape) -> Tensor:
    """Images (N, C, H, W) at a network's resolution, as a searched resolution is made in the supernet (`layers.Resize`)."""
    if images.shape[2:] == shape[1:]:
        return images
    return functional.interpolate(images, shape[1:], mode="bilinear", align_corners=False)


def _forget_statistics(module: nn.Module) -> None:
    """Makes batch norms use the statistics of what they get."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.running_mean = norm.running_var = None


def _check_calibration_images(number: int) -> None:
    if number < 2:  # one has no variance
        raise InputError(f"calibration_images must be at least 2, but is {number}.")


def _parts(array: NDArray[Any], size: int) -> list[NDArray[Any]]:
    """As few parts of at most this size as can be, and as equal in size as can be: none counts for more than it should."""
    parts: list[NDArray[Any]] = np.array_split(array, -(-len(array) // size))
    return parts


def _batch(dataset: Dataset, images: NDArray[np.uint8], device: torch.device, module: nn.Module) -> Tensor:
    """Normalised images at a network's resolution, channels last."""
    batch = torch.from_numpy(dataset.normalise(images)).to(device)
    if isinstance(module, NetworkModule):
        batch = fit_images(batch, module.network.input_shape)
    return batch.contiguous(memory_format=torch.channels_last)
