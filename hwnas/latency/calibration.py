"""Turns sums of isolated blocks into network latencies: a small linear model fitted on whole networks.

Blocks timed alone overstate a network by what each pays at its ends (a call into the runtime, layout reorders), and a
network pays things that no block does. So a network's ratio to the anchor is modelled as

    intercept + scale * (sum of its blocks' ratios) + per_block * (number of its blocks)

Every term is additive over the path, so the trellis stays exact. It is fitted on *relative* errors, since a promise is
relative; `per_block` is kept only where leave-one-out says that it pays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS_PER_TERM = 4  # fewer networks than this for each fitted term, and the fit learns the noise


@dataclass(frozen=True)
class Calibration:
    """`intercept + scale * block_sum + per_block * blocks`, in ratios to the anchor.

    Attributes:
        intercept: What every network costs beyond its blocks.
        scale: Share of an isolated block's ratio that remains inside a network.
        per_block: What every block costs (negative: saves) inside a network whatever its size.
        networks: How many whole networks it was fitted on; 0 means plain sums.
    """

    intercept: float = 0.0
    scale: float = 1.0
    per_block: float = 0.0
    networks: int = 0

    def predict(self, block_sums: NDArray[np.float64], blocks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Ratios of networks, from their block sums (N,) and block counts (N,)."""
        return self.intercept + self.scale * block_sums + self.per_block * blocks


def fit_calibration(block_sums: Sequence[float], blocks: Sequence[int], measured: Sequence[float]) -> Calibration:
    """Fits the model to whole networks by least squares on relative errors.

    Terms are added from simple to full (scale; + intercept; + per_block) while leave-one-out error falls, so a handful of
    networks, or networks of one depth, cannot be over-fitted.

    Args:
        block_sums: Sum of isolated block ratios of each network.
        blocks: Number of blocks of each network that do any work.
        measured: Measured ratio of each network.
    """
    target = np.asarray(measured, dtype=np.float64)
    if not target.size:
        return Calibration()
    columns = np.stack([np.asarray(block_sums, dtype=np.float64), np.ones(target.size),
                        np.asarray(blocks, dtype=np.float64)], axis=1) / target[:, None]
    best: tuple[float, NDArray[np.floating]] | None = None
    for terms in (1, 2, 3):
        part = columns[:, :terms]
        enough = terms == 1 or target.size >= _ROWS_PER_TERM * terms
        if not enough or np.linalg.matrix_rank(part) < terms:
            break
        error = _leave_one_out_error(part)
        if best is None or error < best[0]:
            best = error, np.linalg.lstsq(part, np.ones(target.size), rcond=None)[0]
    assert best is not None  # one term is always fitted
    scale, intercept, per_block = np.pad(best[1], (0, 3 - best[1].size)).tolist()
    return Calibration(intercept, scale, per_block, target.size)


def _leave_one_out_error(columns: NDArray[np.float64]) -> float:
    """Root mean square of leave-one-out residuals of a least-squares fit to ones (the PRESS identity)."""
    q, _ = np.linalg.qr(columns)
    leverage = np.minimum((q**2).sum(axis=1), 1 - 1e-9)
    residuals = 1 - q @ (q.T @ np.ones(len(columns)))
    return float(np.sqrt(np.mean((residuals / (1 - leverage)) ** 2)))
