"""What a table says, in rows: its blocks with their costs, its networks beside their predictions, its layers with their options.

Everything follows from the table's own predictions, so it holds whatever its calibration is made of. Networks are predicted
with what changes of precision cost (`latency.seams`); what a block or a layer costs is without.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from hwnas.ir.steps import Edge, Step
from hwnas.latency.estimates import LEAST_BLOCKS, estimate_blocks
from hwnas.latency.refusals import network_of
from hwnas.latency.seams import cost_model
from hwnas.latency.table import LatencyTable

_MOST_NAMED = 3
_LONGEST_REASON = 100


@dataclass(frozen=True)
class BlockCost:
    """One entry of a table.

    Attributes:
        block: Signature.
        input_shape: As text, `24x56x56`.
        ratio: To the anchor, timed alone.
        isolated_ms: The same in milliseconds.
        isolated_lower_ms: Lower end of its 95 % interval over sessions; None where that is unknown.
        isolated_upper_ms: Upper end.
        latency_ms: What it adds to a network, after calibration; None for a block that the space does not have or that is
            refused.
        label: `ok`, `noisy`, `imported` or `estimated`.
        sessions: How many fresh sessions measured it; 0 for one of the latter two.
    """

    block: str
    input_shape: str
    ratio: float
    isolated_ms: float
    isolated_lower_ms: float | None
    isolated_upper_ms: float | None
    latency_ms: float | None
    label: str
    sessions: int

    @property
    def workload(self) -> str:
        return f"{self.block} @ {self.input_shape}"

    @property
    def relative_ci(self) -> float | None:
        """Half-width of the interval as a share of the ratio; None where it is unknown."""
        if self.isolated_lower_ms is None or self.isolated_upper_ms is None:
            return None
        return (self.isolated_upper_ms - self.isolated_lower_ms) / (2 * self.isolated_ms)


@dataclass(frozen=True)
class MeasuredNetwork:
    """A whole network that was measured, beside what the table predicts for it.

    Attributes:
        role: `fit`, `held_out` or `exported`; `other_hour` for one that judged in another hour than the table's.
        predicted_ms: By the table as it is.
        measured_ms: Median over sessions.
    """

    role: Literal["fit", "held_out", "exported", "other_hour"]
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """Measured over predicted, less one: positive for a network slower than was predicted."""
        return self.measured_ms / self.predicted_ms - 1


@dataclass(frozen=True)
class OptionCost:
    """One option of a layer: what it adds to a network, from its cheapest to its dearest input."""

    name: str
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class LayerCost:
    """A layer: what each of its measured options adds to a network.

    Attributes:
        name: The layer's.
        is_decision: False for a fixed layer, which has one option.
        options: In their order, without those that the table lacks or that are refused.
    """

    name: str
    is_decision: bool
    options: tuple[OptionCost, ...]

    @property
    def mean_ms(self) -> float:
        """Over the options, each at the middle of its range."""
        return sum(option.low_ms + option.high_ms for option in self.options) / (2 * max(len(self.options), 1))


def block_costs(table: LatencyTable) -> list[BlockCost]:
    """One row for every entry, in the table's order."""
    parts, anchor_ms = table.search_space.measured_parts, table.anchor_ms
    rows = []
    for workload, entry in table.entries.items():
        block, _, shape = workload.rpartition(" @ ")
        low, high = entry.ratio_ci or (None, None)
        cost_ms = table.edge_cost(Edge(0, 0, 0, (parts[workload],))) if workload in parts else math.inf
        rows.append(BlockCost(
            block, shape, entry.ratio, entry.ratio * anchor_ms, None if low is None else low * anchor_ms,
            None if high is None else high * anchor_ms,
            cost_ms if cost_ms < math.inf else None, entry.label,
            len(entry.sessions) if entry.is_measured else 0))
    return rows


def block_counts(table: LatencyTable) -> dict[str, int]:
    """How many entries have each label, and how many blocks of the space have none, since they are refused or missing."""
    labels = [entry.label for entry in table.entries.values()]
    return {**{label: labels.count(label) for label in ("ok", "noisy", "imported", "estimated")},
            "refused": len(refused_blocks(table)), "missing": len(table.missing_workloads())}


def estimate_error(table: LatencyTable) -> float | None:
    """Median relative error of estimates of its measured blocks, each when left out; None where no block is estimated."""
    measured = {workload: entry.ratio for workload, entry in table.entries.items() if entry.is_measured}
    if len(measured) == len(table.entries) or len(measured) < LEAST_BLOCKS:
        return None
    parts = {workload: part for workload, part in table.search_space.measured_parts.items() if workload in measured}
    return estimate_blocks(parts, measured).typical_error


def measured_networks(table: LatencyTable) -> list[MeasuredNetwork]:
    """Every whole network of a table that can be used, in its order; those of other hours last."""
    later = [record for networks in table.judging_sittings for record in networks]
    records = [*table.usable_networks, *later]
    roles = [*(record.role for record in table.usable_networks), *["other_hour"] * len(later)]
    predictions = cost_model(table).predict_many([table.search_space.architecture(record.choices) for record in records])
    return [MeasuredNetwork(role, prediction.latency_ms, record.ratio * table.anchor_ms)  # type: ignore[arg-type]
            for role, record, prediction in zip(roles, records, predictions, strict=True)]


def held_out_document(table: LatencyTable) -> dict[str, Any]:
    """The error on networks that no fit has seen: what the table stores of it, and the shares within 2, 5 and 10 %."""
    errors = [abs(network.error) for network in measured_networks(table) if network.role == "held_out"]
    return vars(cost_model(table).held_out) | {
        f"within_{percent}_percent": sum(error <= percent / 100 for error in errors) / max(len(errors), 1)
        for percent in (2, 5, 10)}


class ExcludedOption(NamedTuple):
    """An option that a runtime does not run.

    Attributes:
        layer: Decision or fixed layer.
        option: The option's name, or the kind of the fixed layer's block.
        reason: One sentence without its full stop; says so where some of the inputs that may reach the layer are fine.
    """

    layer: str
    option: str
    reason: str


def excluded_options(table: LatencyTable) -> list[ExcludedOption]:
    """Options with a refused block, from input to output: no network with them is predicted or searched."""
    found = []
    for step in table.search_space.steps if table.refused else ():
        for number, option in enumerate(step.options):
            refusals = [table.refusal(edge) for edge in step.edges if edge.option == number]
            reasons = [_phrase(table.refused[workload]) for workload in refusals if workload is not None]
            if reasons:
                found.append(ExcludedOption(step.name, option, reasons[0] + ("" if None not in refusals else
                                                                             ", for some of its inputs")))
    return found


def refused_blocks(table: LatencyTable) -> dict[str, str]:
    """Workloads of the space that the runtime refuses, with the reason, in the space's order."""
    return {workload: table.refused[workload] for workload in table.search_space.measured_parts if workload in table.refused}


def refused_networks(table: LatencyTable) -> dict[str, str]:
    """Whole networks that the runtime refuses though it runs each of their blocks, with the reason; by their options."""
    space = table.search_space
    found = ((network_of(space, key), reason) for key, reason in table.refused.items())
    return {str(network): reason for network, reason in found
            if network is not None and all(table.refusal(edge) is None for edge in space.path(network))}


def refused_networks_warning(table: LatencyTable) -> str | None:
    """One line about whole networks that are refused, None where none is."""
    refused = refused_networks(table)
    if not refused:
        return None
    (name, reason), *_ = refused.items()
    return (f"{table.environment.get('runtime')} refuses {len(refused)} whole network(s) though it runs each of their blocks, "
            f"the first being {_phrase(name)} ({_phrase(reason)}): the table says nothing of such networks, and one that a "
            "search finds may fail at its export; leave out of the space what they have in common, or take another version of "
            "the runtime, and profile again.")


def refusal_warning(table: LatencyTable) -> str | None:
    """One line about the blocks that are refused, None where none is."""
    refused, excluded = refused_blocks(table), excluded_options(table)
    if not refused:
        return None
    named = ", ".join(f"{layer} {option} ({reason})" for layer, option, reason in excluded[:_MOST_NAMED])
    more = f", and {len(excluded) - _MOST_NAMED} more" if len(excluded) > _MOST_NAMED else ""
    return (f"{len(refused)} of {len(table.search_space.measured_parts)} blocks are refused by "
            f"{table.environment.get('runtime')}; options with them are left out: {named}{more}.")


def _phrase(reason: str) -> str:
    """A reason as a short phrase on one line."""
    text = " ".join(reason.split()).rstrip(". ")
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON - 1] + "…"


def layer_costs(table: LatencyTable) -> list[LayerCost]:
    """Every layer from input to output, with what its options cost; of a space of cells, every decision."""
    return [_layer_cost(table, step) for step in table.search_space.steps]


def _layer_cost(table: LatencyTable, step: Step) -> LayerCost:
    costs: dict[int, list[float]] = {}
    for edge in step.edges:
        if table.refusal(edge) is None and all(part.block.is_free or part.workload in table.entries for part in edge.parts):
            costs.setdefault(edge.option, []).append(table.edge_cost(edge))
    options = tuple(OptionCost(step.options[option], min(found), max(found)) for option, found in sorted(costs.items()))
    return LayerCost(step.name, step.is_decision, options)
