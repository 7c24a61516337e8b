"""A space and its costs as arrays: what the algorithms of the trellis run on.

Costs become whole numbers of a decimal fraction of the unit, *ticks*, rounded up (13 digits of the dearest path; whole
numbers stay as they are). Sums and comparisons are then exact, and `cost(a) <= max_cost` holds for every answer. An edge of
infinite cost is no edge.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.costs import CostModel
from hwnas.ir.steps import Space, Step

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Allowed = Collection[str] | Sequence[bool] | NDArray[np.bool_]

MAX_TICKS = 1 << 48
FORBIDDEN = 1 << 50
"""Cost of an edge that is not there: more than any path, and still far from overflow when every stage adds one."""


@dataclass(frozen=True)
class Ticks:
    """Costs as whole numbers: `per_unit` ticks make one unit of cost.

    A tick count is turned into a cost by one correctly rounded division, so equal counts give equal floats and the order
    is kept. `per_unit` is a power of ten: costs with few decimals stay what they are (0.1 + 0.2 fits a budget of 0.3).
    """

    per_unit: float

    @classmethod
    def for_costs(cls, values: Sequence[Floats], constant: float) -> "Ticks":
        largest = sum(float(value.max(where=np.isfinite(value), initial=0.0)) for value in values) + abs(constant)
        if largest >= MAX_TICKS:
            raise InputError(f"The cost of a network must stay below {MAX_TICKS:.3g}, but may reach {largest:.3g}: use a larger "
                             "unit.")
        if constant == math.floor(constant) and all((value == np.floor(value)).all() for value in values):
            return cls(1.0)
        return cls(10.0 ** min(max(13 - math.floor(math.log10(largest)), 0), 22))  # powers up to 1e22 are exact

    def round_up(self, values: Floats) -> Ints:
        """The fewest ticks that are worth at least the value, which is finite."""
        guess = np.ceil(values * self.per_unit)  # off by at most one
        guess = np.where((guess - 1) / self.per_unit >= values, guess - 1, guess)
        return np.where(guess / self.per_unit < values, guess + 1, guess).astype(np.int64)

    def round_down(self, value: float) -> int:
        """The most ticks that are worth at most the value."""
        guess = math.floor(value * self.per_unit) + 1  # at most two too many
        while self.cost(guess) > value:
            guess -= 1
        return guess

    def cost(self, ticks: int) -> float:
        return ticks / self.per_unit

    def costs(self, ticks: Ints) -> Floats:
        return ticks / self.per_unit


@dataclass(frozen=True)
class Stage:
    """A step of the space as arrays over S input states and K options.

    Attributes:
        name: The layer's name.
        column: Position among the decisions; None for a fixed layer.
        states: Input shape of every state, as index into the step's inputs; (S,).
        options: Index of every option in the step; (K,).
        target: State of the next stage that an edge leads to, 0 where there is no edge; (S, K).
        cost: In ticks, `FORBIDDEN` where there is no edge; (S, K).
        outputs: Number of states of the next stage.
    """

    name: str
    column: int | None
    states: NDArray[np.intp]
    options: NDArray[np.intp]
    target: NDArray[np.intp]
    cost: Ints
    outputs: int


def edge_costs(space: Space, step: Step, costs: CostModel | None) -> Floats:
    """Cost of every edge of a step, infinity where there is none; (S, K)."""
    values = np.where(step.targets >= 0, 0.0, np.inf)
    for edge in step.edges if costs else ():
        value = float(costs.edge_cost(edge)) if costs else 0.0
        if not value >= 0:
            raise InputError(f"A cost must be a number of at least 0, but layer {step.name!r} of space {space.name!r}, "
                             f"option {step.options[edge.option]!r} at {step.inputs[edge.source]}, costs {value}.")
        values[edge.source, edge.option] = value
    return values


def build_stages(space: Space, costs: Sequence[Floats], ticks: Ticks) -> Iterator[Stage]:
    """The space as it is: every state of it, whether or not finite costs lead there and on."""
    columns = {decision.name: column for column, decision in enumerate(space.decisions)}
    for step, cost in zip(space.steps, costs, strict=True):
        there = np.isfinite(cost)
        yield Stage(step.name, columns.get(step.name), np.arange(cost.shape[0]), np.arange(cost.shape[1]),
                    np.maximum(step.targets, 0), np.where(there, ticks.round_up(np.where(there, cost, 0.0)), FORBIDDEN),
                    len(step.outputs))


def reachable(space: str, stages: Sequence[Stage]) -> list[Stage]:
    """Keeps the states that edges lead to.

    Raises:
        InfeasibleError: None lead to the end.
    """
    kept, reached = [], np.zeros(1, np.intp)
    for stage in stages:
        part = _from_states(stage, reached, np.arange(stage.options.size))
        if part is None:
            raise InfeasibleError(f"No network of space {space!r} is possible, since no option of layer {stage.name!r} that can "
                                  "be reached has a finite cost: choose another device, or change that layer.")
        onward, reached = part
        kept.append(onward)
    return kept


def narrowed(stages: Sequence[Stage], masks: Mapping[int, NDArray[np.bool_]]) -> Iterator[Stage]:
    """Keeps the allowed options, and the states that can still be reached; all of `stages` can be reached."""
    reached = np.zeros(1, np.intp)
    for stage in stages:
        mask = None if stage.column is None else masks.get(stage.column)
        if mask is None and reached.size == stage.states.size:
            yield stage
            reached = np.arange(stage.outputs)
            continue
        kept = np.arange(stage.options.size) if mask is None else np.flatnonzero(mask[stage.options])
        if not kept.size:
            raise InputError(f"A restriction must leave an option to decision {stage.name!r}, but leaves none.")
        part = _from_states(stage, reached, kept)
        if part is None:
            raise InputError(f"Restrictions must leave a network, but those on decision {stage.name!r} and before it leave none.")
        onward, reached = part
        yield onward


def _from_states(stage: Stage, states: NDArray[np.intp], options: NDArray[np.intp]) -> tuple[Stage, NDArray[np.intp]] | None:
    """A stage with some of its states and options only, and the next stage's states that it leads to; None for none."""
    edges = states[:, None], options
    target, cost = stage.target[edges], stage.cost[edges]
    there = cost < FORBIDDEN
    if not there.any():
        return None
    reached, found = distinct(target[there], stage.outputs)
    numbers = np.zeros(target.shape, np.intp)
    numbers[there] = found
    return Stage(stage.name, stage.column, stage.states[states], stage.options[options], numbers, cost, reached.size), reached


def option_mask(name: str, options: tuple[str, ...], wanted: Allowed) -> NDArray[np.bool_]:
    if isinstance(wanted, str):
        wanted = (wanted,)
    wanted = list(wanted)
    if wanted and all(isinstance(item, bool | np.bool_) for item in wanted):
        if len(wanted) != len(options):
            raise InputError(f"A mask for decision {name!r} must have one entry for each of its {len(options)} options, but has "
                             f"{len(wanted)}.")
        return np.array(wanted, np.bool_)
    unknown = [item for item in wanted if item not in options]
    if unknown:
        raise InputError(f"Decision {name!r} has the options {', '.join(options)}, but a restriction names {unknown[0]!r}.")
    return np.array([option in wanted for option in options])


def shortest(stages: Sequence[Stage]) -> list[Ints]:
    """Cost of the cheapest way to the end from every state of every stage, and zeros after the last.

    At least `FORBIDDEN` where there is none.
    """
    onward = np.zeros(stages[-1].outputs, np.int64)
    potentials = [onward]
    for stage in reversed(stages):
        onward = np.minimum((stage.cost + onward[stage.target]).min(axis=1), FORBIDDEN)
        potentials.append(onward)
    return potentials[::-1]


def longest(stages: Sequence[Stage]) -> list[Ints]:
    """Cost of the dearest way to the end from every state of every stage, and zeros after the last.

    At most minus `FORBIDDEN` where there is none.
    """
    onward = np.zeros(stages[-1].outputs, np.int64)
    potentials = [onward]
    for stage in reversed(stages):
        onward = np.maximum(dearest(stage, onward).max(axis=1), -FORBIDDEN)
        potentials.append(onward)
    return potentials[::-1]


def dearest(stage: Stage, onward: Ints) -> Ints:
    """Cost of every edge and the dearest way on from it; (S, K)."""
    return np.where(stage.cost < FORBIDDEN, stage.cost + onward[stage.target], -2 * FORBIDDEN)


def ways(stages: Sequence[Stage]) -> int:
    """Number of paths."""
    onward = [1] * stages[-1].outputs
    for stage in reversed(stages):
        there = stage.cost < FORBIDDEN
        if there.all() and len(set(onward)) == 1:
            onward = [onward[0] * stage.options.size] * len(stage.states)
            continue
        onward = [sum(onward[state] for state, edge in zip(targets, edges, strict=True) if edge)
                  for targets, edges in zip(stage.target.tolist(), there.tolist(), strict=True)]
    return onward[0]


def distinct(keys: NDArray[np.integer[Any]], span: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The distinct keys below `span` in order, and the number of each key among them."""
    if span > 8 * keys.size + 64:
        distinct, numbers = np.unique(keys, return_inverse=True)
        return distinct, numbers.reshape(keys.shape)
    present = np.zeros(span, np.bool_)
    present[keys] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[keys]
