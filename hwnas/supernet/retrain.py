"""Training one network, from scratch or from the weights it inherits; the same loop and the same resume as a supernet.

A teacher may help (Hinton et al., arXiv 1503.02531): any classifier, among them the largest network of a supernet,
`recalibrated(supernet, largest_network(supernet.space), dataset)`.
"""

import copy
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hwnas.data import Dataset
from hwnas.errors import InputError
from hwnas.ir.network import Network
from hwnas.lower.torch import NetworkModule, to_torch
from hwnas.lower.weights import Weights, check_weights
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.distill import Distillation
from hwnas.supernet.evaluate import check_dataset, fit_images
from hwnas.supernet.loop import ProgressCallback, Task
from hwnas.supernet.precision import LossScale
from hwnas.supernet.run import Run, TrainResult, data_identity, read_run_weights
from hwnas.supernet.streams import stream_seed
from hwnas.supernet.supernet import module_device

_KIND = "network"


def train_network(network: Network, dataset: Dataset, output_dir: str | os.PathLike[str], config: LoopConfig, *,
                  weights: Weights | None = None, teacher: nn.Module | None = None, distillation: Distillation | None = None,
                  header: Mapping[str, Any] | None = None, overwrite: bool = False, progress: ProgressCallback | None = None
                  ) -> TrainResult:
    """Trains a network into a folder; a folder with an unfinished run is continued, a finished one is reported.

    Leaves `network.safetensors`, whose keys are those of `network.weight_shapes`, and `network.json`.

    Args:
        network: Ends in a classifier with an output for each class. Larger images are resized to its resolution.
        dataset: Its training images are used, no others.
        output_dir: The run's folder.
        config: How to train.
        weights: Where to start; None draws weights from the seed.
        teacher: From normalised images (N, C, H, W) to logits (N, classes), to learn from beside the labels; it sees the
            same augmented images, a `NetworkModule` at its own resolution. A copy is used, in evaluation mode.
        distillation: How to learn from the teacher; None for the defaults.
        header: What else `network.json` should tell the next stage, JSON-able.
        overwrite: Delete an earlier run in that folder first.
        progress: Told about every step.

    Raises:
        InputError: Network, weights, teacher and dataset do not fit, there is a distillation but no teacher, or the folder
            holds another run or damaged files.
        UnavailableError: The device is not usable here.
        VerificationError: The loss or the weights are no longer finite.
        KeyboardInterrupt: Passed on, after a checkpoint was written.
    """
    _check_images(dataset, network)
    if isinstance(teacher, NetworkModule):
        _check_images(dataset, teacher.network)
    if teacher is None and distillation is not None:
        raise InputError("A distillation needs a teacher, but none is given: give one, or leave the distillation out.")
    module = to_torch(network, weights, stream_seed(config.seed, "network", 0))
    identity = {"network_sha256": network_hash(network), "initial_weights_sha256": weights and _weights_hash(weights),
                "distillation": _distillation_identity(teacher, distillation or Distillation()),
                "data": data_identity(dataset), "config": config.identity()}
    run = Run(Path(output_dir), _KIND, identity, dict(header or {}))
    task = network_task(module, config.label_smoothing, teacher, distillation)
    return run.execute(task, dataset, config, overwrite, progress)


def network_task(module: NetworkModule, label_smoothing: float, teacher: nn.Module | None = None,
                 distillation: Distillation | None = None) -> Task:
    """The loss of a step: cross-entropy with the labels, and with what a teacher makes of the images if there is one."""
    teach = None if teacher is None else _Teacher(teacher)
    how = distillation or Distillation()
    scale = LossScale()

    def backward(step: int, images: Tensor, labels: Tensor) -> Tensor:
        logits = module(fit_images(images, module.network.input_shape))
        loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        if teach is not None:
            loss = how.loss(loss, logits, teach(images, logits.shape[1]))
        scale.backward(loss)
        return loss.detach()

    return Task(module, backward, lambda step: f"a network of {module.network.parameters} parameters", loss_scale=scale)


class _Teacher:
    """A copy of a classifier that only answers: the loop neither trains nor stores it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).eval()

    @torch.no_grad()
    def __call__(self, images: Tensor, classes: int) -> Tensor:
        """Logits (N, classes) for images at the dataset's resolution; follows them to their device."""
        if module_device(self.module) != images.device:
            self.module.to(images.device)
        if isinstance(self.module, NetworkModule):
            images = fit_images(images, self.module.network.input_shape)
        logits: Tensor = self.module(images)
        if logits.shape != (len(images), classes):
            raise InputError(f"A teacher must give {classes} logits for each of {len(images)} images, but gives the shape "
                             f"{tuple(logits.shape)}: choose one that was trained for these classes.")
        return logits


def load_network_weights(directory: str | os.PathLike[str], network: Network) -> dict[str, NDArray[np.float32]]:
    """Reads the weights that `train_network` left.

    Raises:
        InputError: A file is missing, truncated or edited, or the weights are of another network.
    """
    _, tensors = read_run_weights(Path(directory), _KIND)
    weights = {name: tensor.to(torch.float32).numpy() for name, tensor in tensors.items()}
    check_weights(network, weights)
    return weights


def network_hash(network: Network) -> str:
    """SHA-256 of input shape, layers and connections."""
    return hashlib.sha256(repr((network.input_shape, network.nodes, network.output)).encode()).hexdigest()


def _check_images(dataset: Dataset, network: Network) -> None:
    """Checks that a network takes the images, resized if they are larger, and has an output for each class."""
    channels, height, width = network.input_shape
    is_smaller = height <= dataset.input_shape[1] and width <= dataset.input_shape[2]
    check_dataset(dataset, (channels, *dataset.input_shape[1:]) if is_smaller else network.input_shape,
                  network.output_shape.channels)


def _distillation_identity(teacher: nn.Module | None, distillation: Distillation) -> dict[str, Any] | None:
    """How it is taught, and SHA-256 of what a teacher answers with: its weights, and its layers where they are known."""
    if teacher is None:
        return None
    weights = {name: tensor.to("cpu", torch.float32).numpy() for name, tensor in teacher.state_dict().items()}
    network = network_hash(teacher.network) if isinstance(teacher, NetworkModule) else None
    return {**dataclasses.asdict(distillation), "teacher_network_sha256": network,
            "teacher_weights_sha256": _weights_hash(weights)}


def _weights_hash(weights: Weights) -> str:
    """SHA-256 of weights, batch norm's running statistics left out.

    Recalibrated ones follow from the other weights and the data, but for their last bits, which depend on the number of threads.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        if name.endswith((".running_mean", ".running_var")):
            continue
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name], np.float32).data)
    return digest.hexdigest()
