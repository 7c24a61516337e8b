"""Post-training calibration: the scales of a network's quantisers, from what real images make of the trained float network.

Each quantiser is looked at on its own, in the float network, so that one calibration serves every choice of which layers are
quantised: a tensor's scale is the same in all of them. Three ways to choose a scale:

- `minmax`: nothing that was seen is clipped;
- `percentile`: the largest 0.01 % of absolute values are;
- `mse`: whatever makes the mean squared error least (as in Banner et al., arXiv 1810.05723, sec. 2, but on the values
  themselves instead of a distribution fitted to them).

ONNX Runtime's calibrators know the first two; their percentile keeps every activation of every image in memory, in histograms too
coarse to count the error of 8 bits; tests compare with them. Here extremes are exact and the rest comes from a sample of values.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import InputError, VerificationError
from hwnas.ir.layers import Conv, Quantize, Round
from hwnas.ir.network import INPUT, Network, Node
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import Weights

LEAST_IMAGES = 16
_LEAST_CORRELATION = 0.05  # of neighbouring pixels: pictures have 0.5 and more, noise has 0
_PERCENTILE = 99.99
_CANDIDATES = 100  # scales that `mse` compares
_BATCH = 64


@dataclass(frozen=True)
class Activations:
    """What a quantiser reads, over all calibration images.

    Attributes:
        lowest: Exact.
        highest: Exact.
        sample: Some of the values, float32 (S,); all of them where they are few.
    """

    lowest: float
    highest: float
    sample: NDArray[np.float32]


def calibrate(network: Network, weights: Weights, images: NDArray[np.floating], method: str = "mse", *,
              sample: int = 1 << 17, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Gives a quantised network the weights of the float one and the scales that its images call for.

    Args:
        network: With quantisers. Calibrated once with all of its layers in few bits, its weights hold for every choice of
            layers: take those that such a network's `weight_shapes` name.
        weights: Of the same network in full precision (`float_network`), batch-norm statistics included: recalibrate those
            first where they are to be.
        images: Normalised as in training, (N, C, H, W), of the data that the network is for: a few hundred.
        method: A key of `METHODS`.
        sample: Values that are kept of each tensor, about.
        seed: Chooses them.

    Returns:
        float32 arrays with the keys of `network.weight_shapes`.

    Raises:
        InputError: There are no images or too few, they are noise, do not fit or are not finite; the weights are not of the
            float network; or there is no such method.
        VerificationError: The network's activations are not finite.
    """
    if method not in METHODS:
        raise InputError(f"The calibration method must be one of {', '.join(METHODS)}, but is {method!r}.")
    activations = observe(network, weights, images, sample=sample, seed=seed)
    return scaled(network, weights, activations, method)


def scaled(network: Network, weights: Weights, activations: Mapping[str, Activations], method: str
           ) -> dict[str, NDArray[np.float32]]:
    """`calibrate` from what `observe` found, so that methods can be compared on one look at the images."""
    choose = METHODS[method]
    scales = {f"{node.name}.scale": np.array([choose(node.layer, activations[node.name])], np.float32)
              for node in network.nodes if isinstance(node.layer, Quantize)}
    return {name: np.asarray(weights[name], np.float32) for name in float_network(network).weight_shapes} | scales


def observe(network: Network, weights: Weights, images: NDArray[np.floating], *, sample: int = 1 << 17, seed: int = 0
            ) -> dict[str, Activations]:
    """What each quantiser of a network would read if nothing were quantised, by the quantiser's name.

    Args and errors as those of `calibrate`.
    """
    _check_images(network, images)
    plain = float_network(network)
    module = to_torch(plain, weights).eval()
    sources = _sources(network)
    watched = set(sources.values())
    watches = {name: _Watch(len(images), sample, np.random.default_rng([seed, zlib.crc32(name.encode())])) for name in watched}
    for name, watch in watches.items():
        if name != INPUT:
            module.get_submodule(name).register_forward_hook(watch.look)
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[start:start + _BATCH], np.float32))
            if INPUT in watches:
                watches[INPUT].add(batch)
            module(batch.contiguous(memory_format=torch.channels_last))
    found = {name: watch.result(name) for name, watch in watches.items()}
    return {quantizer: found[source] for quantizer, source in sources.items()}


def float_network(network: Network) -> Network:
    """The same network in full precision: no quantisers, no rounding, float weights; node names stay."""
    aliases: dict[str, str] = {}
    nodes = []
    for node in network.nodes:
        inputs = tuple(aliases.get(name, name) for name in node.inputs)
        if isinstance(node.layer, Quantize | Round):
            aliases[node.name] = inputs[0]
            continue
        layer = node.layer
        if isinstance(layer, Conv):
            layer = dataclasses.replace(layer, weight_format="fp32")
        nodes.append(Node(node.name, layer, inputs, node.input_shapes, node.shape))
    return Network(network.input_shape, tuple(nodes), aliases.get(network.output, network.output))


def minmax_scale(layer: Quantize, activations: Activations) -> float:
    """The smallest scale that clips nothing; where there is nothing but zeros, any will do."""
    reach = max(activations.highest / layer.highest, 0.0)
    if layer.signed:
        reach = max(reach, activations.lowest / layer.lowest)
    return reach or 1 / layer.highest


def percentile_scale(layer: Quantize, activations: Activations) -> float:
    """Clips what is farther from 0 than 99.99 % of all values."""
    inside = float(np.percentile(np.abs(activations.sample), _PERCENTILE))
    return min(inside / layer.highest, minmax_scale(layer, activations)) or minmax_scale(layer, activations)


def mse_scale(layer: Quantize, activations: Activations) -> float:
    """The scale of least mean squared error, among even shares of the one that clips nothing."""
    values = activations.sample.astype(np.float64)
    largest = minmax_scale(layer, activations)
    scales = largest * np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    return float(min(scales, key=lambda scale: _squared_error(values, layer, scale)))


METHODS: Mapping[str, Callable[[Quantize, Activations], float]] = {
    "minmax": minmax_scale, "percentile": percentile_scale, "mse": mse_scale}
"""How a scale follows from activations."""


def _squared_error(values: NDArray[np.float64], layer: Quantize, scale: float) -> float:
    multiples = np.clip(np.rint(values / scale), layer.lowest, layer.highest)
    if layer.signed and layer.bits == 1:
        multiples = np.where(values < 0, -1.0, 1.0)
    return float(np.square(multiples * scale - values).sum())


def _sources(network: Network) -> dict[str, str]:
    """Quantiser to the node of the float network whose output it reads."""
    found: dict[str, str] = {}
    for node in network.nodes:
        if isinstance(node.layer, Quantize | Round):
            found[node.name] = found.get(node.inputs[0], node.inputs[0])
    return {node.name: found[node.name] for node in network.nodes if isinstance(node.layer, Quantize)}


class _Watch:
    """Follows one tensor from batch to batch: its extremes, and an even share of random values of every image."""

    def __init__(self, images: int, sample: int, generator: np.random.Generator) -> None:
        self._per_image = -(-sample // images)
        self._generator = generator
        self._lowest, self._highest = np.inf, -np.inf
        self._values: list[NDArray[np.float32]] = []

    def look(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.add(output)

    def add(self, tensor: Tensor) -> None:
        low, high = (float(each) for each in torch.aminmax(tensor))
        self._lowest, self._highest = min(self._lowest, low), max(self._highest, high)
        rows = tensor.flatten(1)
        size = rows.shape[1]
        if size > self._per_image:
            columns = self._generator.integers(0, size, (len(rows), self._per_image))
            rows = rows.gather(1, torch.from_numpy(columns))
        self._values.append(rows.flatten().numpy().copy())

    def result(self, name: str) -> Activations:
        if not np.isfinite([self._lowest, self._highest]).all():
            raise VerificationError(f"Activations must be finite, but those of {name!r} reach {self._lowest:g} to "
                                    f"{self._highest:g}: train again with a lower learning rate.")
        return Activations(self._lowest, self._highest, np.concatenate(self._values))


def _check_images(network: Network, images: NDArray[np.floating]) -> None:
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[1:] != tuple(network.input_shape) or (
            images.dtype.kind != "f"):
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise InputError(f"Calibration needs normalised images of the data that the network is for, float (N, "
                         f"{', '.join(map(str, network.input_shape))}), but got {found}: give training images.")
    if len(images) < LEAST_IMAGES:
        raise InputError(f"Calibration needs at least {LEAST_IMAGES} images of the data that the network is for, but got "
                         f"{len(images)}: give some hundred training images.")
    if not np.isfinite(images).all():
        raise InputError("Calibration images must be finite, but some hold NaN or infinity: check how they are normalised.")
    if (images == images[:1]).all():
        raise InputError("Calibration needs different images, but all of them are the same: give training images.")
    related = max(_correlations(images), default=1.0)
    if not related > _LEAST_CORRELATION:
        raise InputError(f"Calibration needs real images, but in these neighbouring pixels have nothing in common (correlation "
                         f"{related:.2f}), as in random noise: give training images.")


def _correlations(images: NDArray[np.floating]) -> Iterator[float]:
    """Of each pixel with its right and its lower neighbour."""
    centred = images - images.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    for first, second in ((centred[:, :, :, :-1], centred[:, :, :, 1:]), (centred[:, :, :-1], centred[:, :, 1:])):
        if first.size:
            scatter = float(np.sqrt(np.square(first).sum() * np.square(second).sum()))
            yield float((first * second).sum()) / scatter if scatter else 0.0
