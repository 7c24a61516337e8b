"""Training one network, from scratch or from the weights it inherits; the same loop and the same resume as a supernet."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hwnas.data import Dataset
from hwnas.ir.network import Network
from hwnas.lower.torch import NetworkModule, to_torch
from hwnas.lower.weights import Weights, check_weights
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.evaluate import check_dataset, fit_images
from hwnas.supernet.loop import ProgressCallback, Task
from hwnas.supernet.run import Run, TrainResult, data_identity, read_run_weights
from hwnas.supernet.streams import stream_seed

_KIND = "network"


def train_network(network: Network, dataset: Dataset, output_dir: str | os.PathLike[str], config: LoopConfig, *,
                  weights: Weights | None = None, overwrite: bool = False,
                  progress: ProgressCallback | None = None) -> TrainResult:
    """Trains a network into a folder; a folder with an unfinished run is continued, a finished one is reported.

    Leaves `network.safetensors`, whose keys are those of `network.weight_shapes`, and `network.json`.

    Args:
        network: Ends in a classifier with an output for each class. Larger images are resized to its resolution.
        dataset: Its training images are used, no others.
        output_dir: The run's folder.
        config: How to train.
        weights: Where to start; None draws weights from the seed.
        overwrite: Delete an earlier run in that folder first.
        progress: Told about every step.

    Raises:
        InputError: Network, weights and dataset do not fit, or the folder holds another run or damaged files.
        UnavailableError: The device is not usable here.
        VerificationError: The loss or the weights are no longer finite.
        KeyboardInterrupt: Passed on, after a checkpoint was written.
    """
    channels, height, width = network.input_shape
    is_smaller = height <= dataset.input_shape[1] and width <= dataset.input_shape[2]
    check_dataset(dataset, (channels, *dataset.input_shape[1:]) if is_smaller else network.input_shape,
                  network.output_shape.channels)
    module = to_torch(network, weights, stream_seed(config.seed, "network", 0))
    identity = {"network_sha256": network_hash(network), "initial_weights_sha256": weights and _weights_hash(weights),
                "data": data_identity(dataset), "config": config.identity()}
    run = Run(Path(output_dir), _KIND, identity, {})
    return run.execute(network_task(module, config.label_smoothing), dataset, config, overwrite, progress)


def network_task(module: NetworkModule, label_smoothing: float) -> Task:
    """The loss of a step: cross-entropy."""

    def backward(step: int, images: Tensor, labels: Tensor) -> Tensor:
        logits = module(fit_images(images, module.network.input_shape))
        loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        loss.backward()
        return loss.detach()

    return Task(module, backward, lambda step: f"a network of {module.network.parameters} parameters")


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


def _weights_hash(weights: Weights) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name], np.float32).data)
    return digest.hexdigest()
