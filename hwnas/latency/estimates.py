"""Estimates blocks that nobody has timed from those that were: how a space of thousands of blocks is profiled in minutes.

A block is made of layers, and thousands of blocks are made of far fewer layers: a convolution stands in many. So a block's
ratio to the anchor is modelled as

    intercept + sum over its layers of (cost of its multiply-accumulates, by kind + cost of moving its tensors + deviation)

A layer's deviation is made of shrunken effects (see `effects`) in three levels: other costs of multiply-accumulates, by kernel (a
runtime may lack one) and by whether channels fill the vectors that kernels work on; and, as shares of what that says, what the
layer is (kind, kernel, stride, channels, resolution, vectors again), and a Gaussian process over all of these, for what layers of
about the same size and make have in common. How much each counts is what makes the measured blocks likeliest. The fit is on
*relative* errors.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.block import Part
from hwnas.ir.grid import Floats
from hwnas.ir.layers import Activation, BatchNorm, Conv, Dropout, Linear, Pool
from hwnas.ir.network import Network, Node
from hwnas.latency.effects import Effects, fit_levels, trait_matrix

LEAST_BLOCKS = 20
"""Fewer measured blocks estimate nothing."""

_LENGTH_SCALES = (1.0, 2.0, 4.0)  # of the process, for layers whose properties differ by a standard deviation each
_KINDS_APART = 3.0  # standard deviations
_MOST = 500  # blocks to fit to, and layers to make the process of; both take time to the third power
_NUGGET = 1e-8  # keeps a kernel of equal layers regular
_VECTORS = (4, 8, 16)  # channels that kernels work on at once
_FILLS = 8  # of them, for the speed of a kind
_FUSED = ("relu", "relu6")  # activations that runtimes compute within the convolution before


@dataclass(frozen=True)
class Estimates:
    """What blocks are estimated to take.

    Attributes:
        ratios: To the anchor, by workload, of every block without a measurement.
        typical_error: Median relative error on the measured blocks, each when it is left out.
    """

    ratios: dict[str, float]
    typical_error: float


class _Layer(NamedTuple):
    """A layer that takes time: equal ones take equal time. Elements are of one image; a pool computes with all in its windows."""

    kind: str
    kernel: int
    stride: int
    dilation: int
    in_channels: int
    out_channels: int
    resolution: int
    macs: int
    moved: int
    parameters: int


def estimate_blocks(parts: Mapping[str, Part], measured: Mapping[str, float]) -> Estimates:
    """Estimates the blocks that were not measured.

    Args:
        parts: All blocks, by workload.
        measured: Ratios of some of them to the anchor, by workload; at least `LEAST_BLOCKS`.
    """
    known = _some(np.flatnonzero([workload in measured for workload in parts]))
    ratios = np.array([measured[workload] for workload in np.array(list(parts), object)[known]])
    layers, counts = _count_layers(parts.values())
    costs = np.column_stack([_macs(layers, lambda layer: layer.kind), [[layer.moved / 1e6, 1.0] for layer in layers]])
    line = np.column_stack([np.ones(len(parts)), counts @ costs])
    terms = _distinct(line[known])
    line, costs = line[:, terms], np.column_stack([np.zeros(len(layers)), costs])[:, terms]  # the intercept is no layer's

    def fit(levels: Sequence[Floats]) -> Effects:
        by_line, *by_levels = (columns[known] / ratios[:, None] for columns in (line, *levels))
        return fit_levels(by_line, by_levels, np.ones(len(ratios)))

    speeds = np.column_stack([_macs(layers, lambda layer: (layer.kind, layer.kernel)),
                              _macs(layers, lambda layer: (layer.kind, _fills(layer, _FILLS)))])
    first = fit([counts @ speeds])
    deviations = counts * _sizes(layers, costs @ first.coefficients + speeds @ first.effects[0])
    fixed = [counts @ speeds, deviations @ trait_matrix([_traits(layer) for layer in layers])]
    makes, inducing = _makes(layers, np.asarray(counts[known].max(axis=0) > 0))
    choices = [[*fixed, deviations @ _process(makes, inducing, scale * np.sqrt(makes.shape[1]))] for scale in _LENGTH_SCALES]
    best, levels = min(((fit(levels), levels) for levels in choices), key=lambda found: found[0].unlikeliness)
    expected = line @ best.coefficients + sum(level @ effects for level, effects in zip(levels, best.effects, strict=True))
    expected = np.maximum(expected, ratios.min() / 2)  # no block takes nothing
    estimated = {workload: float(f"{value:.6g}")  # thousands of them go into a file, and more digits say nothing
                 for workload, value in zip(parts, expected, strict=True) if workload not in measured}
    return Estimates(estimated, float(np.median(np.abs(best.left_out))))


def _count_layers(parts: Iterable[Part]) -> tuple[list[_Layer], Floats]:
    """The distinct layers, and how often each block has each; (blocks, layers)."""
    chains = [Counter(map(_layer, _taking_time(part.network))) for part in parts]
    column = {layer: number for number, layer in enumerate(dict.fromkeys(layer for chain in chains for layer in chain))}
    counts = np.zeros((len(chains), len(column)))
    for row, chain in zip(counts, chains, strict=True):
        row[[column[layer] for layer in chain]] = list(chain.values())
    return list(column), counts


def _taking_time(network: Network) -> list[Node]:
    """The nodes that runtimes compute as layers of their own, and not within others."""
    layers = {node.name: node.layer for node in network.nodes}

    def is_within(node: Node) -> bool:
        if isinstance(node.layer, Activation) and node.layer.function in _FUSED:
            return isinstance(layers.get(node.inputs[0]), BatchNorm | Conv | Linear)
        return isinstance(node.layer, BatchNorm | Dropout)

    return [node for node in network.nodes if not is_within(node)]


def _layer(node: Node) -> _Layer:
    layer, kind, kernel, stride, dilation, macs = node.layer, type(node.layer).__name__, 1, 1, 1, node.macs
    if isinstance(layer, Conv):
        kernel, stride, dilation = max(layer.kernel), layer.stride, layer.dilation
        kind = f"{'grouped' if layer.groups > 1 else 'pointwise' if kernel == 1 else 'dense'} {layer.weight_format}"
    elif isinstance(layer, Pool):
        kind, kernel, stride = f"{layer.kind} pool", layer.kernel, layer.stride
        macs = node.shape.elements * kernel**2
    elif isinstance(layer, Activation):
        kind = layer.function
    first = node.input_shapes[0]
    return _Layer(kind, kernel, stride, dilation, first.channels, node.shape.channels, first.height, macs,
                  node.shape.elements + sum(shape.elements for shape in node.input_shapes),
                  sum(int(np.prod(shape)) for shape in node.parameters.values()))


def _macs(layers: Sequence[_Layer], kind_of: Callable[[_Layer], Hashable]) -> Floats:
    """Millions of multiply-accumulates of each layer in the column of its kind; (layers, kinds)."""
    kinds = list(dict.fromkeys(kind_of(layer) for layer in layers if layer.macs))
    return np.array([[layer.macs * (kind_of(layer) == kind) / 1e6 for kind in kinds] for layer in layers])


def _fills(layer: _Layer, vector: int) -> tuple[bool, bool]:
    """Whether channels that are read, and those that are written, fill vectors of so many."""
    return layer.in_channels % vector == 0, layer.out_channels % vector == 0


def _sizes(layers: Sequence[_Layer], expected: Floats) -> Floats:
    """What deviations are shares of: what layers are expected to take, and no less than a rough guess."""
    guess = np.array([layer.macs * (5 if layer.kind.startswith("grouped") else 1) + 4 * layer.moved + 2 * layer.parameters + 3e3
                      for layer in layers])
    sizes = np.maximum(expected, guess * max(float(np.median(expected / guess)), 1e-12))
    return np.asarray(sizes / sizes.mean())


def _traits(layer: _Layer) -> frozenset[str]:
    kind, shape = layer.kind, f"{layer.kind} k{layer.kernel} s{layer.stride}"
    filled = [f"{_fills(layer, vector)} of {vector}" for vector in _VECTORS]
    return frozenset({kind, f"{kind} k{layer.kernel}", f"{kind} s{layer.stride}", f"{shape} d{layer.dilation}",
                      f"{kind} at {layer.resolution}", f"{kind} from {layer.in_channels}", f"{kind} to {layer.out_channels}",
                      f"at {layer.resolution}", *(f"{what} {one}" for what in (kind, shape) for one in filled)})


def _makes(layers: Sequence[_Layer], used: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Properties of layers in standard deviations of those in measured blocks, and those that the process is made of."""
    figures = np.array([[np.log1p(layer.macs), np.log1p(layer.moved), np.log1p(layer.parameters), np.log(layer.in_channels),
                         np.log(layer.out_channels), np.log(layer.resolution), layer.kernel, layer.stride, layer.dilation,
                         *(filled for vector in _VECTORS for filled in _fills(layer, vector))]
                        for layer in layers], np.float64)
    figures = (figures - figures[used].mean(axis=0)) / np.maximum(figures[used].std(axis=0), 1e-9)
    kinds = sorted({layer.kind for layer in layers})
    makes = np.column_stack([figures, [[_KINDS_APART * (layer.kind == kind) for kind in kinds] for layer in layers]])
    return makes, makes[_some(np.flatnonzero(used))]


def _some(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """As many as there may be, at even distances."""
    return numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), _MOST)).astype(int)]


def _distinct(line: Floats) -> list[int]:
    """The terms of a line that can be told apart, the first ones first."""
    scaled = line / np.maximum(np.abs(line).max(axis=0), 1e-12)
    kept: list[int] = []
    for term in range(line.shape[1]):
        if np.linalg.matrix_rank(scaled[:, [*kept, term]], tol=1e-6 * np.sqrt(len(line))) > len(kept):
            kept.append(term)
    return kept


def _process(makes: Floats, inducing: Floats, length_scale: float) -> Floats:
    """Columns whose products are the squared exponential kernel between the inducing layers, and its projection for the others.

    Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, sec. 8.1 (subset of regressors).
    """
    values, vectors = np.linalg.eigh(_kernel(inducing, inducing, length_scale))
    return np.asarray(_kernel(makes, inducing, length_scale) @ (vectors / np.sqrt(np.maximum(values, _NUGGET))))


def _kernel(one: Floats, other: Floats, length_scale: float) -> Floats:
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    return np.asarray(np.exp(-np.maximum(squares, 0.0) / (2 * length_scale**2)))
