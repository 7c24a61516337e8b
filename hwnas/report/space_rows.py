"""A search space as rows to be shown: what each layer decides, between which options, and what each of them costs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from hwnas.ir.cells import CellKind, CellSpace, Site
from hwnas.ir.costs import MacsCost
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Conditioned
from hwnas.ir.steps import Space, Step

_MOST_RUNS = 8
Value = TypeVar("Value")


@dataclass(frozen=True)
class Option:
    """One option of a layer.

    Attributes:
        name: As it is written in an architecture.
        macs: What it adds for one image, at the largest of the shapes that can reach it; in a cell, in all that repeat it.
        always: Whether every state that reaches the layer allows it.
    """

    name: str
    macs: int
    always: bool


@dataclass(frozen=True)
class Row:
    """A layer, or a decision in a kind of cell.

    Attributes:
        name: The layer's.
        is_decision: False for a fixed layer, which has one option.
        options: In their order.
        outputs: The different shapes that leave it; none for a decision in a cell.
    """

    name: str
    is_decision: bool
    options: tuple[Option, ...]
    outputs: tuple[TensorShape, ...]

    @property
    def channels(self) -> str:
        """Width that leaves it: `24`, or `16 to 64`."""
        return span((shape.channels for shape in self.outputs), str)

    @property
    def resolution(self) -> str:
        """Height and width that leave it: `56x56`, or `4x4 to 7x7`."""
        return span((shape[1:] for shape in self.outputs), lambda size: "x".join(map(str, size)))

    @property
    def is_conditional(self) -> bool:
        """Whether it has options that not every state allows."""
        return not all(option.always for option in self.options)


def space_rows(space: Space) -> tuple[Row, ...]:
    """Every layer of a space, with what its options cost; of a space of cells, every decision and what surrounds the cells."""
    return tuple(_row(step) for step in space.steps)


def stacked_cells(space: CellSpace) -> list[Site]:
    """The cells of a space from input to output, each with the shape of its states."""
    genotypes = space.genotypes(space.any_architecture)
    return space.skeleton.sites({kind: genotype.concat for kind, genotype in genotypes.items()})[0]


def state_sources(kind: CellKind) -> dict[int, frozenset[int]]:
    """Every state that a kind of cell makes, with those that it may read."""
    sources: dict[int, set[int]] = {}
    for decision in kind.decisions:
        read = sources.setdefault(decision.state, set())
        for pick in decision.options.values():
            read.update(pick.sources, (source for _, source in pick.terms if source is not None))
    return {state: frozenset(read) for state, read in sorted(sources.items())}


def name_runs(names: Sequence[str]) -> list[tuple[str, int]]:
    """Neighbours whose names begin alike, as (common beginning, how many): as many as that makes, but at most eight.

    Names are cut at underscores: `conv_k3_w16` begins with `conv` and with `conv_k3`. One run with an empty name where no
    beginning divides them so that nobody is alone.
    """
    words = [name.split("_") for name in names]
    found = [("", len(names))]
    for cut in range(1, max(map(len, words))):
        for part in (slice(None, cut), slice(None, -cut)):
            beginnings = ("_".join(one[part] or one[:1]) for one in words)
            runs = [(beginning, len(list(group))) for beginning, group in groupby(beginnings)]
            if len(found) < len(runs) <= _MOST_RUNS and min(count for _, count in runs) > 1:
                found = runs
    return found


def span(values: Iterable[Value], text: Callable[[Value], str]) -> str:
    """The least and the greatest in words: `24`, `16 to 64`; nothing for no values."""
    ordered = sorted(set(values))  # type: ignore[type-var]
    return " to ".join(dict.fromkeys(text(value) for value in (*ordered[:1], *ordered[-1:])))


def state_shapes(states: Iterable[object]) -> tuple[TensorShape, ...]:
    """The different shapes among states of a space of layers, in order; a state of cells has none."""
    shapes = (state.shape if isinstance(state, Conditioned) else state for state in states)
    return tuple(dict.fromkeys(shape for shape in shapes if isinstance(shape, TensorShape)))


def _row(step: Step) -> Row:
    cost = MacsCost()
    macs, states = [0] * len(step.options), [0] * len(step.options)
    for edge in step.edges:
        macs[edge.option] = max(macs[edge.option], cost.edge_cost(edge))
        states[edge.option] += 1
    options = tuple(Option(name, most, count == len(step.inputs))
                    for name, most, count in zip(step.options, macs, states, strict=True))
    return Row(step.name, step.is_decision, options, state_shapes(step.outputs))
