"""Estimates blocks that nobody has timed from those that were: how a space of thousands of blocks is profiled in minutes.

The logarithm of a block's ratio to the anchor is modelled as

    what its size says + what its traits say + what blocks of about its size and make say

the first a line in logarithms of its multiply-accumulates, of the numbers that it moves, its parameters and its layers; the other
two shrunken effects in levels (see `effects`): of kernel, expansion, input shape and so on, and a Gaussian process over size and
make. How much each counts is what makes the measured blocks likeliest. Blocks of a space are combinations of few properties, so
that few of them tell the most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.ir.block import Part
from hwnas.ir.grid import Floats
from hwnas.ir.layers import BatchNorm, Conv
from hwnas.latency.effects import Effects, block_traits, fit_levels, trait_matrix

LEAST_BLOCKS = 20
"""Fewer measured blocks estimate nothing."""

_LENGTH_SCALES = (1.0, 2.0, 4.0)  # of the process, in standard deviations of the measured blocks
_NUGGET = 1e-8  # keeps a kernel of equal blocks regular


@dataclass(frozen=True)
class Estimates:
    """What blocks are estimated to take.

    Attributes:
        ratios: To the anchor, by workload, of every block without a measurement.
        typical_error: Median relative error on the measured blocks, each when it is left out.
    """

    ratios: dict[str, float]
    typical_error: float


def estimate_blocks(parts: Mapping[str, Part], measured: Mapping[str, float]) -> Estimates:
    """Estimates the blocks that were not measured.

    Args:
        parts: All blocks, by workload.
        measured: Ratios of some of them to the anchor, by workload; at least `LEAST_BLOCKS`.
    """
    known = np.array([workload in measured for workload in parts])
    logs = np.log([measured[workload] for workload in parts if workload in measured])
    sizes = np.array([_size(part) for part in parts.values()])
    sizes = (sizes - sizes[known].mean(axis=0)) / np.maximum(sizes[known].std(axis=0), 1e-9)
    line = _independent(np.column_stack([np.ones(len(sizes)), sizes]), known)
    traits = trait_matrix([block_traits(part) for part in parts.values()])
    fits: list[tuple[Effects, Floats]] = []
    for length_scale in _LENGTH_SCALES:
        process = _process(sizes, sizes[known], length_scale)
        fits.append((fit_levels(line[known], [traits[known], process[known]], logs), process))
    best, process = min(fits, key=lambda found: found[0].unlikeliness)
    expected = line @ best.coefficients + traits @ best.effects[0] + process @ best.effects[1]
    estimated = {workload: float(f"{np.exp(value):.6g}")  # thousands of them go into a file, and more digits say nothing
                 for workload, value, is_known in zip(parts, expected, known, strict=True) if not is_known}
    return Estimates(estimated, float(np.median(np.abs(np.expm1(best.left_out)))))


def _size(part: Part) -> list[float]:
    """What the time of a block grows with, and what kind of work it is."""
    nodes = [node for node in part.network.nodes if not isinstance(node.layer, BatchNorm)]  # which runtimes fold
    macs = moved = parameters = grouped = spatial = 0
    for node in nodes:
        macs += node.macs
        moved += node.shape.elements + sum(shape.elements for shape in node.input_shapes)
        parameters += sum(int(np.prod(shape)) for shape in node.parameters.values())
        if isinstance(node.layer, Conv):
            grouped += node.macs if node.layer.groups > 1 else 0
            spatial += node.macs if node.layer.groups == 1 and node.layer.kernel != (1, 1) else 0
    return [np.log1p(macs), np.log1p(moved), np.log1p(parameters), np.log1p(len(nodes)), np.log1p(grouped),
            grouped / max(macs, 1), spatial / max(macs, 1)]


def _independent(line: Floats, known: Sequence[bool] | np.ndarray) -> Floats:
    """The terms that the measured blocks can tell apart, in their order."""
    kept: list[int] = []
    for term in range(line.shape[1]):
        if np.linalg.matrix_rank(line[known][:, [*kept, term]], tol=1e-6 * len(line)) > len(kept):
            kept.append(term)
    return line[:, kept]


def _process(sizes: Floats, inducing: Floats, length_scale: float) -> Floats:
    """Columns whose products are the squared exponential kernel between the measured blocks, and its projection for the others.

    Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, sec. 8.1 (subset of regressors).
    """
    values, vectors = np.linalg.eigh(_kernel(inducing, inducing, length_scale))
    return np.asarray(_kernel(sizes, inducing, length_scale) @ (vectors / np.sqrt(np.maximum(values, _NUGGET))))


def _kernel(one: Floats, other: Floats, length_scale: float) -> Floats:
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    return np.asarray(np.exp(-np.maximum(squares, 0.0) / (2 * length_scale**2)))
