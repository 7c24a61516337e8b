"""Exports an architecture: weights from a supernet (inherited and recalibrated) or random ones, real images for parity."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwnas.data import Dataset
from hwnas.errors import InputError
from hwnas.export.artifact import Artifact, export_network
from hwnas.export.formats import FormatOptions
from hwnas.ir.architecture import Architecture
from hwnas.ir.network import Network
from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.latency.seams import LatencyModel
from hwnas.latency.table import Prediction
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import Weights, random_weights
from hwnas.pipeline.precision import calibrate_precisions, precision_space, uniform_precision, weights_of
from hwnas.pipeline.retrain import network_accuracy, read_retrained
from hwnas.pipeline.search import load_training_data
from hwnas.spaces.reference import ReferenceNetwork
from hwnas.supernet.evaluate import evaluate_module, fit_images, inherited_weights, recalibrated
from hwnas.supernet.retrain import load_network_weights
from hwnas.supernet.run import require_same_data
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.train import load_supernet

GOLDEN_IMAGES = 8
TESTED_IMAGES = 256  # on which the accuracy of a model is compared with PyTorch's


@dataclass(frozen=True)
class Exportable:
    """A network with weights, and all that its artefacts say of it; each of them is made by `export`.

    Attributes:
        network: The network.
        weights: Its arrays.
        name: What its artefacts are called.
        architecture: Where it stands in its space, if it has one.
        prediction: Its predicted latency.
        dataset: Where its images are from; None for a network that was never trained, which gets noise.
        accuracy: On the dataset's test set.
        space: That of the architecture.
    """

    network: Network
    weights: Weights = field(repr=False)
    name: str
    architecture: Architecture | None
    prediction: Prediction | None
    dataset: Dataset | None = None
    accuracy: float | None = None
    space: Space | None = None

    def in_int8(self, calibration_images: int = 512) -> "Exportable":
        """The same network with int8 weights and activations in every layer with convolutions, calibrated on training images.

        Its accuracy is measured again; its latency is another, so there is no prediction.

        Raises:
            InputError: There are no real images to calibrate on, or the network is of cells or has few bits already.
        """
        if self.dataset is None or self.architecture is None or self.space is None:
            raise InputError("int8 is calibrated on real images, but a network of random weights was trained on none: export one "
                             "with --architecture and --weights.")
        precisions = precision_space(self.space, self.architecture, ("int8",))
        chosen = uniform_precision(precisions, "int8")
        network = precisions.network(chosen)
        weights = weights_of(network, calibrate_precisions(precisions, self.weights, self.dataset, images=calibration_images))
        test = self.dataset.test
        accuracy = evaluate_module(to_torch(network, weights).eval(), self.dataset, test.images, test.labels)
        return replace(self, network=network, weights=weights, name=f"{self.name} int8", architecture=chosen, prediction=None,
                       accuracy=accuracy, space=precisions)

    def export(self, output: str | os.PathLike[str], options: FormatOptions | None = None, *, budget_ms: float | None = None,
               batch_size: int = 1, overwrite: bool = False) -> Artifact:
        """Makes an artefact.

        Raises:
            InputError: The format does not take the network, or the folder exists.
            UnavailableError: The format's runtime is missing.
            VerificationError: The model and PyTorch disagree, or outputs are not finite.
        """
        options = options or FormatOptions()
        return export_network(self.network, self.weights, output, name=self.name, architecture=self.architecture,
                              accuracy=self.accuracy, budget_ms=budget_ms, prediction=self.prediction, batch_size=batch_size,
                              options=options, overwrite=overwrite, **self._data(options, max(GOLDEN_IMAGES, batch_size)))

    def _data(self, options: FormatOptions, count: int) -> Mapping[str, Any]:
        if self.dataset is None:
            if options.include_preprocessing:
                raise InputError("Pre-processing goes into a model as the mean and standard deviation of its data, but a network "
                                 "of random weights has none: leave --include-preprocessing out.")
            noise = np.random.default_rng(0).standard_normal((count, *self.network.input_shape))
            return {"images": noise.astype(np.float32)}
        images, labels = golden_images(self.dataset, self.network, max(count, TESTED_IMAGES), options.include_preprocessing)
        return {"images": images[:count], "labels": labels[:count], "tested": (images, labels), "classes": self.dataset.classes,
                "preprocessing": preprocessing(self.dataset, self.network)}


def supernet_path(supernet_dir: str | os.PathLike[str], architecture: Architecture, *, name: str = "",
                  dataset: Dataset | None = None, prediction: Prediction | None = None,
                  calibration_images: int = 1024) -> Exportable:
    """A path of a trained supernet with its weights, batch norm recalibrated: but for scores by batch statistics, those that
    the search scored it with.

    The accuracy in the manifest is on the test set, which neither training nor search has seen. The name is put after that of
    the space.

    Raises:
        InputError: Architecture, supernet or data do not fit.
    """
    supernet, info = load_supernet(supernet_dir)
    architecture = supernet.space.check(architecture)
    dataset = dataset or load_training_data(info)
    require_same_data(info, dataset)
    weights = inherited_weights(supernet, architecture, dataset, calibration_images=calibration_images)
    accuracy = test_accuracy(supernet, [architecture], dataset, calibration_images)[0]
    return Exportable(supernet.space.network(architecture), weights, f"{supernet.space.name} {name}".strip(), architecture,
                      prediction, dataset, accuracy, supernet.space)


def retrained_network(directory: str | os.PathLike[str], architecture: Architecture | None = None, *, name: str = "",
                      dataset: Dataset | None = None, prediction: Prediction | None = None) -> Exportable:
    """A network that `retrain` left, with the accuracy on its test set.

    Args:
        directory: Its folder.
        architecture: Which network it should be; None for whatever it is.
        name: Put after that of the space.
        dataset: Its data, if they are loaded already.
        prediction: Its predicted latency.

    Raises:
        InputError: There is no finished network, it is another one, or the data are no longer those it was trained on.
    """
    found, space, document = read_retrained(directory)
    if architecture is not None and space.check(architecture) != found:
        raise InputError(f"The weights must be those of the architecture, but {directory} holds the network {found}: give its "
                         "own architecture file, or the supernet's folder.")
    dataset = dataset or load_training_data(document)
    require_same_data(document, dataset)
    network = space.network(found)
    return Exportable(network, load_network_weights(directory, network), f"{space.name} {name}".strip(), found, prediction,
                      dataset, network_accuracy(network, directory, dataset), space)


def random_network(space: Space, seed: int, table: LatencyModel | None = None) -> Exportable:
    """A network drawn uniformly from a space, with random weights: for a look or a benchmark.

    Raises:
        InputError: The table is of another space.
    """
    architecture = Trellis(space).sample(1, seed=seed)[0]
    return _drawn(space.network(architecture), seed, f"{space.name} random {seed}", architecture, table)


def reference_network(reference: ReferenceNetwork, seed: int = 0, table: LatencyModel | None = None) -> Exportable:
    """A published network with random weights: to time it, or to see it.

    The latency is predicted where the network is a path of the table's space.
    """
    path = reference.architecture() if reference.architecture else None
    fits = table is not None and path is not None and path.space_hash == table.search_space.hash
    return _drawn(reference.network, seed, reference.name, path, table if fits else None)


def _drawn(network: Network, seed: int, name: str, architecture: Architecture | None, table: LatencyModel | None) -> Exportable:
    return Exportable(network, random_weights(network, seed), name, architecture,
                      table.predict(architecture) if table and architecture else None)


def export_from_supernet(supernet_dir: str | os.PathLike[str], architecture: Architecture, output: str | os.PathLike[str], *,
                         dataset: Dataset | None = None, budget_ms: float | None = None, prediction: Prediction | None = None,
                         calibration_images: int = 1024, batch_size: int = 1, options: FormatOptions | None = None,
                         overwrite: bool = False) -> Artifact:
    """Makes one artefact of a path of a supernet; see `supernet_path` and `Exportable.export`."""
    found = supernet_path(supernet_dir, architecture, name=Path(output).name, dataset=dataset, prediction=prediction,
                          calibration_images=calibration_images)
    return found.export(output, options, budget_ms=budget_ms, batch_size=batch_size, overwrite=overwrite)


def export_random(space: Space, seed: int, output: str | os.PathLike[str], *, table: LatencyModel | None = None,
                  budget_ms: float | None = None, batch_size: int = 1, overwrite: bool = False) -> Artifact:
    """Makes an ONNX artefact of a random network; see `random_network`."""
    return random_network(space, seed, table).export(output, budget_ms=budget_ms, batch_size=batch_size, overwrite=overwrite)


def preprocessing(dataset: Dataset, network: Network) -> dict[str, object]:
    """What an image must go through before the network sees it, for the manifest."""
    channels, height, width = network.input_shape
    return {"size": (height, width), "channels": {1: "L", 3: "RGB"}.get(channels, f"{channels} channels"),
            "mean": dataset.mean, "std": dataset.std}


def golden_images(dataset: Dataset, network: Network, count: int, pixels: bool = False
                  ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first test images at the network's resolution, (N, C, H, W), and their labels.

    Args:
        dataset: Where they are from.
        network: What they are for.
        count: How many, if there are so many.
        pixels: As pixel values from 0 to 255, not normalised.
    """
    chosen = dataset.test.images[:count]
    images = torch.from_numpy(chosen.astype(np.float32) if pixels else dataset.normalise(chosen))
    return fit_images(images, network.input_shape).numpy(), dataset.test.labels[:count]


def test_accuracy(supernet: Supernet, architectures: Sequence[Architecture], dataset: Dataset,
                  calibration_images: int = 1024) -> list[float]:
    """Top-1 on the test set with inherited, recalibrated weights."""
    return [evaluate_module(recalibrated(supernet, one, dataset, calibration_images=calibration_images), dataset,
                            dataset.test.images, dataset.test.labels) for one in architectures]
