"""Random spaces and costs, small enough to enumerate, and the enumeration that every answer is judged by."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from hwnas.errors import InputError
from hwnas.ir.blocks import Block, ConvBlock, Identity, SeparableConv
from hwnas.ir.costs import CostModel
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.steps import Edge


@dataclass(frozen=True)
class WorkloadCosts:
    """A cost for every workload: what a latency table is, without the measuring."""

    costs: Mapping[str, float]
    constant: float = 0.0
    unit: str = field(default="ms", compare=False)

    def edge_cost(self, edge: Edge) -> float:
        return self.costs[edge.workload]


def _blocks(widths: tuple[int, ...]) -> st.SearchStrategy[Block]:
    width = st.sampled_from(widths)
    return st.one_of(st.builds(ConvBlock, width, st.sampled_from([1, 3]), st.sampled_from([1, 2])),
                     st.builds(SeparableConv, width), st.just(Identity()))


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Up to four decisions between up to four options, up to two fixed layers; widths and strides may vary within a layer.

    Some are full, in others options exclude each other: by conditions, or because a resolution has become too small.
    """
    partial = draw(st.booleans())
    size = draw(st.sampled_from([2, 3])) if partial else 64
    widths = draw(st.sampled_from([(2,), (2, 3), (2, 3, 4)]))
    kinds = draw(st.permutations("dddd"[:draw(st.integers(1, 4))] + "ff"[:draw(st.integers(0, 2))]))
    layers: list[Fixed | Decision] = []
    for index, kind in enumerate(kinds):
        if kind == "f":
            layers.append(Fixed(f"fixed{index}", draw(_blocks(widths))))
        else:
            blocks = draw(st.lists(_blocks(widths), min_size=1, max_size=4, unique=True))
            options = {f"option{number}": block for number, block in enumerate(blocks)}
            before = next((layer for layer in reversed(layers) if isinstance(layer, Decision)), None)
            after = {}
            if partial and before:
                allowed = st.lists(st.sampled_from(list(before.options)), min_size=1, unique=True)
                after = draw(st.dictionaries(st.sampled_from(list(options)), allowed, max_size=3))
            layers.append(Decision(f"choice{index}", options, after=after, where_fits=partial))
    try:
        return SearchSpace("random", TensorShape(2, size, size), tuple(layers))
    except InputError:  # nothing left, or an option that nothing can take
        assume(not partial)
        raise


_NUMBERS: dict[str, st.SearchStrategy[float]] = {
    "few": st.integers(0, 3).map(float),
    "whole": st.integers(0, 10**9).map(float),
    "decimal": st.integers(0, 30).map(lambda tenths: tenths / 10),
    "real": st.floats(0, 10),
    "tiny": st.floats(0, 1e-9),
}


@st.composite
def costs(draw: st.DrawFn, space: SearchSpace) -> WorkloadCosts:
    """Whole, decimal or real costs, equal for equal workloads, and a constant of either sign."""
    number = _NUMBERS[draw(st.sampled_from(sorted(_NUMBERS)))]
    workloads = sorted({edge.workload for step in space.steps for edge in step.edges})
    values = draw(st.lists(number, min_size=len(workloads), max_size=len(workloads)))
    return WorkloadCosts(dict(zip(workloads, values, strict=True)), draw(st.sampled_from([0.0, 2.0, 0.3, -0.25])))


@st.composite
def spaces_with_costs(draw: st.DrawFn) -> tuple[SearchSpace, WorkloadCosts]:
    """Some workloads may cost infinity, as long as a network without them is left."""
    space, model = draw(spaces_with_refusals())
    assume(possible_indices(space, model).size)
    return space, model


@st.composite
def spaces_with_refusals(draw: st.DrawFn) -> tuple[SearchSpace, WorkloadCosts]:
    """Some workloads may cost infinity, and perhaps no network is left."""
    space = draw(spaces())
    model = draw(costs(space))
    refused = draw(st.one_of(st.just([]), st.lists(st.sampled_from(sorted(model.costs)), unique=True, max_size=6)))
    return space, WorkloadCosts({**model.costs, **dict.fromkeys(refused, math.inf)}, model.constant)


def all_indices(space: SearchSpace) -> np.ndarray:
    """Every network as option indices."""
    ranges = [range(len(decision.options)) for decision in space.decisions]
    rows = [row for row in itertools.product(*ranges) if is_allowed(space, row)]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(ranges))


def possible_indices(space: SearchSpace, model: CostModel) -> np.ndarray:
    """Those of a finite cost."""
    rows = all_indices(space)
    return rows[[all(model.edge_cost(edge) < math.inf for edge in walked_edges(space, row)) for row in rows]]


def is_allowed(space: SearchSpace, row: tuple[int, ...]) -> bool:
    """Whether options form a network, from the layers alone: every condition holds, every block takes what reaches it."""
    names = [list(decision.options)[index] for decision, index in zip(space.decisions, row, strict=True)]
    for before, decision, name in zip(names, space.decisions[1:], names[1:], strict=False):
        if name in decision.after and before not in decision.after[name]:
            return False
    shape, chosen = space.input_shape, iter(names)
    for layer in space.layers:
        block = layer.options[next(chosen)] if isinstance(layer, Decision) else layer.block
        try:
            shape = block.output_shape(shape)
        except InputError:
            return False
    return True


def walked_edges(space: SearchSpace, row: np.ndarray) -> list[Edge]:
    """The edges of one network, found by following states."""
    state, edges, options = 0, [], iter(row.tolist())
    for step in space.steps:
        option = next(options) if step.is_decision else 0
        (edge,) = [edge for edge in step.edges if (edge.source, edge.option) == (state, option)]
        edges.append(edge)
        state = edge.target
    return edges


def walked_cost(space: SearchSpace, model: CostModel, row: np.ndarray) -> Fraction:
    """The cost of one network without any rounding."""
    return sum((Fraction(model.edge_cost(edge)) for edge in walked_edges(space, row)), Fraction(model.constant))
