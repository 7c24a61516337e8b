"""Retrains the network that was chosen: from scratch or from inherited weights, on its own or taught by a supernet."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas.data import Dataset, load_dataset
from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture, architecture_from_dict
from hwnas.ir.documents import space_from_dict
from hwnas.ir.network import Network
from hwnas.ir.steps import Space
from hwnas.lower.torch import to_torch
from hwnas.pipeline.search import load_training_data
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.distill import Distillation
from hwnas.supernet.evaluate import evaluate_module, inherited_weights, recalibrated
from hwnas.supernet.loop import ProgressCallback
from hwnas.supernet.paths import largest_network
from hwnas.supernet.retrain import load_network_weights, train_network
from hwnas.supernet.run import TrainResult, read_run_document, require_same_data
from hwnas.supernet.train import load_supernet


@dataclass(frozen=True)
class Retrained:
    """A retrained network.

    Attributes:
        result: Of the training.
        accuracy: Top-1 on the test set, which training has not seen, 0 to 1.
    """

    result: TrainResult
    accuracy: float


def retrain(architecture: Architecture, space: Space, output: str | os.PathLike[str], config: LoopConfig, *,
            data: str | None = None, weights: str | os.PathLike[str] | None = None,
            teacher: str | os.PathLike[str] | None = None, distillation: Distillation | None = None, overwrite: bool = False,
            progress: ProgressCallback | None = None) -> Retrained:
    """Trains a network of a space into a folder that an export can take its weights from.

    Args:
        architecture: Which network.
        space: Its space.
        output: The run's folder; an unfinished run is continued.
        config: How to train.
        data: A dataset, as for `hwnas train --data`; None for that of the supernet.
        weights: Folder of the supernet whose weights are inherited; None to train from scratch.
        teacher: Folder of the supernet whose largest network is learned from.
        distillation: How; None for the defaults.
        overwrite: Delete an earlier run in that folder first.
        progress: Told about every step.

    Raises:
        InputError: Architecture, supernets, data and folder do not fit together.
        UnavailableError: The device is not usable here.
        VerificationError: Training diverged.
    """
    architecture = space.check(architecture)
    dataset, source = _dataset(data, weights or teacher, config.seed)
    inherited = None
    if weights is not None:
        supernet, info = load_supernet(weights, space)
        require_same_data(info, dataset)
        inherited = inherited_weights(supernet, architecture, dataset)
    taught = None
    if teacher is not None:
        supernet, info = load_supernet(teacher)
        require_same_data(info, dataset)
        taught = recalibrated(supernet, largest_network(supernet.space), dataset)
    network = space.network(architecture)
    header = {"architecture": architecture.to_dict(), "space": space.to_dict(), "data_source": source}
    result = train_network(network, dataset, output, config, weights=inherited, teacher=taught, distillation=distillation,
                           header=header, overwrite=overwrite, progress=progress)
    return Retrained(result, network_accuracy(network, output, dataset))


def network_accuracy(network: Network, directory: str | os.PathLike[str], dataset: Dataset) -> float:
    """Top-1 on the test set of what `retrain` left, 0 to 1."""
    module = to_torch(network, load_network_weights(directory, network)).eval()
    return evaluate_module(module, dataset, dataset.test.images, dataset.test.labels)


def read_retrained(directory: str | os.PathLike[str]) -> tuple[Architecture, Space, dict[str, Any]]:
    """What a folder of `retrain` says about itself.

    Returns:
        The architecture, its space, and the document `network.json`.

    Raises:
        InputError: It is not the folder of a retrained network.
    """
    document = read_run_document(Path(directory), "network")
    if not isinstance(document.get("architecture"), dict):
        raise InputError(f"A retrained network knows its architecture, but that in {directory} does not: train it with 'hwnas "
                         "retrain'.")
    space = space_from_dict(document.get("space"))
    return space.check(architecture_from_dict(document["architecture"])), space, document


def _dataset(data: str | None, supernet: str | os.PathLike[str] | None, seed: int) -> tuple[Dataset, dict[str, Any]]:
    """The dataset, and where it comes from."""
    if data is not None:
        return load_dataset(data, seed=seed), {"spec": data, "seed": seed}
    if supernet is None:
        raise InputError("A network is trained on data: give --data, or a supernet whose data are used.")
    info = read_run_document(Path(supernet), "supernet")
    return load_training_data(info), dict(info["data_source"])
