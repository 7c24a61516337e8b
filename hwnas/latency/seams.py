"""Seams: what passing from one precision to another costs, between neighbours that are measured one by one.

An int8 convolution followed by an int8 block hands integers on; followed by a float block it has to give floats, and runtimes
then compute it in float altogether, convert, and change the memory layout. A block timed alone cannot know. So a network costs
the sum of its blocks, as in `latency.calibration`, and one more term wherever the precision changes: one *seam* for each place
where two layers meet, fitted on the whole networks of the table (the line's "per block" is then mostly "per change", and the
fit shrinks each seam towards it). Nothing is measured beyond what a table holds.

The trellis stays exact: its states here remember the precision that reaches a layer, so a seam is part of an edge's cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Block, Part
from hwnas.ir.network import Network
from hwnas.ir.quantized import HalfPrecision, Quantized, has_convolutions
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, SearchSpace
from hwnas.ir.steps import Edge, Space, Step
from hwnas.latency.calibration import WORTH, Calibration, fit_calibration
from hwnas.latency.effects import block_traits
from hwnas.latency.table import HeldOut, LatencyTable, NetworkRecord, Prediction, judge, measured_ratios, path_costs


@dataclass(frozen=True)
class SeamEdge(Edge):
    """An edge of a trellis that knows what came before.

    Attributes:
        seams: Names of the changes of precision on the edge; empty where there is none.
    """

    seams: tuple[str, ...] = ()


@dataclass(frozen=True)
class SeamSpace(Space):
    """The networks of a space of layers; its states also hold the precision of the last convolutions before them.

    Architectures are those of the space itself.

    Attributes:
        space: The space.
    """

    space: SearchSpace

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.space.name

    @property
    def input_shape(self) -> TensorShape:  # type: ignore[override]
        return self.space.input_shape

    @property
    def description(self) -> str:  # type: ignore[override]
        return self.space.description

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return self.space.decisions

    @property
    def hash(self) -> str:
        return self.space.hash

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        steps = []
        states: dict[tuple[int, str], int] = {(0, ""): 0}  # the space's state, and the precision that reaches it
        for step in self.space.steps:
            onward: dict[tuple[int, str], int] = {}
            edges = []
            for (state, before), source in states.items():
                for edge in (edge for edge in step.edges if edge.source == state):
                    after, seams = _follow(step.name, before, edge.parts)
                    target = onward.setdefault((edge.target, after), len(onward))
                    edges.append(SeamEdge(source, edge.option, target, edge.parts, seams))
            inputs, outputs = (tuple((names[state], before) for state, before in reached)
                               for names, reached in ((step.inputs, states), (step.outputs, onward)))
            steps.append(Step(step.name, step.is_decision, step.options, inputs, outputs, tuple(edges)))
            states = onward
        return tuple(steps)

    @cached_property
    def seams(self) -> tuple[str, ...]:
        """Every seam of the space, in order."""
        return tuple(dict.fromkeys(seam for step in self.steps for edge in step.edges for seam in _seams(edge)))

    def network(self, architecture: Architecture) -> Network:
        return self.space.network(architecture)

    def to_dict(self) -> dict[str, Any]:
        return self.space.to_dict()


@dataclass(frozen=True)
class SeamTable:
    """A latency table of a precision space with seams: a cost model for the trellis of its `search_space`, in milliseconds.

    It answers what a `LatencyTable` answers, by the same names.

    Attributes:
        table: What was measured.
    """

    table: LatencyTable

    unit = "ms"

    def __post_init__(self) -> None:
        if not isinstance(self.table.search_space, SearchSpace):
            raise InputError(f"Seams are between layers in order, but the space of this table, {self.table.space!r}, has none.")

    @cached_property
    def search_space(self) -> SeamSpace:
        """What a trellis of these costs is made of."""
        assert isinstance(self.table.search_space, SearchSpace)
        return SeamSpace(self.table.search_space)

    @cached_property
    def calibration(self) -> Calibration:
        """Fitted on all but the held-out networks; seams are among its corrections and count as blocks of no time."""
        records = [record for record in self.table.usable_networks if record.role != "held_out"]
        columns = [self._columns(record) for record in records]
        ratios = {key: self._ratio(key) for key in dict.fromkeys(key for row in columns for key in row)}
        counts = np.array([[row.count(key) for key in ratios] for row in columns], np.int64).reshape(len(records), len(ratios))
        parts = self.search_space.measured_parts
        traits = {key: block_traits(parts[key]) if key in parts else frozenset({"seam"}) for key in ratios}
        return fit_calibration(counts, ratios, [record.session_ratios for record in records], traits)

    @cached_property
    def held_out(self) -> HeldOut:
        """Error on networks that the fit has not seen."""
        records = self.table.judging_networks
        return judge(self.predicted_ratios(records), measured_ratios(records),
                     [self.errors(networks) for networks in self.table.judging_sittings], self.table.has_large_inputs)

    def errors(self, records: Sequence[NetworkRecord]) -> NDArray[np.float64]:
        """Measured over predicted, less one, of each network."""
        return measured_ratios(records) / self.predicted_ratios(records) - 1

    def predicted_ratios(self, records: Sequence[NetworkRecord]) -> NDArray[np.float64]:
        """What is predicted for each network, to the anchor."""
        return self._latencies([self._architecture(record) for record in records]) / self.table.anchor_ms

    @property
    def constant(self) -> float:
        return self.calibration.intercept * self.table.anchor_ms

    def edge_cost(self, edge: Edge) -> float:
        """Milliseconds that an edge of `search_space` adds; infinity where the runtime refuses a block of it.

        Raises:
            InputError: The table has no entry for a block, or the edge is of another space.
        """
        if not isinstance(edge, SeamEdge):
            raise InputError("What a seam costs is known on edges that know what came before: make the trellis of the "
                             "'search_space' of the table with seams.")
        if self.table.refusal(edge) is not None:
            return float("inf")
        return sum(self.calibration.cost(key, self._ratio(key)) for key in _keys(edge)) * self.table.anchor_ms

    def predict(self, architecture: Architecture) -> Prediction:
        """A network's latency with its 95 % interval.

        Raises:
            InputError: As `predict_many`.
        """
        return self.predict_many([architecture])[0]

    def promise_budget(self, max_latency_ms: float) -> float:
        """The predicted latency whose upper end is the budget: what a search may use for a promise to hold."""
        return max_latency_ms / (1 + self.held_out.interval)

    def predict_many(self, architectures: Sequence[Architecture]) -> list[Prediction]:
        """Latencies with 95 % intervals.

        Raises:
            InputError: An architecture is not of the space, the table lacks a block, or the runtime refuses one.
        """
        half = self.held_out.interval
        return [Prediction(latency, latency * max(0.0, 1 - half), latency * (1 + half))
                for latency in self._latencies(architectures).tolist()]

    def _latencies(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        rows = self.search_space.indices(architectures)
        return self.constant + path_costs(self.search_space, rows, self.table.require_runs, self.edge_cost)

    def _columns(self, record: NetworkRecord) -> list[str]:
        return [key for edge in self.search_space.path(self._architecture(record)) for key in _keys(edge)]

    def _architecture(self, record: NetworkRecord) -> Architecture:
        return self.search_space.architecture(record.choices)

    def _ratio(self, key: str) -> float:
        """A block's isolated ratio; a seam has none."""
        if key in self._seams:
            return 0.0
        if key not in self.table.entries:
            raise InputError(f"The table of {self.table.space!r} has no entry for {key}: complete it by profiling again.")
        return self.table.entries[key].ratio

    @cached_property
    def _seams(self) -> frozenset[str]:
        return frozenset(self.search_space.seams)


LatencyModel = LatencyTable | SeamTable
"""What predicts, and is searched with on the trellis of its `search_space`."""


def cost_model(table: LatencyTable) -> LatencyModel:
    """What predicts the networks of a table best: the table with seams where its space has some and they pay, else the table.

    They pay, as corrections do, where the calibrating networks are predicted better, each left out of the fit in turn.
    """
    if not isinstance(table.search_space, SearchSpace) or not SeamSpace(table.search_space).seams:
        return table
    seams = SeamTable(table)
    error, error_without = seams.calibration.leave_one_out_error, table.calibration.leave_one_out_error
    return table if error is None or error_without is None or error > WORTH * error_without else seams


def precision_of(block: Block) -> str:
    """What a block's convolutions compute with: `int8`, `w4_a8`, `bf16`, `fp32`, ..."""
    match block:
        case Quantized(weight_bits=weights, activation_bits=activations):
            return "int8" if weights == activations == 8 else f"w{weights}_a{activations}"
        case HalfPrecision(format=format):
            return format
        case _:
            return "fp32"


def _follow(layer: str, before: str, parts: tuple[Part, ...]) -> tuple[str, tuple[str, ...]]:
    """The precision that leaves an edge, and the seams on it; what has no convolutions passes on what reaches it."""
    seams = []
    for part in parts:
        if has_convolutions(part.block, part.input_shape):
            now = precision_of(part.block)
            if before not in ("", now):
                seams.append(f"seam before {layer}{'/' * bool(part.name)}{part.name}: {' and '.join(sorted((before, now)))}")
            before = now
    return before, tuple(seams)


def _seams(edge: Edge) -> tuple[str, ...]:
    return edge.seams if isinstance(edge, SeamEdge) else ()


def _keys(edge: Edge) -> list[str]:
    """What an edge counts: its measured blocks, and its seams."""
    return [*(part.workload for part in edge.parts if not part.block.is_free), *_seams(edge)]
