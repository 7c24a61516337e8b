"""Turns isolated blocks into network latencies: a linear model fitted on whole networks, and drawn towards what was isolated.

Blocks timed alone overstate a network by what each pays at its ends (a call into the runtime, layout reorders), and a
network pays things that no block does. So a network's ratio to the anchor is modelled as

    intercept + scale * (sum of its blocks' ratios) + per_block * (number of its blocks) + sum of its blocks' corrections

A correction says how much a block costs in networks beyond the line. There are as many as blocks, so each is drawn towards
zero: a ridge, in Bayesian words a normal prior around the isolated measurement. How strongly is what leave-one-out decides,
down to no corrections at all where isolated blocks say enough. Every term is additive over the path, so the trellis stays
exact. The fit is on *relative* errors, since a promise is relative.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.grid import Floats

_ROWS_PER_TERM = 4  # fewer networks than this for each term of the line, and the fit learns the noise
_LEAST_FOR_CORRECTIONS = 24  # networks
_SPREADS = tuple(float(spread) for spread in np.geomspace(0.25, 256, 21))
WORTH = 0.97  # a fuller model must bring the leave-one-out error down to this share: noise alone makes one look a little better


@dataclass(frozen=True)
class Calibration:
    """What a network costs, in ratios to the anchor.

    Attributes:
        intercept: What every network costs beyond its blocks.
        scale: Share of an isolated block's ratio that remains inside a network.
        per_block: What every block costs (negative: saves) inside a network whatever its size.
        networks: How many whole networks it was fitted on; 0 means plain sums.
        corrections: What a block costs beyond that, by workload.
        leave_one_out_error: Root mean square of the relative error on each network when it is left out of the fit.
    """

    intercept: float = 0.0
    scale: float = 1.0
    per_block: float = 0.0
    networks: int = 0
    corrections: Mapping[str, float] = field(default_factory=dict)
    leave_one_out_error: float | None = None

    def cost(self, workload: str, ratio: float) -> float:
        """What a block adds to a network, from its isolated ratio; never negative, since no block shortens a network."""
        return max(self.scale * ratio + self.per_block + self.corrections.get(workload, 0.0), 0.0)


def fit_calibration(counts: NDArray[np.integer], ratios: Mapping[str, float], measured: Floats, *,
                    corrections: bool = True) -> Calibration:
    """Fits the model to whole networks by least squares on relative errors.

    Terms are added from simple to full (scale; + intercept; + per_block; + corrections) while the leave-one-out error falls, so
    a handful of networks, or networks of one depth, cannot be over-fitted.

    Args:
        counts: How often each network has each block; (networks, blocks).
        ratios: Each block's isolated ratio, by workload, in the order of the columns.
        measured: Measured ratio of each network; (networks,).
        corrections: Whether blocks may have corrections.
    """
    target = np.asarray(measured, dtype=np.float64)
    if not target.size:
        return Calibration()
    isolated = np.array(list(ratios.values()), np.float64)
    line = np.stack([counts @ isolated, np.ones(target.size), counts.sum(axis=1)], axis=1) / target[:, None]
    terms, error = 1, _leave_one_out_error(line[:, :1])
    for more in (2, 3):
        part = line[:, :more]
        if target.size < _ROWS_PER_TERM * more or np.linalg.matrix_rank(part) < more:
            break
        if (found := _leave_one_out_error(part)) < error:
            terms, error = more, found
    coefficients, added = np.linalg.lstsq(line[:, :terms], np.ones(target.size), rcond=None)[0], np.zeros(isolated.size)
    if corrections and target.size >= _LEAST_FOR_CORRECTIONS:
        fits = [_Ridge(line[:, :terms], counts / target[:, None] * weights, weights, spread * target.size**-0.5)
                for weights in (isolated, np.full(isolated.size, isolated.mean())) for spread in _SPREADS]
        best = min(fits, key=lambda fit: fit.error)
        if best.error < WORTH * error:
            coefficients, added, error = best.coefficients, best.corrections, best.error
    scale, intercept, per_block = np.pad(coefficients, (0, 3 - terms)).tolist()
    return Calibration(intercept, scale, per_block, target.size,
                       {workload: value for workload, value in zip(ratios, added.tolist(), strict=True) if value}, error)


class _Ridge:
    """A line and shrunken corrections, fitted to ones; `line` is not shrunk.

    Mean and leave-one-out residuals of generalised least squares with covariance `1 + spread^2 Z Z'` (Rasmussen and Williams,
    "Gaussian Processes for Machine Learning", 2006, sec. 2.7 and 5.4.2).
    """

    def __init__(self, line: Floats, columns: Floats, weights: Floats, spread: float) -> None:
        """Fits.

        Args:
            line: (networks, terms).
            columns: What a correction of each block's `weights` does; (networks, blocks).
            weights: How large a correction may be expected to be, up to a factor; (blocks,).
            spread: The factor, over the noise of a network.
        """
        ones = np.ones(len(line))
        inverse = np.linalg.inv(np.eye(len(line)) + spread**2 * columns @ columns.T)
        self.coefficients = np.linalg.solve(line.T @ inverse @ line, line.T @ inverse @ ones)
        rest = inverse @ (ones - line @ self.coefficients)
        self.corrections = spread**2 * weights * (columns.T @ rest)
        projected = inverse - inverse @ line @ np.linalg.solve(line.T @ inverse @ line, line.T @ inverse)
        self.error = float(np.sqrt(np.mean((rest / np.maximum(projected.diagonal(), 1e-9)) ** 2)))


def _leave_one_out_error(columns: Floats) -> float:
    """Root mean square of leave-one-out residuals of a least-squares fit to ones (the PRESS identity)."""
    q, _ = np.linalg.qr(columns)
    leverage = np.minimum((q**2).sum(axis=1), 1 - 1e-9)
    residuals = 1 - q @ (q.T @ np.ones(len(columns)))
    return float(np.sqrt(np.mean((residuals / (1 - leverage)) ** 2)))
