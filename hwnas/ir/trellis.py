"""The trellis: a space and what its edges cost. A network is a path; every question about a budget is answered here, exactly.

Three ideas carry it.

* *Ticks.* Costs become whole numbers of a decimal fraction of the unit, rounded up (13 digits of the dearest path; whole
  numbers stay as they are). Sums and comparisons are then exact, and `cost(a) <= max_cost` holds for every answer.
* *Reduced costs.* Shortest-path potentials turn an edge's cost into its detour over the cheapest way on, as in A*. The
  cheapest path costs nothing, so what must be divided into steps is the *slack* above it, not the budget.
* *A diagram per budget.* Counting and sampling compile the slack into a deterministic automaton whose rows are (input
  shape, slack spent) pairs that a prefix can reach: counts run backwards through it, samples forwards, no draw is ever
  rejected. Detours are rounded up to 1/4096 of the slack (Dyer, "Approximate counting by dynamic programming", STOC 2003,
  rounds the other way), unless exact costs need no more rows than that.

The best path within a budget is found without rounding: labels (Pareto-optimal prefixes) under Lagrangian bounds (Handler
and Zang, "A dual algorithm for the constrained shortest path problem", Networks 1980).
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Context, Decimal
from functools import cached_property, lru_cache, partial
from typing import Any

import networkx
import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.costs import CostModel
from hwnas.ir.space import Edge, SearchSpace, Step

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Allowed = Collection[str] | Sequence[bool] | NDArray[np.bool_]
Scores = Mapping[str, Sequence[float] | Floats] | Callable[[Step, Edge], float]

MAX_TICKS = 1 << 48
MAX_RESOLUTION = 1 << 14  # times the most ticks it still fits in 64 bits
_LIMB_BITS = 48  # exact counts are sums of 48-bit limbs in 64-bit integers: up to 32767 options add up without overflow
_CHUNK = 16384  # samples drawn together: few enough for the cache, enough to hide the cost of a call
_MAX_LABELS = 1 << 15


class Trellis:
    """A search space with a cost on every edge; immutable, and no question changes it.

    Every answer is about the paths that `restrict` has left. A budget (`max_cost`) is in the cost model's unit; None and
    infinity mean no limit.

    Args:
        space: The space.
        costs: What edges cost; None for every path and no costs.
        resolution: Into how many steps counting and sampling divide the slack, 1 to 16384: more is
            slower and leaves less out.

    Raises:
        InputError: A cost is not a finite number of at least zero.
    """

    def __init__(self, space: SearchSpace, costs: CostModel | None = None, *, resolution: int = 4096) -> None:
        if not 1 <= resolution <= MAX_RESOLUTION:
            raise InputError(f"A resolution must be 1 to {MAX_RESOLUTION}, but is {resolution}.")
        self.space = space
        self.unit = costs.unit if costs else ""
        self._resolution = resolution
        values = [_edge_costs(space, step, costs) for step in space.steps]
        constant = float(costs.constant) if costs else 0.0
        if not math.isfinite(constant):
            raise InputError(f"A cost model's constant must be a finite number, but is {constant}.")
        self._ticks = _Ticks.for_costs(values, constant)
        self._constant = int(self._ticks.round_up(np.array(constant)))
        self._all_stages = tuple(_stages(space, [self._ticks.round_up(value) for value in values]))
        self._stages = self._all_stages

    # Range

    def min_cost(self) -> float:
        """Cost of the cheapest network, exact; itself a feasible budget."""
        return self._ticks.cost(self._least)

    def max_cost(self) -> float:
        """Cost of the dearest network, exact; as a budget it excludes nothing."""
        return self._ticks.cost(self._most)

    def cheapest(self) -> Architecture:
        """A network of cost `min_cost()`."""
        return self._follow([detour.argmin(axis=1) for detour in self._detours])

    def dearest(self) -> Architecture:
        """A network of cost `max_cost()`."""
        return self._follow([(stage.cost + onward[stage.target]).argmax(axis=1)
                             for stage, onward in zip(self._stages, self._longest[1:], strict=True)])

    def feasible(self, max_cost: float | None) -> bool:
        """Whether any network fits."""
        return self._slack(max_cost) >= 0

    # Counting and sampling

    def count(self, max_cost: float | None = None) -> int:
        """How many networks fit.

        Never more than there are; never less with a larger budget. Exact without a budget, wherever the slack is at most
        `resolution` ticks, and in spaces with few distinct costs; otherwise networks within a fraction of a percent of
        the slack below the budget may be left out.
        """
        slack = self._slack(max_cost)
        if slack < 0:
            return 0
        return self._size if slack >= self._reach else self._diagrams(slack).count(self._size)

    def sample(self, n: int, max_cost: float | None = None, seed: int | np.random.Generator = 0) -> list[Architecture]:
        """Draws networks uniformly and independently among those that `count` counts.

        Raises:
            InfeasibleError: No network fits; names the achievable range.
        """
        return self.space.architectures(self.sample_indices(n, max_cost, seed))

    def sample_indices(self, n: int, max_cost: float | None = None, seed: int | np.random.Generator = 0) -> Ints:
        """`sample` as option indices of shape (n, decisions): the fast way to many.

        Raises:
            InfeasibleError: No network fits; names the achievable range.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0:
            raise InputError(f"A number of samples must be a whole number of at least 0, but is {n!r}.")
        diagram = self._diagrams(self._feasible_slack(max_cost))
        columns = np.empty((len(self.space.decisions), n), np.int64)
        for stage in self._stages:
            if stage.column is not None:
                columns[stage.column] = stage.options[0]
        diagram.sample(columns, _generator(seed))
        return columns.T

    # Costs of given networks

    def costs_of(self, indices: NDArray[np.integer[Any]]) -> Floats:
        """Costs of networks given as option indices of shape (N, decisions), restricted or not; shape (N,).

        Raises:
            InputError: The shape or an index is wrong.
        """
        columns = self._checked_columns(indices)
        ticks = np.full(columns.shape[1], self._constant, np.int64)
        state: Ints | int = 0
        for stage in self._all_stages:
            option = 0 if stage.column is None else columns[stage.column]
            edge = state * stage.options.size + option
            ticks += stage.cost.ravel()[edge]
            state = stage.target.ravel()[edge] if stage.outputs > 1 else 0
        return self._ticks.costs(ticks)

    def cost(self, architecture: Architecture) -> float:
        """Cost of one network."""
        return float(self.costs_of(self.space.indices([architecture]))[0])

    def expected_cost(self, probabilities: Mapping[str, Sequence[float] | Floats]) -> float:
        """Mean cost when every decision is drawn on its own; exact also where a cost depends on earlier choices.

        Args:
            probabilities: Decision name to one probability per option; among restricted options they are rescaled.

        Raises:
            InputError: A decision is missing, or its probabilities are not at least 0 with sum 1.
        """
        tables = self._per_option(probabilities, "probabilities")
        arriving: NDArray[Any] = np.ones(1)
        expected = float(self._constant)
        for stage in self._stages:
            chosen = np.ones(1) if stage.column is None else _distribution(stage, tables[stage.column])
            taken = arriving[:, None] * chosen
            expected += float((taken * stage.cost).sum())
            arriving = np.bincount(stage.target.ravel(), taken.ravel(), stage.outputs)
        return expected / self._ticks.per_unit

    # Fewer paths

    def restrict(self, allowed: Mapping[str, Allowed]) -> "Trellis":
        """The same space with fewer edges; restricting again narrows further.

        Args:
            allowed: Decision name to the names of the options that stay, or to a boolean per option. Decisions that are
                not named keep all their options.

        Raises:
            InputError: A decision or option does not exist, or a decision is left without options.
        """
        decisions = self.space.decisions
        columns = {decision.name: column for column, decision in enumerate(decisions)}
        masks = {}
        for name, wanted in allowed.items():
            if name not in columns:
                raise InputError(f"A restriction names decisions of space {self.space.name!r}, which has no {name!r}.")
            masks[columns[name]] = _mask(name, tuple(decisions[columns[name]].options), wanted)
        restricted = object.__new__(Trellis)
        restricted.__dict__.update({name: value for name, value in self.__dict__.items() if name not in _DERIVED})
        restricted._stages = tuple(_narrowed(self._stages, masks))
        return restricted

    def resample(self, architecture: Architecture, decisions: Collection[str], max_cost: float | None = None,
                 seed: int | np.random.Generator = 0) -> Architecture:
        """Draws some decisions anew, uniformly among the ways that fit, and keeps the others: a mutation.

        Raises:
            InfeasibleError: The kept decisions leave no network within the budget.
        """
        choices = self.space.check(architecture).choices
        decisions = (decisions,) if isinstance(decisions, str) else decisions
        unknown = [name for name in decisions if name not in choices]
        if unknown:
            raise InputError(f"Space {self.space.name!r} has no decision {unknown[0]!r} to resample.")
        kept = {name: (option,) for name, option in choices.items() if name not in decisions}
        return self.restrict(kept).sample(1, max_cost, seed)[0]

    # Optima

    def best(self, scores: Scores, max_cost: float | None = None) -> Architecture:
        """The network with the largest sum of scores among those that fit.

        No costs are rounded for this. Up to rounding of the sums (1e-13 of their size) the result is exact, as long as at
        most 32,768 partial networks could still lead to the optimum, which only scores that almost equal the costs
        exceed; an even selection of those is then followed, which still fits the budget.

        Args:
            scores: Decision name to one score per option, or a function of step and edge (called for fixed layers too).
                Minus infinity marks a last resort: as few as possible are taken.
            max_cost: The budget.

        Raises:
            InputError: A decision is missing, or a score is NaN or plus infinity.
            InfeasibleError: No network fits.
        """
        slack = self._feasible_slack(max_cost)
        if callable(scores):
            tables = [np.array([scores(step, edge) for edge in step.edges], np.float64).reshape(len(step.inputs), -1)
                      for step in self.space.steps]
            values = [table[stage.states][:, stage.options] for table, stage in zip(tables, self._stages, strict=True)]
        else:
            rows = self._per_option(scores, "scores")
            values = [np.zeros(stage.cost.shape) if stage.column is None
                      else np.broadcast_to(rows[stage.column][stage.options], stage.cost.shape) for stage in self._stages]
        for stage, value in zip(self._stages, values, strict=True):
            if np.isnan(value).any() or (value == np.inf).any():
                raise InputError(f"A score must be a number or minus infinity, but layer {stage.name!r} has "
                                 f"{'NaN' if np.isnan(value).any() else 'plus infinity'}.")
        problem = _Problem([stage.target for stage in self._stages], self._detours, _without_infinities(values), slack)
        return self._architecture(problem.solve())

    def most_probable(self, probabilities: Mapping[str, Sequence[float] | Floats],
                      max_cost: float | None = None) -> Architecture:
        """The network with the largest product of probabilities among those that fit; exact as `best` is.

        An option of probability zero is a last resort: it is taken only where nothing else fits.

        Raises:
            InputError: A decision is missing, or its probabilities are not at least 0 with sum 1.
            InfeasibleError: No network fits.
        """
        rows = self._per_option(probabilities, "probabilities")
        with np.errstate(divide="ignore"):
            return self.best({decision.name: np.log(_checked_distribution(decision.name, row))
                              for decision, row in zip(self.space.decisions, rows, strict=True)}, max_cost)

    # Looking at it

    def graph(self) -> networkx.MultiDiGraph:
        """The readable view.

        A node is `(step, shape)`, with the `layer` that it enters (None after the last); an edge's key is its option, with
        `block` and `cost` in the unit. Every path from the input to a node of the last step is a network.
        """
        graph = networkx.MultiDiGraph(space=self.space.name, unit=self.unit)
        for position, (step, stage) in enumerate(zip(self.space.steps, self._stages, strict=True)):
            for state, row in enumerate(stage.states):
                node = (position, step.inputs[row])
                graph.add_node(node, layer=step.name)
                for column, option in enumerate(stage.options):
                    edge = step.edges[row * len(step.options) + option]
                    target = (position + 1, step.outputs[edge.target])
                    graph.add_node(target, layer=None)
                    graph.add_edge(node, target, step.options[option], block=edge.block,
                                   cost=self._ticks.cost(int(stage.cost[state, column])))
        return graph

    # Derived once, on demand; all follow from the stages

    @cached_property
    def _size(self) -> int:
        return math.prod(stage.options.size for stage in self._stages)

    @cached_property
    def _shortest(self) -> list[Ints]:
        return _potentials(self._stages, np.min)

    @cached_property
    def _longest(self) -> list[Ints]:
        return _potentials(self._stages, np.max)

    @cached_property
    def _least(self) -> int:
        return int(self._shortest[0][0]) + self._constant

    @cached_property
    def _most(self) -> int:
        return int(self._longest[0][0]) + self._constant

    @property
    def _reach(self) -> int:
        """The largest slack that any path spends."""
        return self._most - self._least

    @cached_property
    def _detours(self) -> list[Ints]:
        """Reduced costs: how much more an edge costs than the cheapest way to the end. Along a path they sum to its slack."""
        return [stage.cost + onward[stage.target] - here[:, None]
                for stage, here, onward in zip(self._stages, self._shortest, self._shortest[1:], strict=False)]

    @cached_property
    def _diagrams(self) -> Callable[[int], "_Diagram"]:
        # Bounded, and pure: a diagram depends on the slack alone. No reference to self, so that no cycle keeps tables alive.
        return lru_cache(maxsize=2)(partial(_diagram_within, self._stages, self._detours, self._reach, self._size,
                                            self._resolution))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _DERIVED}

    # Helpers

    def _slack(self, max_cost: float | None) -> int:
        """Ticks between the cheapest network and the budget; negative when nothing fits, `_reach` when everything does."""
        if max_cost is None:
            return self._reach
        if isinstance(max_cost, bool) or not isinstance(max_cost, int | float | np.number) or math.isnan(max_cost):
            raise InputError(f"A budget must be a number, but is {max_cost!r}.")
        if max_cost >= self.max_cost():
            return self._reach
        return self._ticks.round_down(float(max_cost)) - self._least if max_cost >= self.min_cost() else -1

    def _feasible_slack(self, max_cost: float | None) -> int:
        slack = self._slack(max_cost)
        if slack < 0:
            cheap, dear = ("fastest", "slowest") if self.unit in ("s", "ms", "us", "ns") else ("smallest", "largest")
            unit = f" {self.unit}" if self.unit else ""
            least, most = _rounded_up(self.min_cost()), _rounded_up(self.max_cost())
            which = "" if self._size == self.space.size else "with these restrictions "
            raise InfeasibleError(f"No network of space {self.space.name!r} {which}fits within {max_cost}{unit}: the {cheap} is "
                                  f"{least}{unit} and the {dear} {most}{unit}; raise the budget to at least {least}{unit}.")
        return slack

    def _per_option(self, tables: Mapping[str, Sequence[float] | Floats], what: str) -> list[Floats]:
        """One checked row per decision."""
        rows = []
        for decision in self.space.decisions:
            if decision.name not in tables:
                raise InputError(f"Every decision needs {what}, but {decision.name!r} has none.")
            row = np.asarray(tables[decision.name], np.float64)
            if row.shape != (len(decision.options),):
                raise InputError(f"The {what} of decision {decision.name!r} must be one number for each of its "
                                 f"{len(decision.options)} options, but have the shape {row.shape}.")
            rows.append(row)
        unknown = tables.keys() - {decision.name for decision in self.space.decisions}
        if unknown:
            raise InputError(f"Space {self.space.name!r} has no decision {min(unknown)!r} to take {what} for.")
        return rows

    def _checked_columns(self, indices: NDArray[np.integer[Any]]) -> Ints:
        array = np.asarray(indices)
        decisions = self.space.decisions
        if array.ndim != 2 or array.shape[1] != len(decisions) or not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"Option indices must be whole numbers of shape (N, {len(decisions)}), but are {array.dtype} of "
                             f"shape {array.shape}.")
        columns = np.ascontiguousarray(array.T, np.int64)
        for decision, column in zip(decisions, columns, strict=True):
            if column.size and not 0 <= column.min() <= column.max() < len(decision.options):
                raise InputError(f"Decision {decision.name!r} has the option indices 0 to {len(decision.options) - 1}, but "
                                 f"{column.min() if column.min() < 0 else column.max()} is given.")
        return columns

    def _follow(self, choices: Iterable[NDArray[np.intp]]) -> Architecture:
        """The path that takes in every stage what its policy chooses at the state."""
        state, taken = 0, []
        for stage, choice in zip(self._stages, choices, strict=True):
            taken.append(int(choice[state]))
            state = int(stage.target[state, taken[-1]])
        return self._architecture(taken)

    def _architecture(self, taken: Sequence[int]) -> Architecture:
        row = [int(stage.options[position]) for stage, position in zip(self._stages, taken, strict=True)
               if stage.column is not None]
        return self.space.architectures(np.array([row]))[0]


_DERIVED = frozenset(name for name, value in vars(Trellis).items() if isinstance(value, cached_property))


# The grid


@dataclass(frozen=True)
class _Ticks:
    """Costs as whole numbers: `per_unit` ticks make one unit of cost.

    A tick count is turned into a cost by one correctly rounded division, so equal counts give equal floats and the order
    is kept. `per_unit` is a power of ten: costs with few decimals stay what they are (0.1 + 0.2 fits a budget of 0.3).
    """

    per_unit: float

    @classmethod
    def for_costs(cls, values: Sequence[Floats], constant: float) -> "_Ticks":
        largest = sum(float(value.max()) for value in values) + abs(constant)
        if largest >= MAX_TICKS:
            raise InputError(f"The cost of a network must stay below {MAX_TICKS:.3g}, but may reach {largest:.3g}: use a larger "
                             "unit.")
        if constant == math.floor(constant) and all((value == np.floor(value)).all() for value in values):
            return cls(1.0)
        return cls(10.0 ** min(max(13 - math.floor(math.log10(largest)), 0), 22))  # powers up to 1e22 are exact

    def round_up(self, values: Floats) -> Ints:
        """The fewest ticks that are worth at least the value."""
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
class _Stage:
    """A step of the space as arrays over S input states and K options.

    Attributes:
        name: The layer's name.
        column: Position among the decisions; None for a fixed layer.
        states: Input shape of every state, as index into the step's inputs; (S,).
        options: Index of every option in the step; (K,).
        target: State of the next stage that an edge leads to; (S, K).
        cost: In ticks; (S, K).
        outputs: Number of states of the next stage.
    """

    name: str
    column: int | None
    states: NDArray[np.intp]
    options: NDArray[np.intp]
    target: NDArray[np.intp]
    cost: Ints
    outputs: int


def _edge_costs(space: SearchSpace, step: Step, costs: CostModel | None) -> Floats:
    values = np.zeros((len(step.inputs), len(step.options)))
    for edge in step.edges if costs else ():
        value = float(costs.edge_cost(edge)) if costs else 0.0
        if not 0 <= value < math.inf:
            raise InputError(f"A cost must be a finite number of at least 0, but layer {step.name!r} of space {space.name!r}, "
                             f"option {step.options[edge.option]!r} at {edge.input_shape}, costs {value}.")
        values[edge.source, edge.option] = value
    return values


def _stages(space: SearchSpace, costs: Sequence[Ints]) -> Iterator[_Stage]:
    columns = {decision.name: column for column, decision in enumerate(space.decisions)}
    for step, cost in zip(space.steps, costs, strict=True):
        target = np.array([edge.target for edge in step.edges], np.intp).reshape(cost.shape)
        yield _Stage(step.name, columns.get(step.name), np.arange(cost.shape[0]), np.arange(cost.shape[1]), target, cost,
                     len(step.outputs))


def _narrowed(stages: Sequence[_Stage], masks: Mapping[int, NDArray[np.bool_]]) -> Iterator[_Stage]:
    """Keeps the allowed options, and the states that can still be reached."""
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
        edges = reached[:, None], kept
        target = stage.target[edges]
        states = stage.states[reached]
        reached, numbers = _distinct(target.ravel(), stage.outputs)
        yield _Stage(stage.name, stage.column, states, stage.options[kept], numbers.reshape(target.shape), stage.cost[edges],
                     reached.size)


def _mask(name: str, options: tuple[str, ...], wanted: Allowed) -> NDArray[np.bool_]:
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


def _potentials(stages: Sequence[_Stage], reduce: Callable[..., Any]) -> list[Ints]:
    """Cost of the cheapest (or dearest) way to the end from every state of every stage, and zeros after the last."""
    onward = np.zeros(stages[-1].outputs, np.int64)
    potentials = [onward]
    for stage in reversed(stages):
        onward = reduce(stage.cost + onward[stage.target], axis=1)
        potentials.append(onward)
    return potentials[::-1]


# Counting and sampling


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
class _Diagram:
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


def _diagram_within(stages: Sequence[_Stage], detours: Sequence[Ints], reach: int, size: int, resolution: int,
                    slack: int) -> _Diagram:
    """The diagram of a slack: of exact costs if those are few, of rounded ones otherwise.

    Which it is does not depend on the slack, beyond being at most `resolution`; together with rounding in proportion to
    the slack, that makes counts grow with the budget.
    """
    if slack >= reach:  # nothing to keep account of
        return _diagram(stages, [np.zeros_like(detour) for detour in detours], 0)
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


def _diagram(stages: Sequence[_Stage], detours: Sequence[Ints], slack: int, max_rows: int | None = None) -> _Diagram:
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
            rows, numbers = _distinct((stage.target[state] * (slack + 1) + total)[fits], stage.outputs * (slack + 1))
            if max_rows is not None and rows.size > max_rows * stage.outputs:
                raise _TooManyRows
            following = np.full(total.shape, -1, np.intp)
            following[fits] = numbers
            state, spent = np.divmod(rows, slack + 1)
        branchings.append(_Branching(stage.column, stage.options, following))
    return _Diagram(tuple(branchings))


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


def _distinct(keys: NDArray[np.integer[Any]], span: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The distinct keys below `span` in order, and the number of each key among them."""
    if span > 8 * keys.size + 64:
        distinct, numbers = np.unique(keys, return_inverse=True)
        return distinct, numbers.reshape(keys.shape)
    present = np.zeros(span, np.bool_)
    present[keys] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[keys]


# The best path within a budget


@dataclass(frozen=True)
class _Policy:
    """The best way to the end from every state when slack has a price: one array over states for every stage.

    Attributes:
        price: Score that a tick of slack is worth; infinite for the cheapest ways, whose values bound nothing.
        choice: Option taken.
        spent: Slack that the way takes.
        gained: Score that it brings.
    """

    price: float
    choice: list[NDArray[np.intp]]
    spent: list[Ints]
    gained: list[Floats]

    def bound(self, stage: int, state: NDArray[np.intp], left: Ints) -> Floats | float:
        """The most that any way from a state within the slack that is left can bring."""
        if math.isinf(self.price):
            return math.inf
        return self.gained[stage][state] + self.price * (left - self.spent[stage][state])


@dataclass
class _Incumbent:
    """The best path known so far: a prefix (a label), one edge, and a policy's way to the end."""

    score: float
    stage: int
    label: int
    option: int
    policy: _Policy


@dataclass(frozen=True)
class _Problem:
    """Maximise the sum of scores while detours stay within the slack."""

    targets: list[NDArray[np.intp]]
    detours: list[Ints]
    scores: list[Floats]
    slack: int

    def solve(self) -> list[int]:
        """Position of the option that the best path takes in every stage.

        Grows prefixes stage by stage. One is dropped when another at the same state spends no more and scores no less, or
        when no policy's price lets it beat the best path known, which every prefix improves by its cheapest completions.
        """
        policies = self._policies()
        tolerance = 1e-13 * sum(float(np.abs(score).max()) for score in self.scores)
        state = np.zeros(1, np.intp)
        spent = np.zeros(1, np.int64)
        gained = np.zeros(1)
        history: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        best = _Incumbent(-math.inf, 0, 0, 0, policies[0])
        for stage, (target, detour, score) in enumerate(zip(self.targets, self.detours, self.scores, strict=True)):
            label, option = np.nonzero(spent[:, None] + detour[state] <= self.slack)
            edge = state[label], option
            state, spent, gained = target[edge], spent[label] + detour[edge], gained[label] + score[edge]
            for policy in policies:
                fits = spent + policy.spent[stage + 1][state] <= self.slack
                total = np.where(fits, gained + policy.gained[stage + 1][state], -np.inf)
                found = int(total.argmax())
                if total[found] > best.score:
                    best = _Incumbent(float(total[found]), stage, int(label[found]), int(option[found]), policy)
            promising = np.ones(state.size, np.bool_)
            for policy in policies:
                promising &= gained + policy.bound(stage + 1, state, self.slack - spent) > best.score + tolerance
            kept = _pareto(state, spent, gained, np.flatnonzero(promising))
            if kept.size > _MAX_LABELS:
                kept = kept[np.linspace(0, kept.size - 1, _MAX_LABELS).astype(np.intp)]
            if not kept.size:
                break
            state, spent, gained = state[kept], spent[kept], gained[kept]
            history.append((label[kept], option[kept]))
        return self._path(best, history)

    def _policies(self) -> list[_Policy]:
        """The cheapest ways, the best ones, and those at the prices between: the breakpoints next to the slack."""
        low, high = self._policy(math.inf), self._policy(0.0)
        policies = [low, high]
        for _ in range(64):  # a handful: every turn finds a new vertex of the convex hull, or ends
            if high.spent[0][0] <= self.slack:
                break
            rise, run = high.gained[0][0] - low.gained[0][0], float(high.spent[0][0] - low.spent[0][0])
            middle = self._policy(max(rise / run, 0.0))
            policies.append(middle)
            if middle.spent[0][0] in (low.spent[0][0], high.spent[0][0]):
                break
            low, high = (middle, high) if middle.spent[0][0] <= self.slack else (low, middle)
        return [*policies[:2], *policies[2:][-6:]]

    def _policy(self, price: float) -> _Policy:
        outputs = int(self.targets[-1].max()) + 1
        choices: list[NDArray[np.intp]] = []
        spents, gaineds = [np.zeros(outputs, np.int64)], [np.zeros(outputs)]
        for target, detour, score in zip(self.targets[::-1], self.detours[::-1], self.scores[::-1], strict=True):
            spent, gained = detour + spents[-1][target], score + gaineds[-1][target]
            value = np.where(spent == 0, gained, -np.inf) if math.isinf(price) else gained - price * spent
            choice = value.argmax(axis=1)
            at = np.arange(choice.size), choice
            choices.append(choice)
            spents.append(spent[at])
            gaineds.append(gained[at])
        return _Policy(price, choices[::-1], spents[::-1], gaineds[::-1])

    def _path(self, best: _Incumbent, history: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> list[int]:
        taken = [best.option]
        label = best.label
        for labels, options in reversed(history[:best.stage]):
            taken.append(int(options[label]))
            label = int(labels[label])
        taken.reverse()
        state = 0
        for target, option in zip(self.targets, taken, strict=False):
            state = int(target[state, option])
        for target, choice in zip(self.targets[len(taken):], best.policy.choice[len(taken):], strict=True):
            taken.append(int(choice[state]))
            state = int(target[state, taken[-1]])
        return taken


def _pareto(state: NDArray[np.intp], spent: Ints, gained: Floats, among: NDArray[np.intp]) -> NDArray[np.intp]:
    """Those labels that no other at the same state matches in score without spending more; by state, then slack spent."""
    order = among[np.lexsort((-gained[among], spent[among], state[among]))]
    kept = []
    for group in np.split(order, np.flatnonzero(np.diff(state[order])) + 1):
        record = np.maximum.accumulate(gained[group])
        kept.append(group[np.append(True, gained[group][1:] > record[:-1])] if group.size else group)
    return np.concatenate(kept)


def _without_infinities(scores: Sequence[Floats]) -> list[Floats]:
    """Replaces minus infinity by a score so low that one fewer of them outweighs everything else."""
    finite = [score[np.isfinite(score)] for score in scores]
    if all(part.size == score.size for part, score in zip(finite, scores, strict=True)):
        return list(scores)
    total_range = sum(float(np.ptp(part)) for part in finite if part.size)
    drop = total_range + 1 + max((float(np.abs(part).max()) for part in finite if part.size), default=0.0)
    return [np.where(np.isfinite(score), score, (float(part.min()) if part.size else 0.0) - drop)
            for part, score in zip(finite, scores, strict=True)]


# Small checks


def _checked_distribution(name: str, row: Floats) -> Floats:
    if not (np.isfinite(row).all() and (row >= 0).all() and abs(row.sum() - 1) < 1e-3):  # 1e-3: half-precision softmax
        raise InputError(f"The probabilities of decision {name!r} must be at least 0 and sum to 1, but are {row.tolist()}.")
    return row


def _distribution(stage: _Stage, row: Floats) -> Floats:
    allowed = _checked_distribution(stage.name, row)[stage.options]
    if not allowed.sum() > 0:
        raise InputError(f"The options that a restriction leaves to decision {stage.name!r} all have probability 0.")
    return allowed / allowed.sum()


def _generator(seed: int | np.random.Generator) -> np.random.Generator:
    if isinstance(seed, np.random.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"A seed must be a whole number of at least 0 or a numpy generator, but is {seed!r}.")
    return np.random.default_rng(seed)


def _rounded_up(value: float) -> str:
    """At least the value, in four digits (whole numbers in full), so that following the advice works."""
    exact = Decimal(value)
    if value == math.floor(value):
        return f"{exact:f}"
    return f"{Context(prec=4, rounding=ROUND_CEILING).plus(exact).normalize():f}"
