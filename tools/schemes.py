"""Ways to predict a network from the parts of its path, fitted on the whole networks of a table and compared by the benchmark.

Every scheme is an intercept and costs of blocks, most of them with costs of pairs of neighbours, so each is additive over the
trellis. What is fitted beyond a line is shrunk: random effects in levels (of a block, of what blocks share, of a pair), as in
`hwnas.latency.calibration`.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.block import Block, Part
from hwnas.ir.blocks import ConvBlock
from hwnas.ir.network import Network, build_network
from hwnas.ir.shape import TensorShape
from hwnas.ir.steps import Space
from hwnas.latency.calibration import Calibration, Traits, fit_calibration, fit_effects
from hwnas.latency.effects import block_traits
from hwnas.latency.table import LatencyTable, NetworkRecord

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Sessions = Sequence[Floats]


@dataclass(frozen=True)
class Networks:
    """Whole networks as matrices, one row for each.

    Attributes:
        records: What they were made from.
        workloads: The blocks.
        isolated: What each block costs alone, or in a host; (blocks,).
        counts: How often a network has each block; (networks, blocks).
        pairs: How often it has each pair of neighbouring blocks; (networks, pairs).
        kinds: How often it has each pair of neighbouring kinds at each tensor between them; (networks, pairs).
        traits: What blocks share.
        sessions: The ratio of every session of every network.
    """

    records: tuple[NetworkRecord, ...]
    workloads: tuple[str, ...]
    isolated: Floats
    counts: NDArray[np.int64]
    pairs: NDArray[np.int64]
    kinds: NDArray[np.int64]
    traits: Traits
    sessions: Sessions

    def rows(self, role: str) -> Rows:
        """Rows of the networks of a role."""
        return np.flatnonzero([record.role == role for record in self.records])


Scheme = Callable[[Networks, Rows, Sessions], Floats]
"""From networks, the rows to fit on and their sessions, to the predicted ratios of all of them."""


def read_networks(table: LatencyTable) -> Networks:
    """The usable networks of a table."""
    space, records = table.search_space, table.usable_networks
    paths = [[part for edge in space.path(space.architecture(record.choices)) for part in edge.parts if not part.block.is_free]
             for record in records]
    parts = {workload: part for workload, part in space.measured_parts.items() if workload in table.entries}
    pairs = [list(pairwise(path)) for path in paths]
    return Networks(
        records, tuple(parts), np.array([table.entries[workload].ratio for workload in parts]),
        _count([[part.workload for part in path] for path in paths], parts),
        _count([[(a.workload, b.workload) for a, b in row] for row in pairs]),
        _count([[(_kind(a.block), _kind(b.block), b.input_shape) for a, b in row] for row in pairs]),
        {workload: block_traits(part) for workload, part in parts.items()}, [record.session_ratios for record in records])


def _count(rows: Sequence[Sequence[Hashable]], names: Iterable[Hashable] | None = None) -> NDArray[np.int64]:
    columns = {name: column for column, name in enumerate(names or dict.fromkeys(name for row in rows for name in row))}
    counts = np.zeros((len(rows), len(columns)), np.int64)
    for count, row in zip(counts, rows, strict=True):
        np.add.at(count, [columns[name] for name in row], 1)
    return counts


def _kind(block: Block) -> str:
    """What a block is whatever its width: kind, expansion and stride decide what lies at its ends."""
    fields = block.to_dict()
    return f"{block.kind} {fields.get('expansion')} {fields.get('stride')}"


def _line_columns(networks: Networks, calibration: Calibration) -> Floats:
    """Sum, one and depth, as far as the line has them."""
    return np.stack([networks.counts @ networks.isolated, *[np.ones(len(networks.counts))] * bool(calibration.intercept),
                     *[networks.counts.sum(axis=1)] * bool(calibration.per_block)], axis=1).astype(np.float64)


def _calibrate(networks: Networks, rows: Rows, sessions: Sessions, *, corrections: bool = True, share: bool = False,
               weigh: bool = False) -> Calibration:
    ratios = dict(zip(networks.workloads, networks.isolated.tolist(), strict=True))
    return fit_calibration(networks.counts[rows], ratios, sessions, networks.traits if share else None, corrections=corrections,
                           weigh=weigh)


def plain_sum(networks: Networks, rows: Rows, sessions: Sessions) -> Floats:
    """Blocks added up."""
    return networks.counts @ networks.isolated


def calibrated(networks: Networks, rows: Rows, sessions: Sessions, **options: bool) -> Floats:
    """The line, and corrections of blocks, which may share parts, from sessions that may be weighed: with both, what the package
    does."""
    found = _calibrate(networks, rows, sessions, **options)
    costs = [found.cost(workload, ratio) for workload, ratio in zip(networks.workloads, networks.isolated, strict=True)]
    return found.intercept + networks.counts @ np.array(costs)


def networks_only(networks: Networks, rows: Rows, sessions: Sessions) -> Floats:
    """Corrections around the same cost for every block."""
    flat = np.full(len(networks.workloads), 1 / networks.counts.sum(axis=1).mean())
    return calibrated(replace(networks, isolated=flat), rows, sessions)


def boundaries(networks: Networks, rows: Rows, sessions: Sessions, *, blocks: bool = False) -> Floats:
    """The line, and what pairs of neighbours cost beyond it; with `blocks` also what blocks do."""
    levels = [networks.kinds.astype(np.float64), networks.pairs.astype(np.float64)]
    if blocks:
        levels[:0] = [networks.counts * networks.isolated, networks.counts * networks.isolated.mean()]
    line = _line_columns(networks, _calibrate(networks, rows, sessions, corrections=False))
    _, fit = fit_effects(line[rows], [[level[rows] for level in levels]], sessions, weigh=False)
    return line @ fit.coefficients + sum(level @ effect for level, effect in zip(levels, fit.effects, strict=True))


SCHEMES: dict[str, Scheme] = {
    "sum": plain_sum,
    "line": partial(calibrated, corrections=False),
    "corrected": calibrated,
    "boundaries": boundaries,
    "corrected + boundaries": partial(boundaries, blocks=True),
    "shared": partial(calibrated, share=True),
    "shared + weighed": partial(calibrated, share=True, weigh=True),
    "networks only": networks_only,
}

HOST_SCHEMES: dict[str, Scheme] = {
    "hosts, sum": plain_sum,
    "hosts, line": partial(calibrated, corrections=False),
    "hosts, corrected": calibrated,
    "hosts, shared + weighed": partial(calibrated, share=True, weigh=True),
}
"""The same from what blocks cost in a host instead of alone."""


def host_networks(space: Space) -> dict[str, Network]:
    """What to measure for blocks in context: each between two 1x1 convolutions, and at each tensor the two alone.

    The first block has nothing before it and the last one nothing after it, as in a network.
    """
    networks = {}
    for part in space.measured_parts.values():
        layers = [(name, block) for name, block in (("before", _before(space, part)), ("block", part.block),
                                                    ("after", _after(part))) if block is not None]
        networks[part.workload] = build_network(part.input_shape, layers)
        for shape in _host_shapes(space, part):
            ends = [("before", ConvBlock(shape.channels, 1)), ("after", ConvBlock(shape.channels, 1))]
            networks[f"host @ {shape}"] = build_network(shape, ends)
    return networks


def host_costs(space: Space, ratios: Mapping[str, float]) -> dict[str, float]:
    """What each block costs in its host: the whole, less half of the two convolutions at either end.

    A call into the runtime costs the first and the last block half each, and the others nothing: it adds up to one.

    Args:
        space: The space.
        ratios: The measured ratios of `host_networks`, by their keys; blocks that were refused are left out.
    """
    return {part.workload: ratios[part.workload] - sum(ratios[f"host @ {shape}"] for shape in _host_shapes(space, part)) / 2
            for part in space.measured_parts.values()
            if part.workload in ratios and all(f"host @ {shape}" in ratios for shape in _host_shapes(space, part))}


def _host_shapes(space: Space, part: Part) -> list[TensorShape]:
    return [*[part.input_shape] * (_before(space, part) is not None),
            *[part.network.output_shape] * (_after(part) is not None)]


def _before(space: Space, part: Part) -> Block | None:
    first = next(step for step in space.steps if any(not one.block.is_free for edge in step.edges for one in edge.parts))
    starts = {edge.parts[0].workload for edge in first.edges if edge.parts}
    return None if part.workload in starts else ConvBlock(part.input_shape.channels, 1)


def _after(part: Part) -> Block | None:
    network = part.network
    return None if network.output in network.vectors else ConvBlock(network.output_shape.channels, 1)
