"""The trellis: a space and what its edges cost. A network is a path; every question about a budget is answered here, exactly.

Costs are whole numbers (`grid.py`). Shortest-path potentials turn an edge's cost into its *detour* over the cheapest way on,
as in A*: the cheapest path costs nothing, and what counting and sampling divide into steps (`diagram.py`) is the *slack* above
it, not the budget. Optima are found without any rounding (`optimum.py`).
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.costs import CostModel
from hwnas.ir.diagram import Diagram, diagram_within
from hwnas.ir.grid import (
    FORBIDDEN,
    Allowed,
    Floats,
    Ints,
    Stage,
    Ticks,
    build_stages,
    dearest,
    edge_costs,
    longest,
    narrowed,
    option_mask,
    reachable,
    shortest,
    ways,
)
from hwnas.ir.optimum import BestPath, without_infinities
from hwnas.ir.steps import Edge, Space, Step

if TYPE_CHECKING:
    import networkx

Scores = Mapping[str, Sequence[float] | Floats] | Callable[[Step, Edge], float]

MAX_RESOLUTION = 1 << 14  # times the most ticks it still fits in 64 bits


class Trellis:
    """A search space with a cost on every edge; immutable, and no question changes it.

    Every answer is about the paths of finite cost that `restrict` has left: an edge of infinite cost (a block that a runtime
    refuses) is no edge. A budget (`max_cost`) is in the cost model's unit; None and infinity mean no limit.

    Args:
        space: The space.
        costs: What edges cost; None for every path and no costs.
        resolution: Into how many steps counting and sampling divide the slack, 1 to 16384: more is
            slower and leaves less out.

    Raises:
        InputError: A cost is not a number of at least zero.
        InfeasibleError: Every path has an edge of infinite cost; names the layer where none is left.
    """

    def __init__(self, space: Space, costs: CostModel | None = None, *, resolution: int = 4096) -> None:
        if not 1 <= resolution <= MAX_RESOLUTION:
            raise InputError(f"A resolution must be 1 to {MAX_RESOLUTION}, but is {resolution}.")
        self.space = space
        self.unit = costs.unit if costs else ""
        self._resolution = resolution
        values = [edge_costs(space, step, costs) for step in space.steps]
        constant = float(costs.constant) if costs else 0.0
        if not math.isfinite(constant):
            raise InputError(f"A cost model's constant must be a finite number, but is {constant}.")
        self._ticks = Ticks.for_costs(values, constant)
        self._constant = int(self._ticks.round_up(np.array(constant)))
        self._all_stages = tuple(build_stages(space, values, self._ticks))
        refused = any(np.isinf(value[step.targets >= 0]).any() for step, value in zip(space.steps, values, strict=True))
        self._stages = tuple(reachable(space.name, self._all_stages)) if refused else self._all_stages

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
        return self._follow([dearest(stage, onward).argmax(axis=1)
                             for stage, onward in zip(self._stages, self._longest[1:], strict=True)])

    def feasible(self, max_cost: float | None) -> bool:
        """Whether any network fits."""
        return self._slack(max_cost) >= 0

    # Counting and sampling

    def count(self, max_cost: float | None = None) -> int:
        """How many networks fit.

        Never more than there are; never less with a larger budget. Exact without a budget, wherever the slack is at most
        `resolution` ticks, and in spaces with few distinct costs; otherwise some of the networks that keep the budget by
        a small share of the slack are left out; a finer resolution leaves out fewer.
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
        for stage in self._stages:  # what branches is drawn below; any other decision has one option
            if stage.column is not None:
                columns[stage.column] = stage.options[0]
        diagram.sample(columns, _generator(seed))
        return columns.T

    def indices_within(self, max_cost: float | None, limit: int) -> Ints | None:
        """Every network that fits, as option indices of shape (n, decisions), or None where more than `limit` do.

        Nothing is rounded, so that these may be more than `count` counts.

        Raises:
            InfeasibleError: No network fits; names the achievable range.
        """
        slack = self._feasible_slack(max_cost)
        rows = np.zeros((1, len(self.space.decisions)), np.int64)
        state = np.zeros(1, np.intp)
        spent = np.zeros(1, np.int64)
        for stage, detour in zip(self._stages, self._detours, strict=True):
            total = spent[:, None] + detour[state]
            prefix, option = np.nonzero(total <= slack)
            if prefix.size > limit:  # each has a way to the end without a detour, so that there are at least as many networks
                return None
            rows = rows[prefix]
            if stage.column is not None:
                rows[:, stage.column] = stage.options[option]
            spent = total[prefix, option]
            state = stage.target[state[prefix], option]
        return rows

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
            cost = stage.cost.ravel()[edge]
            if np.max(cost, initial=0) >= FORBIDDEN:
                raise InputError("Options must be allowed after those before them and have a finite cost, but a given network "
                                 f"breaks that at layer {stage.name!r}.")
            ticks += cost
            state = stage.target.ravel()[edge] if stage.outputs > 1 else 0
        return self._ticks.costs(ticks)

    def cost(self, architecture: Architecture) -> float:
        """Cost of one network."""
        return float(self.costs_of(self.space.indices([architecture]))[0])

    def expected_cost(self, probabilities: Mapping[str, Sequence[float] | Floats]) -> float:
        """Mean cost when every decision is drawn on its own; exact also where a cost depends on earlier choices.

        Where earlier choices or infinite costs exclude options, the probabilities of the others are rescaled.

        Args:
            probabilities: Decision name to one probability per option; among restricted options they are rescaled.

        Raises:
            InputError: A decision is missing, or its probabilities are not at least 0 with sum 1.
        """
        tables = self._per_option(probabilities, "probabilities")
        arriving: NDArray[Any] = np.ones(1)
        expected = float(self._constant)
        for stage, onward in zip(self._stages, self._shortest[1:], strict=True):
            chosen = np.ones(1) if stage.column is None else _distribution(stage, tables[stage.column])
            there = (stage.cost < FORBIDDEN) & (onward < FORBIDDEN)[stage.target]
            taken = np.where(there, chosen, 0)
            total = taken.sum(axis=1, keepdims=True)
            if (total[arriving > 0] <= 0).any():
                raise InputError(f"The options that may follow at decision {stage.name!r} must have some probability, but all "
                                 "have 0 after a choice that is possible.")
            taken = arriving[:, None] * np.divide(taken, total, out=taken, where=total > 0)
            expected += float((taken * np.where(there, stage.cost, 0)).sum())
            arriving = np.bincount(stage.target.ravel(), taken.ravel(), stage.outputs)
        return expected / self._ticks.per_unit

    # Fewer paths

    def restrict(self, allowed: Mapping[str, Allowed]) -> "Trellis":
        """The same space with fewer edges; restricting again narrows further.

        Args:
            allowed: Decision name to the names of the options that stay, or to a boolean per option. Decisions that are
                not named keep all their options.

        Raises:
            InputError: A decision or option does not exist, or no path is left.
        """
        decisions = self.space.decisions
        columns = {decision.name: column for column, decision in enumerate(decisions)}
        masks = {}
        for name, wanted in allowed.items():
            if name not in columns:
                raise InputError(f"A restriction names decisions of space {self.space.name!r}, which has no {name!r}.")
            masks[columns[name]] = option_mask(name, tuple(decisions[columns[name]].options), wanted)
        restricted = object.__new__(Trellis)
        restricted.__dict__.update({name: value for name, value in self.__dict__.items() if name not in _DERIVED})
        restricted._stages = tuple(narrowed(self._stages, masks))
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
                Minus infinity marks a last resort: as few as possible are taken. What is said of edges that are not there
                does not count.
            max_cost: The budget.

        Raises:
            InputError: A decision is missing, or a score is NaN or plus infinity.
            InfeasibleError: No network fits.
        """
        slack = self._feasible_slack(max_cost)
        if callable(scores):
            tables = [np.append([scores(step, edge) for edge in step.edges], 0.0)[step.numbers] for step in self.space.steps]
            values = [table[stage.states][:, stage.options] for table, stage in zip(tables, self._stages, strict=True)]
        else:
            rows = self._per_option(scores, "scores")
            values = [np.zeros(stage.cost.shape) if stage.column is None
                      else np.broadcast_to(rows[stage.column][stage.options], stage.cost.shape) for stage in self._stages]
        values = [np.where(stage.cost < FORBIDDEN, value, 0.0) for stage, value in zip(self._stages, values, strict=True)]
        for stage, value in zip(self._stages, values, strict=True):
            if np.isnan(value).any() or (value == np.inf).any():
                raise InputError(f"A score must be a number or minus infinity, but layer {stage.name!r} has "
                                 f"{'NaN' if np.isnan(value).any() else 'plus infinity'}.")
        problem = BestPath([stage.target for stage in self._stages], self._detours, without_infinities(values), slack)
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

    def graph(self) -> "networkx.MultiDiGraph":
        """The readable view.

        A node is `(step, state)`, with the `layer` that it enters (None after the last); an edge's key is its option, with
        `parts` and `cost` in the unit. Every path from the input to a node of the last step is a network.
        """
        import networkx  # which takes a tenth of a second, and few need

        graph = networkx.MultiDiGraph(space=self.space.name, unit=self.unit)
        for position, (step, stage) in enumerate(zip(self.space.steps, self._stages, strict=True)):
            for state, row in enumerate(stage.states):
                node = (position, step.inputs[row])
                graph.add_node(node, layer=step.name)
                for column, option in enumerate(stage.options):
                    edge = step.edge(row, option)
                    if edge is None or stage.cost[state, column] >= FORBIDDEN:
                        continue
                    target = (position + 1, step.outputs[edge.target])
                    graph.add_node(target, layer=None)
                    graph.add_edge(node, target, step.options[option], parts=edge.parts,
                                   cost=self._ticks.cost(int(stage.cost[state, column])))
        return graph

    # Derived once, on demand; all follow from the stages

    @cached_property
    def _size(self) -> int:
        return ways(self._stages)

    @cached_property
    def _shortest(self) -> list[Ints]:
        return shortest(self._stages)

    @cached_property
    def _longest(self) -> list[Ints]:
        return longest(self._stages)

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
        through = [stage.cost + onward[stage.target] for stage, onward in zip(self._stages, self._shortest[1:], strict=True)]
        return [np.where(total < FORBIDDEN, total - here[:, None], FORBIDDEN)
                for total, here in zip(through, self._shortest[:-1], strict=True)]

    @cached_property
    def _diagrams(self) -> Callable[[int], "Diagram"]:
        # Bounded, and pure: a diagram depends on the slack alone. No reference to self, so that no cycle keeps tables alive.
        return lru_cache(maxsize=2)(partial(diagram_within, self._stages, self._detours, self._reach, self._size,
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
            which = "" if self._size == ways(self._all_stages) else "with these restrictions "
            raise InfeasibleError(f"No network of space {self.space.name!r} {which}fits within {max_cost:g}{unit}: the {cheap} "
                                  f"is {least}{unit} and the {dear} {most}{unit}; raise the budget to at least {least}{unit}.")
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


def _checked_distribution(name: str, row: Floats) -> Floats:
    if not (np.isfinite(row).all() and (row >= 0).all() and abs(row.sum() - 1) < 1e-3):  # 1e-3: half-precision softmax
        raise InputError(f"The probabilities of decision {name!r} must be at least 0 and sum to 1, but are {row.tolist()}.")
    return row


def _distribution(stage: Stage, row: Floats) -> Floats:
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
