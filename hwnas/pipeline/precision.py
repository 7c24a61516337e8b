"""Mixed precision: one trained network, a precision for each of its layers, chosen by latency and accuracy.

A layer's precision is a decision like any other, so a table is profiled, a trellis built and a front searched as for any space.
Accuracy comes from the very model that is exported, calibrated on real images and run by the target's own runtime: no
simulation of rounding takes its place.
"""

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hwnas.data.dataset import Dataset, Split
from hwnas.errors import InputError, VerificationError
from hwnas.files import read_json, write_json
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Block
from hwnas.ir.blocks import Resolution
from hwnas.ir.network import Network
from hwnas.ir.quantized import has_convolutions
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.steps import Space
from hwnas.lower.calibrate import METHODS, calibrate, float_network, observe, scaled
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import Weights
from hwnas.profiling.environment import read_processor
from hwnas.runtimes import RuntimeConfig, load_runtime
from hwnas.runtimes.base import Executable
from hwnas.spaces.bit_widths import with_precisions
from hwnas.supernet.evaluate import fit_images

_BATCH = 50


def precision_space(space: Space, architecture: Architecture, precisions: Sequence[str] = ("int8", "fp32")) -> SearchSpace:
    """The space of one network in which each layer with convolutions is a choice of precision, stem and head included.

    Args:
        space: Of layers in order.
        architecture: The network; what it skips is left out.
        precisions: Names of `spaces.bit_widths.PRECISIONS`.

    Returns:
        A space whose networks have the nodes of the architecture's network, and quantisers between them; options are called
        `k3_e6_int8`. Its name tells networks of one space apart: `NAME-HASH+int8+fp32`.

    Raises:
        InputError: The space is not one of layers in order, the architecture is not of it, the network has no convolutions or
            has few bits already, or a precision is unknown.
    """
    if not isinstance(space, SearchSpace):
        raise InputError(f"Precisions are chosen for layers in order, but {space.name!r} is a space of cells: choose another "
                         "network.")
    choices = space.check(architecture).choices
    shape = space.input_shape
    layers: list[Fixed | Decision] = []
    for name, block in space.blocks(architecture):
        if not block.is_free:
            layers.append(_layer(name, choices.get(name, block.kind), block, has_convolutions(block, shape)))
            shape = block.output_shape(shape)
        elif isinstance(block, Resolution):
            shape = block.output_shape(shape)
    if not any(isinstance(layer, Decision) for layer in layers):
        raise InputError(f"Precisions are those of convolutions, but this network of {space.name!r} has none.")
    identity = hashlib.sha256(json.dumps(dict(choices), sort_keys=True).encode()).hexdigest()[:8]
    network = space.network(architecture)
    return with_precisions(SearchSpace(f"{space.name}-{identity}", network.input_shape, tuple(layers),
                                       f"One network of {space.name}, layer by layer"), precisions)


def uniform_precision(space: SearchSpace, precision: str) -> Architecture:
    """The network of a precision space that has one precision throughout.

    Raises:
        InputError: The space does not offer it everywhere.
    """
    choices = {}
    for decision in space.decisions:
        found = [option for option in decision.options if option.endswith(f"_{precision}")]
        if len(found) != 1:
            raise InputError(f"Every layer of {space.name!r} must have the precision {precision!r}, but {decision.name!r} has "
                             f"{', '.join(decision.options)}.")
        choices[decision.name] = found[0]
    return space.architecture(choices)


def single_changes(space: SearchSpace, first: str = "fp32", second: str = "int8") -> list[Architecture]:
    """Both uniform networks, and every one that has one precision up to some layer and the other from there.

    Random networks change precision at every other layer; good ones hardly ever do. Measured beside random ones, these teach a
    table what the good ones cost.

    Raises:
        InputError: The space does not offer both precisions everywhere.
    """
    uniform = [list(uniform_precision(space, precision).choices.items()) for precision in (first, second)]
    return [space.architecture(dict(head[:count] + tail[count:]))
            for head, tail in (uniform, uniform[::-1]) for count in range(1, len(head) + 1)]


def calibrate_precisions(space: SearchSpace, weights: Weights, dataset: Dataset, *, images: int = 512, method: str = "mse",
                         precision: str = "int8") -> dict[str, NDArray[np.float32]]:
    """Weights for every network of a precision space: the float ones, and scales from the first training images.

    Raises:
        InputError: As `calibrate`, and where the dataset has other images.
    """
    calibrated = calibrate(space.network(uniform_precision(space, precision)), weights,
                           _fitted(dataset, dataset.train.images[:images], space.input_shape), method)
    return dict(weights) | calibrated


def calibrate_by_method(space: SearchSpace, weights: Weights, dataset: Dataset, images: int = 512
                        ) -> dict[str, dict[str, NDArray[np.floating]]]:
    """`calibrate_precisions` by each known method, from one look at the images.

    Raises:
        InputError: As `calibrate_precisions`.
    """
    network = space.network(uniform_precision(space, "int8"))
    activations = observe(network, weights, _fitted(dataset, dataset.train.images[:images], space.input_shape))
    return {method: dict(weights) | scaled(network, weights, activations, method) for method in METHODS}


def weights_of(network: Network, weights: Mapping[str, NDArray[np.floating]]) -> dict[str, NDArray[np.floating]]:
    """What one network takes of weights that hold for all networks of a precision space.

    Raises:
        InputError: Something is missing.
    """
    missing = [name for name in network.weight_shapes if name not in weights]
    if missing:
        raise InputError(f"The weights must hold every array of the network, but {missing[0]!r} is missing: calibrate the "
                         "network with all of its layers in int8.")
    return {name: weights[name] for name in network.weight_shapes}


def precision_model(space: SearchSpace, architecture: Architecture, weights: Weights, batch_size: int = 1) -> bytes:
    """ONNX bytes of one network of a precision space: what is measured, scored and exported."""
    network = space.network(architecture)
    return to_onnx(network, weights_of(network, weights), batch_size=batch_size).SerializeToString()


@dataclass(frozen=True)
class Evaluation:
    """What a network makes of a set of images.

    Attributes:
        correct: Which it gets right, (N,).
        predicted: The class that it gives to each, (N,).
        divergence: Mean Kullback-Leibler divergence, in nats, of its class probabilities from those of the float network.
    """

    correct: NDArray[np.bool_]
    predicted: NDArray[np.intp]
    divergence: float

    @property
    def accuracy(self) -> float:
        """Top-1, from 0 to 1."""
        return float(self.correct.mean())


class PrecisionEvaluator:
    """Scores networks of a precision space as their runtime computes them; remembers what it scored, in a folder if it has one.

    As a search's evaluator it gives the negative divergence from the float network: unlike an accuracy it tells apart networks
    that get the same images right, and small errors of layers add up in it.
    """

    def __init__(self, space: SearchSpace, weights: Weights, dataset: Dataset, split: Split, *, runtime: str = "onnxruntime-cpu",
                 config: RuntimeConfig | None = None, batch_size: int = _BATCH, scores: Path | None = None) -> None:
        """Computes what the float network makes of the images.

        Args:
            space: As `precision_space` makes it.
            weights: As `calibrate_precisions` makes them.
            dataset: Whose statistics normalise the images.
            split: The images that score: validation images while anything is still to be chosen. The network gets them at its own
                resolution.
            runtime: Name of the runtime.
            config: How it computes.
            batch_size: Images computed at once; what comes out of the integer layers does not depend on it.
            scores: Folder that keeps every score for later processes, by the content of all that it depends on.

        Raises:
            InputError: The images or the weights do not fit the space.
            UnavailableError: The runtime is not usable here.
        """
        if split.images.shape[1] != space.input_shape.channels:
            raise InputError(f"The images must have the network's number of channels, {space.input_shape.channels}, but have "
                             f"{split.images.shape[1]}: load them with that.")
        self._space, self._weights, self._dataset, self._split = space, weights, dataset, split
        self._runtime, self._config = load_runtime(runtime), config or RuntimeConfig()
        self._batch_size = min(batch_size, len(split))
        self._known: dict[Architecture, Evaluation] = {}
        network = float_network(space.network(space.any_architecture))
        model = to_onnx(network, weights_of(network, weights), batch_size=self._batch_size).SerializeToString()
        self._reference = _log_softmax(self._logits(model))
        self._scores = scores
        self._context = self._identity(model) if scores else b""

    def with_weights(self, weights: Weights) -> "PrecisionEvaluator":
        """The same with other scales; the float network, which has none, is not computed once more."""
        other = copy.copy(self)
        other._weights, other._known = weights, {}
        return other

    def __call__(self, architectures: Sequence[Architecture]) -> list[float]:
        """Negative divergences."""
        return [-self.evaluate(one).divergence for one in architectures]

    def evaluate(self, architecture: Architecture) -> Evaluation:
        """Scores one network.

        Raises:
            InputError: It is not of the space.
            VerificationError: Its outputs are not finite.
        """
        if architecture not in self._known:
            self._known[architecture] = self.evaluate_model(
                precision_model(self._space, architecture, self._weights, self._batch_size))
        return self._known[architecture]

    def evaluate_model(self, model: bytes) -> Evaluation:
        """Scores ONNX bytes of any batch size.

        Raises:
            InputError: The runtime refuses them.
            VerificationError: Outputs are not finite.
        """
        if self._scores is None:
            return self._computed(model)
        path = self._scores / f"{hashlib.sha256(self._context + model).hexdigest()}.json"
        found = self._read(path)
        if found is None:
            found = self._computed(model)
            write_json(path, {"divergence": found.divergence, "predicted": found.predicted.tolist()})
        return found

    def _computed(self, model: bytes) -> Evaluation:
        scores = _log_softmax(self._logits(model))
        divergence = (np.exp(self._reference) * (self._reference - scores)).sum(axis=1).mean()
        predicted = scores.argmax(axis=1)
        return Evaluation(predicted == self._split.labels, predicted, float(divergence))

    def _read(self, path: Path) -> Evaluation | None:
        """A score that was kept; None where there is none, or none that is whole."""
        try:
            document = read_json(path, "score")
            divergence, predicted = float(document["divergence"]), np.array(document["predicted"], np.intp)
        except (InputError, KeyError, TypeError, ValueError, OverflowError):
            return None
        if not math.isfinite(divergence) or predicted.shape != self._split.labels.shape:
            return None
        return Evaluation(predicted == self._split.labels, predicted, divergence)

    def _identity(self, reference: bytes) -> bytes:
        """All that a score depends on beside the model: images, runtime, processor and the float network."""
        digest = hashlib.sha256(np.ascontiguousarray(self._split.images).data)
        found = self._runtime.availability()
        settings = sorted(self._runtime.settings(self._config).items())
        for part in (self._dataset.mean, self._dataset.std, self._runtime.name, found.version, asdict(self._config), settings,
                     read_processor()):  # integer kernels differ by instruction set
            digest.update(repr(part).encode())
        digest.update(reference)
        return digest.digest()

    def _logits(self, model: bytes) -> NDArray[np.float64]:
        with closing(self._runtime.load(self._runtime.prepare(model, self._config), self._config)) as executable:
            logits = _run(executable, self._split.images, self._dataset, self._space.input_shape)
        if not np.isfinite(logits).all():
            raise VerificationError("A network's outputs must be finite, but it gives NaN or infinity: calibrate it again, on "
                                    "images of the data that it is for.")
        return logits


def _layer(name: str, option: str, block: Block, is_decision: bool) -> Fixed | Decision:
    return Decision(name, {option: block}) if is_decision else Fixed(name, block)


def _fitted(dataset: Dataset, images: NDArray[np.uint8], shape: TensorShape) -> NDArray[np.float32]:
    """Normalised images at a network's resolution."""
    return fit_images(torch.from_numpy(dataset.normalise(images)), shape).numpy()


def _run(executable: Executable, images: NDArray[np.uint8], dataset: Dataset, shape: TensorShape) -> NDArray[np.float64]:
    """Logits of all images, (N, classes); the last batch is filled up with zeros."""
    (given,), (made,) = executable.inputs, executable.outputs
    size = given.shape[0]
    rows = []
    for start in range(0, len(images), size):
        batch = _fitted(dataset, images[start:start + size], shape)
        padding = np.zeros((size - len(batch), *batch.shape[1:]), np.float32)
        rows.append(executable.run({given.name: np.concatenate([batch, padding])})[made.name])
    return np.concatenate(rows)[:len(images)].astype(np.float64)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
