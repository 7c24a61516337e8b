"""Ways to predict a network from the parts of its path, fitted on the whole networks of a table and compared by the benchmark.

Every scheme is an intercept and costs of blocks, most of them with costs of pairs of neighbours, so each is additive over the
trellis. What is fitted beyond a line is shrunk: random effects in levels (of a block, of what blocks share, of a pair), whose
spreads maximise the restricted likelihood (Patterson and Thompson, "Recovery of inter-block information when block sizes are
unequal", 1971). As everywhere errors are relative, since a promise is relative.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.block import Block, Part
from hwnas.ir.blocks import ConvBlock
from hwnas.ir.network import Network, build_network
from hwnas.ir.shape import TensorShape
from hwnas.ir.steps import Space
from hwnas.latency.calibration import Calibration, fit_calibration
from hwnas.latency.table import LatencyTable, NetworkRecord

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Sessions = Sequence[Floats]

_SPREADS = np.geomspace(0.1, 100, 16)
_SWEEPS = 3  # over the levels, until no spread changes
_WEIGHINGS = 3  # of sessions, after which weights hardly move
_DEGREES = 4  # of Student's t for sessions: one bad session in twenty or so


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
        traits: Which traits each block has; (blocks, traits).
        sessions: The ratio of every session of every network.
    """

    records: tuple[NetworkRecord, ...]
    workloads: tuple[str, ...]
    isolated: Floats
    counts: NDArray[np.int64]
    pairs: NDArray[np.int64]
    kinds: NDArray[np.int64]
    traits: Floats
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
        _traits(list(parts.values())),
        [np.array([median(session) for session in record.sessions]) for record in records])


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


def _traits(parts: Sequence[Part]) -> Floats:
    """What blocks share: kind, input shape and every field; only what some have and others do not. Of mean square 1."""
    told = [{f"{part.input_shape}", part.block.kind, *(f"{part.block.kind}.{name}={value}" for name, value in
             part.block.to_dict().items() if name != "kind")} for part in parts]
    traits = [trait for trait in sorted(set().union(*told)) if 1 < sum(trait in own for own in told) < len(told)]
    has = np.array([[trait in own for trait in traits] for own in told], np.float64).reshape(len(parts), len(traits))
    return has / np.sqrt(max(has.sum(axis=1).mean(), 1.0)) if traits else has


def _line_columns(networks: Networks, calibration: Calibration) -> Floats:
    """Sum, one and depth, as far as the line has them."""
    return np.stack([networks.counts @ networks.isolated, *[np.ones(len(networks.counts))] * bool(calibration.intercept),
                     *[networks.counts.sum(axis=1)] * bool(calibration.per_block)], axis=1).astype(np.float64)


def _calibrate(networks: Networks, rows: Rows, sessions: Sessions, *, corrections: bool) -> Calibration:
    counts = networks.counts[rows]
    seen = np.flatnonzero(counts.any(axis=0))
    ratios = {networks.workloads[column]: float(networks.isolated[column]) for column in seen}
    return fit_calibration(counts[:, seen], ratios, _medians(sessions), corrections=corrections)


def _medians(sessions: Sessions) -> Floats:
    return np.array([np.median(ratios) for ratios in sessions])


def plain_sum(networks: Networks, rows: Rows, sessions: Sessions) -> Floats:
    """Blocks added up."""
    return networks.counts @ networks.isolated


def calibrated(networks: Networks, rows: Rows, sessions: Sessions, *, corrections: bool = True) -> Floats:
    """The line, and where they pay corrections of blocks: what the package does."""
    found = _calibrate(networks, rows, sessions, corrections=corrections)
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
    fit = _likeliest(line[rows], [level[rows] for level in levels], _medians(sessions), np.ones(len(rows)))
    return fit.predict(line, levels)


def structured(networks: Networks, rows: Rows, sessions: Sessions, *, weigh_sessions: bool = False) -> Floats:
    """The line, and corrections of blocks that are drawn towards those of blocks with the same traits.

    A correction is expected to be as large as the block's cost alone, or of one size for all, whichever is likelier.

    Args:
        networks: All networks.
        rows: Those to fit on.
        sessions: Their sessions.
        weigh_sessions: Trusts a session less the farther it is from what the other networks make of this one.
    """
    line = _line_columns(networks, _calibrate(networks, rows, sessions, corrections=False))
    sizes = (networks.isolated, np.full(len(networks.isolated), networks.isolated.mean()))
    scaled: list[Floats] = [networks.counts * size for size in sizes]
    choices = [[each, each @ networks.traits] for each in scaled]

    def fitted(target: Floats, weights: Floats) -> tuple[_Fit, Sequence[Floats]]:
        fits = [_likeliest(line[rows], [level[rows] for level in levels], target, weights) for levels in choices]
        return min(zip(fits, choices, strict=True), key=lambda found: found[0].unlikeliness)

    target = _medians(sessions)
    fit, levels = fitted(target, np.ones(len(rows)))
    for _ in range(_WEIGHINGS if weigh_sessions else 0):
        target, weights = _weigh(sessions, target * (1 - fit.left_out))
        fit, levels = fitted(target, weights)
    return fit.predict(line, levels)


def _weigh(sessions: Sessions, expected: Floats) -> tuple[Floats, Floats]:
    """Means of sessions and what they weigh, by Student's t around what is expected of each network.

    Its iterated weights are an expectation maximisation (Lange, Little and Taylor, "Robust statistical modeling using the t
    distribution", 1989).
    """
    off = [ratios / value - 1 for ratios, value in zip(sessions, expected, strict=True)]
    scale = max(float(np.median(np.abs(np.concatenate(off)))) / 0.6745, 1e-9)
    weights = [(_DEGREES + 1) / (_DEGREES + (errors / scale) ** 2) for errors in off]
    means = [np.average(ratios, weights=own) for ratios, own in zip(sessions, weights, strict=True)]
    sums = np.array([own.sum() for own in weights])
    return np.array(means), sums / sums.mean()


@dataclass(frozen=True)
class _Fit:
    """A line and shrunken effects.

    Attributes:
        coefficients: Of the line.
        effects: One array for each level.
        left_out: Leave-one-out residual of each row as a share of its target.
        unlikeliness: Minus the logarithm of the restricted likelihood, up to a constant.
    """

    coefficients: Floats
    effects: tuple[Floats, ...]
    left_out: Floats
    unlikeliness: float

    def predict(self, line: Floats, levels: Sequence[Floats]) -> Floats:
        return line @ self.coefficients + sum(level @ effect for level, effect in zip(levels, self.effects, strict=True))


def _likeliest(line: Floats, levels: Sequence[Floats], target: Floats, weights: Floats) -> _Fit:
    """The fit whose spreads are likeliest, found level by level from none."""
    scale = np.sqrt(weights) / target
    line, levels = line * scale[:, None], [level * scale[:, None] for level in levels]
    ones = np.sqrt(weights)
    kernels = [level @ level.T for level in levels]
    variances = [size**2 * len(target) / max(np.trace(kernel), 1e-30) for kernel in kernels for size in _SPREADS]
    grid = np.array(variances).reshape(len(levels), len(_SPREADS))

    def fit(chosen: Sequence[float]) -> _Fit:
        return _fit(line, levels, kernels, chosen, ones)

    chosen = [0.0] * len(levels)
    best = fit(chosen)
    for _ in range(_SWEEPS):
        before = list(chosen)
        for level in range(len(levels)):
            for variance in (0.0, *grid[level]):
                tried = [*chosen[:level], float(variance), *chosen[level + 1:]]
                found = fit(tried)
                if found.unlikeliness < best.unlikeliness:
                    best, chosen = found, tried
        if chosen == before:
            break
    return best


def _fit(line: Floats, levels: Sequence[Floats], kernels: Sequence[Floats], variances: Sequence[float], ones: Floats) -> _Fit:
    """Generalised least squares with covariance `1 + sum of variance * kernel`, the noise's size estimated."""
    covariance = np.eye(len(ones)) + sum(variance * kernel for variance, kernel in zip(variances, kernels, strict=True))
    inverse = np.linalg.inv(covariance)
    information = line.T @ inverse @ line
    coefficients = np.asarray(np.linalg.solve(information, line.T @ inverse @ ones), np.float64)
    rest = inverse @ (ones - line @ coefficients)
    projected = inverse - inverse @ line @ np.linalg.solve(information, line.T @ inverse)
    degrees = len(ones) - line.shape[1]
    noise = float((ones - line @ coefficients) @ rest) / degrees
    unlikeliness = 0.5 * (degrees * np.log(noise) + np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(information)[1])
    effects = tuple(variance * (level.T @ rest) for variance, level in zip(variances, levels, strict=True))
    return _Fit(coefficients, effects, rest / np.maximum(projected.diagonal(), 1e-12) / ones, float(unlikeliness))


SCHEMES: dict[str, Scheme] = {
    "sum": plain_sum,
    "line": partial(calibrated, corrections=False),
    "corrected": calibrated,
    "boundaries": boundaries,
    "corrected + boundaries": partial(boundaries, blocks=True),
    "structured": structured,
    "structured, sessions weighed": partial(structured, weigh_sessions=True),
    "networks only": networks_only,
}

HOST_SCHEMES: dict[str, Scheme] = {
    "hosts, sum": plain_sum,
    "hosts, line": partial(calibrated, corrections=False),
    "hosts, corrected": calibrated,
    "hosts, structured, sessions weighed": partial(structured, weigh_sessions=True),
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
