"""Weights as plain arrays: `{node}.{parameter}` to float array, in PyTorch's layout. What training leaves and export takes.

Random weights stand in where only the work matters (profiling) and where numbers must be compared (parity tests), so they
keep activations of order 1 at any depth, and their batch-norm statistics are not trivial.
"""

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InputError
from hwnas.ir.layers import Activation, Add, BatchNorm, Concat, Conv, Layer, Linear, Multiply, Quantize
from hwnas.ir.network import INPUT, Network, Node

Weights = Mapping[str, NDArray[np.floating]]


def random_weights(network: Network, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Draws weights under which every activation is of order 1.

    He et al. (arXiv 1502.01852, sec. 2.2) keep the mean square of activations from layer to layer for chains of
    convolutions and ReLU; here it is followed through every kind of layer, so that linear bottlenecks, residual sums and
    channel gates neither swell nor die out.

    Args:
        network: What the weights are for.
        seed: Any whole number of at least 0. A node's draws depend on it and on the node's name alone, not on the order.

    Returns:
        float32 arrays with the keys and shapes of `network.weight_shapes`.
    """
    power = {INPUT: 1.0}  # mean square of each node's output
    weights: dict[str, NDArray[np.float32]] = {}
    for node in network.nodes:
        sources = [power[name] for name in node.inputs]
        power[node.name] = _output_power(node, sources)
        shapes = node.parameters | node.buffers
        if shapes:
            rng = np.random.default_rng([seed, zlib.crc32(node.name.encode())])
            weights |= {f"{node.name}.{name}": _draw(rng, node.layer, name, shape, sources[0]) for name, shape in shapes.items()}
    return weights


def check_weights(network: Network, weights: Weights) -> None:
    """Checks that weights belong to a network and can be computed with.

    Raises:
        InputError: Naming the first array that is missing, not of this network, mis-shaped, or not finite.
    """
    shapes = network.weight_shapes
    scales = {f"{node.name}.scale" for node in network.nodes if isinstance(node.layer, Quantize)}
    for name, shape in shapes.items():
        if name not in weights:
            raise InputError(f"The weights must hold every array of the network, but {name!r} is missing: "
                             "use the weights that were saved for this architecture.")
        array = np.asarray(weights[name])
        if array.shape != shape:
            raise InputError(f"The weights must have the network's shapes, but {name!r} is {array.shape} instead of {shape}: "
                             "use the weights that were saved for this architecture.")
        if array.dtype.kind != "f":
            raise InputError(f"Weights must be floating-point arrays, but {name!r} is {array.dtype}: convert it to float32.")
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(np.float32, copy=False)).all()
        if not finite:
            raise InputError(f"Weights must be finite in float32, but {name!r} holds NaN or infinity: "
                             "training diverged; train again with a lower learning rate.")
        if name in scales and (array == 0).any():
            raise InputError(f"A quantiser's scale must not be 0, but {name!r} is: calibrate it, or train again with a lower "
                             "learning rate.")
        if name.endswith(".running_var") and (array < 0).any():
            raise InputError(f"A variance must not be negative, but {name!r} goes down to {array.min()}: "
                             "use the weights as training left them.")
    unexpected = [name for name in weights if name not in shapes]
    if unexpected:
        raise InputError(f"The weights must be of this network alone, but it has no array {unexpected[0]!r}: "
                         "use the weights that were saved for this architecture.")


def initial_scale(quantizer: Quantize, power: float = 1.0) -> float:
    """A quantiser's scale, as good as can be without seeing data: its multiples reach three standard deviations.

    Args:
        quantizer: The layer. An unsigned one is taken to read the positive half of a bell curve, as a ReLU leaves it.
        power: Mean square of its input.
    """
    deviation = power**0.5 if quantizer.signed else (2 * power) ** 0.5
    return 3 * deviation / (quantizer.highest + 1)


def _draw(rng: np.random.Generator, layer: Layer, name: str, shape: tuple[int, ...], input_power: float) -> NDArray[np.float32]:
    if isinstance(layer, Quantize):
        return (initial_scale(layer, input_power) * rng.uniform(0.75, 1.25, shape)).astype(np.float32)
    if name == "weight" and len(shape) > 1:  # a convolution or linear layer: output of mean square 1
        fan_in = int(np.prod(shape[1:]))
        return rng.standard_normal(shape, np.float32) * np.float32((fan_in * input_power) ** -0.5)
    if name in ("weight", "running_var"):  # of a batch norm
        return rng.uniform(0.75, 1.25, shape).astype(np.float32)
    return rng.normal(0, 0.3, shape).astype(np.float32)


def _output_power(node: Node, sources: list[float]) -> float:
    match node.layer:
        case Conv() | Linear() | BatchNorm():
            return 1.0
        case Activation():  # exact for ReLU, the most for any other: what dies out there, the random biases make up for
            return sources[0] / 2
        case Add():
            return sum(sources)
        case Multiply():
            return sources[0] * sources[1]
        case Concat():
            return max(sources)
        case _:
            return sources[0]
