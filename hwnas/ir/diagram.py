"""Counts and draws the paths within a budget: a deterministic automaton compiled for one slack.

Its rows are (input shape, slack spent) pairs that a prefix can reach: counts run backwards through it, samples forwards, and
no draw is ever rejected. Detours are rounded up to a fraction of the slack (Dyer, "Approximate counting by dynamic
programming", STOC 2003, rounds the other way), unless exact costs need no more rows than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.grid import FORBIDDEN, Floats, Ints, Stage, distinct

_LIMB_BITS = 48  # exact counts are sums of 48-bit limbs in 64-bit integers: up to 32767 options add up without overflow
_CHUNK = 16384  # samples drawn together: few enough for the cache, enough to hide the cost of a call


@dataclass(frozen=True)
class _Branching:
    """One stage of a diagram.

    Attributes:
        column: Position among the decisions; None for a fixed layer.
        options: Index of every option in the step; (K,).
        following: Row of the next stage that each option leads to, -1 where it does not fit; (rows, K).
    """

    column: int | None
    options: NDArray[np.intp]
    following: NDArray[np.intp]


@dataclass(frozen=True)
class _Branch:
    """A branching, ready to draw from.

    Attributes:
        column: Position among the decisions; None for a fixed layer.
        options: Index of every option in the step; None where an option's position is its index.
        thresholds: Cumulative probabilities as a binary search reads them: level i has 2**i for every row.
        following: Row that each option leads to; (rows * 2**levels,).
    """

    column: int | None
    options: NDArray[np.intp] | None
    thresholds: tuple[Floats, ...]
    following: NDArray[np.intp]


@dataclass(frozen=True)
class Diagram:
    """Every path within a budget, as an automaton: rows are (state, slack spent) pairs; each has a way to the end."""

    branchings: tuple[_Branching, ...] = field(repr=False)

    def count(self, size: int) -> int:
        """Number of paths.

        Args:
            size: An upper bound, which decides how long the numbers are.
        """
        limbs = size.bit_length() // _LIMB_BITS + 1
        ways = np.zeros((2, limbs), np.int64)  # the last row, which -1 reads, stays zero
        ways[0, 0] = 1
        for branching in reversed(self.branchings):
            here = np.zeros((branching.following.shape[0] + 1, limbs), np.int64)
            for following in branching.following.T:
                here[:-1] += ways[following]
            for limb in range(limbs - 1):
                here[:, limb + 1] += here[:, limb] >> _LIMB_BITS
                here[:, limb] &= (1 << _LIMB_BITS) - 1
            ways = here
        return sum(int(value) << (_LIMB_BITS * limb) for limb, value in enumerate(ways[0]))

    @cached_property
    def branches(self) -> tuple[_Branch, ...]:
        """Cumulative probabilities; weights are kept as logarithms, so that no space is too large."""
        branches = []
        weight = np.array([0.0, -np.inf])  # the last row, which -1 reads, has no ways
        for branching in reversed(self.branchings):
            onward = weight[branching.following]
            largest = onward.max(axis=1)
            cumulative = np.exp(onward - largest[:, None]).cumsum(axis=1)
            weight = np.append(largest + np.log(cumulative[:, -1]), -np.inf)
            branches.append(_branch(branching, cumulative / cumulative[:, -1:]))
        return tuple(reversed(branches))

    def sample(self, columns: Ints, generator: np.random.Generator) -> None:
        """Writes the options of random paths into columns of shape (decisions, n)."""
        for start in range(0, columns.shape[1], _CHUNK):
            chunk = columns[:, start:start + _CHUNK]
            row, spare = np.zeros((2, chunk.shape[1]), np.intp)
            draw, threshold = np.empty((2, chunk.shape[1]))
            right = np.empty(chunk.shape[1], np.bool_)
            for branch in self.branches:
                if branch.thresholds:
                    generator.random(out=draw)
                for level in branch.thresholds:
                    np.take(level, row, out=threshold, mode="clip")  # mode: the default one copies
                    np.less_equal(threshold, draw, out=right)
                    np.add(row, row, out=row)
                    np.add(row, right, out=row)
                if branch.column is not None and branch.thresholds:
                    chosen = chunk[branch.column]
                    np.bitwise_and(row, (1 << len(branch.thresholds)) - 1, out=chosen)
                    if branch.options is not None:
                        chosen[:] = branch.options[chosen]
                np.take(branch.following, row, out=spare, mode="clip")
                row, spare = spare, row


def diagram_within(stages: Sequence[Stage], detours: Sequence[Ints], reach: int, size: int, resolution: int,
                    slack: int) -> Diagram:
    """The diagram of a slack: of exact costs if those are few, of rounded ones otherwise.

    Which it is does not depend on the slack, beyond being at most `resolution`; together with rounding in proportion to
    the slack, that makes counts grow with the budget.
    """
    if slack >= reach:  # nothing to keep account of
        return _diagram(stages, [np.where(detour < FORBIDDEN, 0, FORBIDDEN) for detour in detours], 0)
    if slack <= resolution or size <= resolution:
        return _diagram(stages, detours, slack)
    try:
        _diagram(stages, detours, reach, max_rows=resolution + 1)
    except _TooManyRows:
        rounded = [-(-np.minimum(detour, slack + 1) * resolution // slack) for detour in detours]
        return _diagram(stages, rounded, resolution)
    return _diagram(stages, detours, slack)


class _TooManyRows(Exception):
    """Exact costs would need more rows than rounded ones."""


def _diagram(stages: Sequence[Stage], detours: Sequence[Ints], slack: int, max_rows: int | None = None) -> Diagram:
    """Follows every (state, slack spent) pair forwards from the input.

    Args:
        stages: The grid.
        detours: Reduced costs, in the steps in which slack is spent.
        slack: What a path may spend.
        max_rows: The most rows per state of a stage.
    """
    branchings = []
    state = np.zeros(1, np.intp)
    spent = np.zeros(1, np.int64)
    # A stage with one edge has no detour and leads to the only state of the next (others would be unreachable).
    branching_stages = [(stage, detour) for stage, detour in zip(stages, detours, strict=True) if detour.size > 1]
    for position, (stage, detour) in enumerate(branching_stages):
        total = spent[:, None] + detour[state]
        fits = total <= slack
        if position == len(branching_stages) - 1:
            following = np.where(fits, 0, -1)
        else:
            rows, numbers = distinct((stage.target[state] * (slack + 1) + total)[fits], stage.outputs * (slack + 1))
            if max_rows is not None and rows.size > max_rows * stage.outputs:
                raise _TooManyRows
            following = np.full(total.shape, -1, np.intp)
            following[fits] = numbers
            state, spent = np.divmod(rows, slack + 1)
        branchings.append(_Branching(stage.column, stage.options, following))
    return Diagram(tuple(branchings))


def _branch(branching: _Branching, cumulative: Floats) -> _Branch:
    rows, options = cumulative.shape
    levels = (options - 1).bit_length()
    width = 1 << levels
    padded = np.ones((rows, width))
    padded[:, :options] = cumulative
    following = np.zeros((rows, width), np.intp)
    following[:, :options] = branching.following
    # At level i a row is 2**i blocks; the search compares with the last entry of a block's first half.
    thresholds = tuple(padded.reshape(rows << level, -1)[:, (width >> (level + 1)) - 1].copy() for level in range(levels))
    in_place = bool((branching.options == np.arange(options)).all())
    return _Branch(branching.column, None if in_place else branching.options, thresholds, following.ravel())
