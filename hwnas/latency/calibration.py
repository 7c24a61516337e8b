"""Turns isolated blocks into network latencies: a linear model fitted on whole networks, and drawn towards what was isolated.

Blocks timed alone overstate a network by what each pays at its ends (a call into the runtime, layout reorders), and a
network pays things that no block does. So a network's ratio to the anchor is modelled as

    intercept + scale * (sum of its blocks' ratios) + per_block * (number of its blocks) + sum of its blocks' corrections

A correction says how much a block costs in networks beyond the line. There are as many as blocks, so they are shrunk: each is a
part of its own, and parts that it shares with blocks that have something in common with it (a kernel, an expansion, an input
shape), all of them drawn towards zero, that is towards the isolated measurement. How strongly is what makes the networks
likeliest, down to no corrections at all where isolated blocks say enough. Intercept and per_block are drawn towards zero in the
same way: networks of about one size hardly show an intercept, and what they seem to show of one would be most of a network of a
tenth of their size. A session counts the less, the farther it is from what the other networks make of its own. Every term is
additive over the path, so the trellis stays exact. The fit is on *relative* errors, since a promise is relative.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.grid import Floats
from hwnas.latency.effects import Effects, fit_levels, trait_matrix

Traits = Mapping[str, frozenset[str]]
"""By workload, what it has in common with others."""

_ROWS_PER_TERM = 4  # fewer networks than this for each term of the line, and the fit learns the noise
_LEAST_FOR_CORRECTIONS = 24  # networks
_WEIGHINGS = 3  # of sessions, after which weights hardly move
_REFITS = 4  # without blocks that would shorten networks
_DEGREES = 4  # of Student's t for sessions: one bad session in twenty or so
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


def fit_calibration(counts: NDArray[np.integer], ratios: Mapping[str, float], sessions: Sequence[Floats],
                    traits: Traits | None = None, *, corrections: bool = True, weigh: bool = True) -> Calibration:
    """Fits the model to whole networks.

    Few networks make a line only. Its terms are added from simple to full (scale; + intercept; + per_block) while the
    leave-one-out error of least squares falls, so a handful of networks cannot be over-fitted. From 24 networks on there are
    corrections, and all terms but the scale are shrunk as these are.

    Args:
        counts: How often each network has each block; (networks, blocks).
        ratios: Each block's isolated ratio, by workload, in the order of the columns. A block that no network has is corrected by
            what it shares with those that some have.
        sessions: Measured ratios of each network, one for each session.
        traits: What blocks share; None where corrections should have nothing in common.
        corrections: Whether blocks may have corrections.
        weigh: Whether sessions are weighed; else a network is the median of its sessions.
    """
    target = np.array([np.median(one) for one in sessions], np.float64)
    if not target.size:
        return Calibration()
    isolated = np.array(list(ratios.values()), np.float64)
    if corrections and target.size >= _LEAST_FOR_CORRECTIONS:
        shared = trait_matrix([(traits or {}).get(workload, frozenset()) for workload in ratios])
        line, added, error = _correct(counts, isolated, shared, sessions, weigh=weigh)
    else:
        line, error = _least_squares_line(_line(counts, isolated) / target[:, None])
        added = np.zeros(isolated.size)
    scale, intercept, per_block = line.tolist()
    return Calibration(intercept, scale, per_block, target.size,
                       {workload: value for workload, value in zip(ratios, added.tolist(), strict=True) if value}, error)


def _line(counts: NDArray[np.integer], isolated: Floats) -> Floats:
    """What its terms make of each network, in the order in which they are added; (networks, 3)."""
    return np.stack([counts @ isolated, np.ones(len(counts)), counts.sum(axis=1)], axis=1)


def _correct(counts: NDArray[np.integer], isolated: Floats, shared: Floats, sessions: Sequence[Floats], *,
             weigh: bool) -> tuple[Floats, Floats, float]:
    """The line's three terms, corrections of blocks and the leave-one-out error.

    A block that would shorten networks costs nothing, and the rest is fitted again: else all that have it would be overstated.
    """
    sizes = (isolated, np.full(isolated.size, isolated.mean()))  # a correction may be a share of a block, or of any size
    free = np.zeros(isolated.size, bool)
    for _ in range(_REFITS):
        columns = np.where(free, 0, counts)
        scaled, *shrunk = np.split(_line(columns, isolated), 3, axis=1)
        if not scaled.any():  # all are free: what was found last has to do
            break
        shrunk[1] *= np.ptp(shrunk[1]) > 0  # networks of one depth cannot tell it from the intercept
        index, found = fit_effects(scaled, [[*shrunk, columns * size, (columns * size) @ shared] for size in sizes], sessions,
                                   weigh=weigh)
        intercept, per_block, own, in_common = found.effects
        line = np.concatenate([found.coefficients, intercept, per_block])
        by_line = line[0] * isolated + line[2]
        added = np.where(free, -by_line, sizes[index] * (own + shared @ in_common))
        if not (costs_nothing := by_line + added < 0).any():
            break
        free |= costs_nothing
    return line, added, float(np.sqrt(np.mean(found.left_out**2)))


def _least_squares_line(line: Floats) -> tuple[Floats, float]:
    """As many of its three terms as pay, the others zero, and their leave-one-out error."""
    terms, error = 1, _leave_one_out_error(line[:, :1])
    for more in (2, 3):
        part = line[:, :more]
        if len(line) < _ROWS_PER_TERM * more or np.linalg.matrix_rank(part) < more:
            break
        if (found := _leave_one_out_error(part)) < error:
            terms, error = more, found
    coefficients = np.linalg.lstsq(line[:, :terms], np.ones(len(line)), rcond=None)[0]
    return np.pad(coefficients, (0, 3 - terms)), error


def _leave_one_out_error(columns: Floats) -> float:
    """Root mean square of leave-one-out residuals of a least-squares fit to ones (the PRESS identity)."""
    q, _ = np.linalg.qr(columns)
    leverage = np.minimum((q**2).sum(axis=1), 1 - 1e-9)
    residuals = 1 - q @ (q.T @ np.ones(len(columns)))
    return float(np.sqrt(np.mean((residuals / (1 - leverage)) ** 2)))


def fit_effects(line: Floats, choices: Sequence[Sequence[Floats]], sessions: Sequence[Floats], *,
                weigh: bool = True) -> tuple[int, Effects]:
    """Fits a line and random effects in levels, whose spreads maximise the restricted likelihood, to relative errors.

    Args:
        line: What is not shrunk; (networks, terms).
        choices: Alternatives, each a few levels of effects, each (networks, effects): what an effect of 1 adds to a network.
        sessions: Measured ratios of each network.
        weigh: Trusts a session less the farther it is from what the other networks make of its own; else their median counts.

    Returns:
        Which choice is likeliest, and its fit, whose `left_out` are shares of what networks take.
    """

    def fitted(target: Floats, weights: Floats) -> tuple[int, Effects]:
        ones = np.sqrt(weights)
        scale = ones / target
        fits = [fit_levels(line * scale[:, None], [level * scale[:, None] for level in levels], ones) for levels in choices]
        index, best = min(enumerate(fits), key=lambda found: found[1].unlikeliness)
        return index, replace(best, left_out=best.left_out / ones)

    target = np.array([np.median(one) for one in sessions], np.float64)
    found = fitted(target, np.ones(len(target)))
    for _ in range(_WEIGHINGS if weigh else 0):
        target, weights = _weigh(sessions, target * (1 - found[1].left_out))
        found = fitted(target, weights)
    return found


def _weigh(sessions: Sequence[Floats], expected: Floats) -> tuple[Floats, Floats]:
    """Means of sessions and what they weigh, by Student's t around what is expected of each network.

    Its iterated weights are an expectation maximisation (Lange, Little and Taylor, "Robust statistical modeling using the t
    distribution", 1989).
    """
    off = [ratios / value - 1 for ratios, value in zip(sessions, expected, strict=True)]
    scale = max(float(np.median(np.abs(np.concatenate(off)))) / 0.6745, 1e-9)
    weights = [(_DEGREES + 1) / (_DEGREES + (errors / scale) ** 2) for errors in off]
    means = [np.average(ratios, weights=own) for ratios, own in zip(sessions, weights, strict=True)]
    # Not their sum: a network errs by more than the scatter of its sessions, so that many sessions do not make it worth many.
    worth = np.array([own.mean() for own in weights])
    return np.array(means), worth / worth.mean()
