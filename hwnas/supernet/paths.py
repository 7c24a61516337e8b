"""Which paths a training step takes, as pure functions of (seed, step).

- `uniform_paths`: Single Path One-Shot (Guo et al., arXiv 1904.00420, sec. 3.2); every network of the space equally likely.
- `paths_within`: the same among the networks within a budget; the prior over architectures that the paper leaves open.
- `fair_paths`: strict fairness (Chu et al., FairNAS, arXiv 1907.01845, algorithm 1); every option trained equally often.
- `sandwich_paths`: the sandwich rule (Yu and Huang, Universally Slimmable Networks, arXiv 1903.05134; Yu et al., BigNAS,
  arXiv 2003.11142).

Paths are drawn for many steps at once, since a draw costs far more than looking one up. A chunk of them depends on
the seed and its number alone, so what a step takes does not depend on which steps were asked for before.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.costs import BitOpsCost, CostModel
from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.supernet.streams import stream_seed

Rows = NDArray[np.integer[Any]]

PathSampler = Callable[[int], Rows]
"""From the training step to the option indices of its paths, (paths, decisions), read-only."""

_CHUNK = 256  # steps whose paths are drawn together
_SIZE = BitOpsCost(count_full_precision=True)  # in full precision 1024 for every multiply-accumulate


def uniform_paths(space: Space, seed: int, count: int = 1) -> PathSampler:
    """Uniformly and independently drawn paths.

    Args:
        space: The space.
        seed: Of the draws.
        count: Paths in a step.

    Raises:
        InputError: The count is below 1.
    """
    _check_count("count", count, 1)
    return _in_chunks(_uniform(Trellis(space), None, seed, count))


def paths_within(space: Space, costs: CostModel, max_cost: float, seed: int, count: int = 1) -> PathSampler:
    """Paths drawn uniformly and independently among those within a budget: exactly those that `Trellis.count` counts.

    Args:
        space: The space.
        costs: What its edges cost.
        max_cost: The budget, in the costs' unit.
        seed: Of the draws.
        count: Paths in a step.

    Raises:
        InputError: The count is below 1, or the budget is not a number.
        InfeasibleError: No path fits; names the achievable range.
    """
    _check_count("count", count, 1)
    trellis = Trellis(space, costs)
    trellis.sample_indices(0, max_cost)  # refuses a budget here, not at the first step
    return _in_chunks(_uniform(trellis, max_cost, seed, count))


def fair_paths(space: Space, seed: int) -> PathSampler:
    """As many paths in a step as train every option exactly once.

    A step has as many paths as the decision with most options has options, and costs as much. In FairNAS all decisions have
    equally many. Here one with fewer goes through random permutations of its options, one after the other and across steps:
    at any time, no option has been trained more than once more often than another of its decision.

    It is options that are trained equally often. Where several shapes reach a decision, and the supernet keeps weights of
    their own for each, they share an option's trainings as often as they arrive.

    Raises:
        InputError: An earlier choice rules out an option, so that decisions cannot be permuted on their own; names it.
    """
    for step in space.steps:
        if not step.is_full:
            raise InputError(f"Strict fairness needs every option of a decision to be possible whatever was chosen before, but "
                             f"earlier choices rule out options of decision {step.name!r} of space {space.name!r}: train with "
                             "uniformly drawn paths (spos) or the sandwich rule (sandwich).")
    options = {decision.name: len(decision.options) for decision in space.decisions}
    most = max(options.values())

    def draw(chunk: int) -> Rows:
        columns = [_permutations(seed, name, count, chunk * _CHUNK * most, _CHUNK * most) for name, count in options.items()]
        return np.stack(columns, axis=-1).reshape(_CHUNK, most, len(columns))

    return _in_chunks(draw)


def sandwich_paths(space: Space, seed: int, random: int = 2) -> PathSampler:
    """The largest network, the smallest, then uniformly drawn ones: pushing the extremes up lifts what lies between.

    Args:
        space: The space.
        seed: Of the draws.
        random: How many are drawn in a step.

    Raises:
        InputError: The number is below 0.
    """
    _check_count("random", random, 0)
    extremes = space.indices([largest_network(space), smallest_network(space)])
    between = _uniform(Trellis(space), None, seed, random)

    def draw(chunk: int) -> Rows:
        return np.concatenate([np.broadcast_to(extremes, (_CHUNK, *extremes.shape)), between(chunk)], axis=1)

    return _in_chunks(draw)


def largest_network(space: Space) -> Architecture:
    """The network of most multiply-accumulates; where bit-widths are searched, of most bit operations."""
    return Trellis(space, _SIZE).dearest()


def smallest_network(space: Space) -> Architecture:
    """The network of fewest multiply-accumulates; where bit-widths are searched, of fewest bit operations."""
    return Trellis(space, _SIZE).cheapest()


def _in_chunks(draw: Callable[[int], Rows]) -> PathSampler:
    """Looks steps up in what `draw` gives for a chunk's number: (_CHUNK, paths, decisions)."""

    @lru_cache(maxsize=2)
    def chunk(number: int) -> Rows:
        rows = np.ascontiguousarray(draw(number))
        rows.flags.writeable = False  # shared by all who ask for the step
        return rows

    def paths(step: int) -> Rows:
        number, offset = divmod(step, _CHUNK)
        return chunk(number)[offset]

    return paths


def _uniform(trellis: Trellis, max_cost: float | None, seed: int, count: int) -> Callable[[int], Rows]:
    shape = (_CHUNK, count, len(trellis.space.decisions))

    def draw(chunk: int) -> Rows:
        generator = np.random.default_rng(stream_seed(seed, "paths", chunk))
        return trellis.sample_indices(_CHUNK * count, max_cost, generator).reshape(shape)

    return draw


def _permutations(seed: int, decision: str, options: int, start: int, count: int) -> Rows:
    """Items `start` to `start + count` of a decision's endless stream: one random permutation of its options after another.

    A permutation depends on seed, decision and its number alone; `_CHUNK` of them share a generator.
    """
    length = options * _CHUNK
    in_order = np.tile(np.arange(options), (_CHUNK, 1))
    groups = range(start // length, (start + count - 1) // length + 1)
    stream = np.concatenate([
        np.random.default_rng(stream_seed(seed, f"permutations of {decision}", group)).permuted(in_order, axis=1).ravel()
        for group in groups])
    offset = start - groups.start * length
    return stream[offset:offset + count]


def _check_count(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"The number of paths ({name}) must be at least {least}, but is {value}.")
