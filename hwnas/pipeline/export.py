"""Exports an architecture: weights from a supernet (inherited and recalibrated) or random ones, real images for parity."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hwnas.data import Dataset
from hwnas.export.artifact import Artifact, export_network
from hwnas.ir.architecture import Architecture
from hwnas.ir.network import Network
from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.latency.table import LatencyTable, Prediction
from hwnas.lower.weights import random_weights
from hwnas.pipeline.search import load_training_data
from hwnas.spaces.reference import ReferenceNetwork
from hwnas.supernet.evaluate import evaluate_module, fit_images, inherited_weights, recalibrated
from hwnas.supernet.run import require_same_data
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.train import load_supernet

GOLDEN_IMAGES = 8


def preprocessing(dataset: Dataset, network: Network) -> dict[str, object]:
    """What an image must go through before the network sees it, for the manifest."""
    channels, height, width = network.input_shape
    return {"size": (height, width), "channels": {1: "L", 3: "RGB"}.get(channels, f"{channels} channels"),
            "mean": dataset.mean, "std": dataset.std}


def export_from_supernet(supernet_dir: str | os.PathLike[str], architecture: Architecture, output: str | os.PathLike[str], *,
                         dataset: Dataset | None = None, budget_ms: float | None = None, prediction: Prediction | None = None,
                         calibration_images: int = 1024, batch_size: int = 1, overwrite: bool = False) -> Artifact:
    """Exports a path of a trained supernet with the weights that the search scored it with.

    The accuracy in the manifest is on the test set, which neither training nor search has seen.

    Raises:
        InputError: Architecture, supernet or data do not fit, or the folder exists.
        VerificationError: The ONNX model and PyTorch disagree, or outputs are not finite.
    """
    supernet, info = load_supernet(supernet_dir)
    architecture = supernet.space.check(architecture)
    dataset = dataset or load_training_data(info)
    require_same_data(info, dataset)
    weights = inherited_weights(supernet, architecture, dataset, calibration_images=calibration_images)
    accuracy = test_accuracy(supernet, [architecture], dataset, calibration_images)[0]
    network = supernet.space.network(architecture)
    images, labels = golden_images(dataset, network, max(GOLDEN_IMAGES, batch_size))
    return export_network(network, weights, output, images=images, labels=labels,
                          name=f"{supernet.space.name} {Path(output).name}", architecture=architecture,
                          preprocessing=preprocessing(dataset, network), classes=dataset.classes, accuracy=accuracy,
                          budget_ms=budget_ms, prediction=prediction, batch_size=batch_size, overwrite=overwrite)


def export_random(space: Space, seed: int, output: str | os.PathLike[str], *, table: LatencyTable | None = None,
                  budget_ms: float | None = None, batch_size: int = 1, overwrite: bool = False) -> Artifact:
    """Exports a network drawn uniformly from a space, with random weights: for a look or a benchmark.

    Raises:
        InputError: The table is of another space, or the folder exists.
    """
    architecture = Trellis(space).sample(1, seed=seed)[0]
    return _export_drawn(space.network(architecture), seed, output, f"{space.name} random {seed}", architecture, table, budget_ms,
                         batch_size, overwrite)


def export_reference(reference: ReferenceNetwork, seed: int, output: str | os.PathLike[str], *, table: LatencyTable | None = None,
                     budget_ms: float | None = None, batch_size: int = 1, overwrite: bool = False) -> Artifact:
    """Exports a published network with random weights: to time it, or to see it.

    The latency is predicted where the network is a path of the table's space.

    Raises:
        InputError: The folder exists.
    """
    path = reference.architecture() if reference.architecture else None
    fits = table is not None and path is not None and path.space_hash == table.search_space.hash
    return _export_drawn(reference.network, seed, output, reference.name, path, table if fits else None, budget_ms, batch_size,
                         overwrite)


def _export_drawn(network: Network, seed: int, output: str | os.PathLike[str], name: str, architecture: Architecture | None,
                  table: LatencyTable | None, budget_ms: float | None, batch_size: int, overwrite: bool) -> Artifact:
    images = np.random.default_rng(seed).standard_normal((max(GOLDEN_IMAGES, batch_size), *network.input_shape))
    return export_network(network, random_weights(network, seed), output, images=images.astype(np.float32), name=name,
                          architecture=architecture, budget_ms=budget_ms, batch_size=batch_size, overwrite=overwrite,
                          prediction=table.predict(architecture) if table and architecture else None)


def golden_images(dataset: Dataset, network: Network, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first test images, normalised and at the network's resolution: (N, C, H, W), and their labels."""
    images = torch.from_numpy(dataset.normalise(dataset.test.images[:count]))
    return fit_images(images, network.input_shape).numpy(), dataset.test.labels[:count]


def test_accuracy(supernet: Supernet, architectures: Sequence[Architecture], dataset: Dataset,
                  calibration_images: int = 1024) -> list[float]:
    """Top-1 on the test set with inherited, recalibrated weights."""
    return [evaluate_module(recalibrated(supernet, one, dataset, calibration_images=calibration_images), dataset,
                            dataset.test.images, dataset.test.labels) for one in architectures]
