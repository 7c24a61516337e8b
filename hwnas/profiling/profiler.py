"""Builds a latency table: every distinct block of a space, then whole networks that calibrate and judge it.

All are measured in rounds (see `rounds`), with a journal beside the table: a kill at any moment loses at most the session under
way, and the same command goes on from there.
"""

import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InputError
from hwnas.files import locked
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Part
from hwnas.ir.costs import MacsCost
from hwnas.ir.steps import Edge, Space, Step
from hwnas.ir.trellis import Trellis
from hwnas.latency.estimates import LEAST_BLOCKS, estimate_blocks
from hwnas.latency.refusals import network_key, network_of
from hwnas.latency.sessions import NOISY_RELATIVE_CI, combine_sessions
from hwnas.latency.table import SCHEMA as TABLE_SCHEMA
from hwnas.latency.table import AnchorRecord, EffortRecord, EntryRecord, LatencyTable, NetworkRecord, SittingRecord, load_table
from hwnas.lower.onnx import to_onnx
from hwnas.profiling.anchor import anchor_name
from hwnas.profiling.device import Device
from hwnas.profiling.environment import require_same_environment
from hwnas.profiling.rounds import (
    Measured,
    Progress,
    RoundsPlan,
    check_not_negative,
    discard,
    measure_rounds,
    measurement_folder,
    open_journal,
    read_preparing_s,
    without_disturbed,
)
from hwnas.profiling.session import SessionSamples

_SPARE_SHARE = 0.25  # of the whole networks: so many more are tried in place of those that the device refuses, and no more
_DEVIATION = 2.0  # of a decision's preference for cheap or dear options, which itself goes from -3 to 3
JOURNAL_SCHEMA = "hwnas.profile-journal/1"

_NetworkRole = Literal["fit", "held_out"]


@dataclass(frozen=True)
class ProfilePlan(RoundsPlan):
    """How much is measured: rounds of every block and network, and how many networks.

    A block is a small part of a network, the errors of its parts average out, and whole networks calibrate them: so a block
    that is not noisy has few sessions, and the time is spent on networks. Nor need every block be measured at all.

    Attributes:
        blocks: So many distinct blocks are measured, once each unless noisy, since others teach more than the same again; the
            rest are estimated from them. None: all are measured.
        fit_networks: Whole networks that calibrate.
        held_out_networks: Whole networks that judge; 19 is the least from which a 95 % interval can be had.
        fit_sessions: Sessions of a network that calibrates, if not those of a block. Few are enough: more networks teach more
            than better measured ones.
        held_out_sessions: The least sessions of a network that judges, if not those of a block. Its own scatter must not count
            as an error of the table.

    Raises:
        InputError: A value is out of range.
    """

    min_sessions: int = 2
    target_relative_ci: float = NOISY_RELATIVE_CI
    blocks: int | None = None
    fit_networks: int = 48
    held_out_networks: int = 24
    fit_sessions: int | None = 2
    held_out_sessions: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(sessions is not None and sessions < 1 for sessions in (self.fit_sessions, self.held_out_sessions)):
            raise InputError(f"fit_sessions and held_out_sessions must be at least 1, but are ({self.fit_sessions}, "
                             f"{self.held_out_sessions}).")
        for name in ("fit_networks", "held_out_networks"):
            check_not_negative(name, getattr(self, name))
        if self.blocks is not None and self.blocks < LEAST_BLOCKS:
            raise InputError(f"At least {LEAST_BLOCKS} blocks must be measured to estimate the others, but blocks is "
                             f"{self.blocks}: measure more, or all.")

    def sessions(self, role: str) -> tuple[int, int]:
        """The least and the most sessions of a workload of a role."""
        if role == "fit" and self.fit_sessions is not None:
            return self.fit_sessions, self.fit_sessions
        if role == "held_out" and self.held_out_sessions is not None:
            return self.held_out_sessions, max(self.held_out_sessions, self.max_sessions)
        if role == "entry" and self.blocks is not None:
            return 1, self.max_sessions
        return self.min_sessions, self.max_sessions


@dataclass(frozen=True)
class Workload:
    """Something to measure: a distinct block, or a whole network.

    Attributes:
        key: Unique text: the edge's workload, or the network's options.
        role: `entry`, or the network's role.
        model: Makes the ONNX bytes.
        choices: The network's choices; empty for a block.
    """

    key: str
    role: Literal["entry", "fit", "held_out"]
    model: Callable[[], bytes]
    choices: dict[str, str] = field(default_factory=dict)


def profile_space(space: Space, device: Device, output: str | os.PathLike[str], *, batch_size: int = 1,
                  plan: ProfilePlan | None = None, seed: int = 0, restart: bool = False,
                  progress: Progress | None = None) -> LatencyTable:
    """Measures a space on a device and writes its table; continues what an earlier call began.

    Args:
        space: What to measure.
        device: Where.
        output: The table's path; the journal lies beside it until everything has its least sessions.
        batch_size: Images a call.
        plan: How much to measure.
        seed: Chooses the whole networks and the order.
        restart: Discards what is there.
        progress: Called with (sessions done, sessions planned, what was measured); beforehand, while models are prepared, with
            (models done, models in all, "preparing" and what was prepared).

    Returns:
        The table, also written to `output`.

    Raises:
        InputError: What is there is of another space, environment or schema, is being measured by another process, or cannot be
            written; or the time was over before anything was measured, or the device refuses every block.
        UnavailableError: The device cannot be reached, or not any more; what was measured is kept.
    """
    plan = plan or ProfilePlan()
    if seed < 0:
        raise InputError(f"A seed must be at least 0, but is {seed}.")
    environment = device.environment(batch_size)
    with locked(output, "latency table"):
        return _profile(space, device, environment, Path(output), batch_size, plan, seed, restart, progress)


def _profile(space: Space, device: Device, environment: dict[str, Any], path: Path, batch_size: int, plan: ProfilePlan, seed: int,
             restart: bool, progress: Progress | None) -> LatencyTable:
    journal = path.with_name(path.name + ".journal")
    if restart:
        discard(path, TABLE_SCHEMA, "latency table")
        journal.unlink(missing_ok=True)
    earlier: Measured = {}
    refused: dict[str, str] = {}
    exported: list[NetworkRecord] = []
    sittings: tuple[SittingRecord, ...] = ()
    estimate = plan.blocks is not None
    if path.exists():
        table = load_table(path)
        _require_same(space, table.search_space.hash, f"The table {path}")
        require_same_environment(table.environment, environment, f"the table {path}")
        asked = (block.key for block in plan_blocks(space, batch_size, plan.blocks, seed))
        complete = (table.effort is None or table.effort.complete) and not table.missing_workloads() and all(
            key in table.refused or table.entries[key].label != "estimated" for key in asked)
        if complete and not journal.exists():
            return table
        earlier, refused = _sessions_of(table), dict(table.refused)  # the journal may be lost
        estimate |= any(entry.label == "estimated" for entry in table.entries.values())  # it stays of use meanwhile
        # It knows nothing of these.
        exported, sittings = [record for record in table.networks if record.role == "exported"], table.sittings
    header = {"schema": JOURNAL_SCHEMA, "space_hash": space.hash, "seed": seed, "batch_size": batch_size,
              "environment": environment}
    try:
        measured = open_journal(journal, header, earlier, refused)
    except OSError as error:
        raise InputError(f"The table must be writable, but {path} is not ({error.strerror}): choose another --output.") from None
    blocks = plan_blocks(space, batch_size, plan.blocks, seed)
    deadline = time.monotonic() + plan.max_minutes * 60
    probe = replace(plan, min_sessions=1, max_sessions=1)
    in_all = sum(plan.sessions(workload.role)[0] for workload in plan_workloads(space, plan, batch_size, seed))
    preparing = None if progress is None else lambda done, total, key: progress(done, total, f"preparing {key}")
    # One session of every block first: it shows which ones the device refuses, before networks are drawn that have them.
    _measure(blocks, measured, refused, journal, device, probe, seed, deadline,
             None if progress is None else lambda done, total, key: progress(done, in_all, key), preparing)
    if blocks and all(block.key in refused for block in blocks):
        raise InputError(f"{device.name} refuses every block of {space.name!r}: {refused[blocks[0].key]}")
    workloads = [*blocks, *plan_networks(space, plan, batch_size, seed, refused)]
    tried: set[str] = set()
    # What is refused on the way has others in its place, of which there are few: once these are used up, nothing is new.
    while time.monotonic() <= deadline and not tried.issuperset(workload.key for workload in workloads):
        tried.update(workload.key for workload in workloads)
        _measure(workloads, measured, refused, journal, device, plan, seed, deadline, progress, preparing)
        workloads = [*blocks, *plan_networks(space, plan, batch_size, seed, refused)]
    table = assemble_table(space, environment, plan, workloads, measured, refused, exported,
                           preparing_s=read_preparing_s(journal), estimate=estimate)
    table = replace(table, sittings=sittings)
    table.save(path)
    if table.effort is not None and table.effort.complete:
        journal.unlink(missing_ok=True)
    return table


def _measure(workloads: Sequence["Workload"], measured: Measured, refused: dict[str, str], journal: Path, device: Device,
             plan: ProfilePlan, seed: int, deadline: float, progress: Progress | None, preparing: Progress | None) -> None:
    plan = replace(plan, max_minutes=max(0.0, deadline - time.monotonic()) / 60)
    measure_rounds({workload.key: workload.model for workload in workloads}, measured, journal, device, plan,
                   sessions={workload.key: plan.sessions(workload.role) for workload in workloads}, seed=seed, progress=progress,
                   preparing=preparing, refused=refused)


def _sessions_of(table: LatencyTable) -> Measured:
    """What a journal would hold of a table's sessions, each with an even part of what all took."""
    samples = {key: entry.sessions for key, entry in table.entries.items() if entry.label != "estimated"}
    samples |= {network_key(table.search_space.architecture(record.choices)): record.sessions for record in table.networks
                if record.role != "exported"}
    effort, count = table.effort, sum(map(len, samples.values()))
    timing_s, total_s = (60 * effort.timing_minutes / count, 60 * effort.minutes / count) if effort and count else (0.0, 0.0)
    clock = table.anchor.clock_mhz
    clocks_mhz = () if clock is None else (clock[1],)
    return {key: [SessionSamples(ratios, table.anchor_ms, timing_s, total_s, clocks_mhz) for ratios in sessions]
            for key, sessions in samples.items()}


def default_table_path(environment: Mapping[str, Any], space: Space) -> Path:
    """`latency_tables/<device>/<runtime>-<precision>-<threads>t/<space>.json`."""
    return Path("latency_tables") / measurement_folder(environment) / f"{space.name}.json"


def plan_workloads(space: Space, plan: ProfilePlan, batch_size: int, seed: int, refused: Collection[str] = ()) -> list[Workload]:
    """Everything that a profile measures: blocks, then networks that the device does not refuse."""
    return [*plan_blocks(space, batch_size, plan.blocks, seed), *plan_networks(space, plan, batch_size, seed, refused)]


def plan_blocks(space: Space, batch_size: int, count: int | None = None, seed: int = 0) -> list[Workload]:
    """Every distinct block once, or some of them.

    Args:
        space: The space.
        batch_size: Images a call.
        count: How many; those that every network has, whose errors never average out, are always among them. None: all.
        seed: Chooses the others; those of a smaller count are among those of a larger one.
    """
    keys = list(space.measured_parts)
    if count is not None and count < len(keys):
        everywhere = [edge.parts for step in space.steps if len(step.edges) == 1 for edge in step.edges]
        drawn = np.random.default_rng(seed).permutation(np.array(keys, object)).tolist()
        order = dict.fromkeys([*(part.workload for parts in everywhere for part in parts if not part.block.is_free), *drawn])
        chosen = set(list(order)[:count])
        keys = [key for key in keys if key in chosen]
    return [Workload(key, "entry", _BlockModel(space.measured_parts[key], batch_size)) for key in keys]


def plan_networks(space: Space, plan: ProfilePlan, batch_size: int, seed: int, refused: Collection[str] = ()) -> list[Workload]:
    """Whole networks spread over the space's range of size; one that the device does not run has another in its place.

    Args:
        space: The space.
        plan: How many.
        batch_size: Images a call.
        seed: Chooses them.
        refused: Keys of what the device refuses, blocks and whole networks, in the order in which it did.
    """
    planned = {network: _role(plan, index)
               for index, network in enumerate(spread_networks(space, plan.fit_networks + plan.held_out_networks, seed))}
    if refused:
        planned = _replace_refused(space, planned, refused, seed)
    return [Workload(network_key(network), role, _NetworkModel(space, network, batch_size), dict(network.choices))
            for network, role in planned.items()]


def _role(plan: ProfilePlan, index: int) -> _NetworkRole:
    """Of the network with that index: a regular comb, so that both groups cover the range."""
    teeth, last = (number * plan.fit_networks // (plan.fit_networks + plan.held_out_networks) for number in (index, index - 1))
    return "fit" if teeth != last else "held_out"


def _replace_refused(space: Space, planned: Mapping[Architecture, _NetworkRole], refused: Collection[str],
                     seed: int) -> dict[Architecture, _NetworkRole]:
    """The networks and their roles, with others in place of those that are refused, as far as there are any.

    What takes whose place is a matter of the order of the refusals: those that stand in already stay when one more is refused.
    """
    costs = _OnlyPossible(frozenset(refused))
    drawn = _spare_networks(Trellis(space, costs), len(planned), np.random.default_rng(seed))
    possible = {network for network in (*planned, *drawn) if math.isfinite(sum(map(costs.edge_cost, space.path(network))))}
    others = iter([network for network in dict.fromkeys(drawn) if network in possible and network not in planned])
    found: dict[Architecture, _NetworkRole] = {}
    for network, role in planned.items():
        if (chosen := network if network in possible else next(others, None)) is not None:
            found[chosen] = role
    spare = islice(others, math.ceil(_SPARE_SHARE * len(planned)))
    gone: set[Architecture] = set()
    for key in refused:
        if (whole := network_of(space, key)) is None:
            continue  # a block
        gone.add(whole)
        if whole in found:
            role = found.pop(whole)
            if (chosen := next((other for other in spare if other not in gone), None)) is not None:
                found[chosen] = role
    return found


@dataclass(frozen=True)
class _OnlyPossible:
    """Costs nothing, but forbids the blocks that a device refuses."""

    refused: frozenset[str]
    unit = ""
    constant = 0.0

    def edge_cost(self, edge: Edge) -> float:
        return math.inf if any(part.workload in self.refused for part in edge.parts) else 0.0


def spread_networks(space: Space, count: int, seed: int) -> list[Architecture]:
    """Different networks spread over the range of MACs, the smallest and the largest first; all of a space that has no more.

    Uniform samples crowd in the middle of the range, and a line fitted there says little about the ends, where budgets are.
    So every network is drawn with a preference for cheap or for dear options, which sweeps the range evenly, and each of its
    decisions deviates from that at random: a search mixes cheap and dear layers as it likes, and must not surprise the table.
    """
    trellis = Trellis(space, MacsCost())
    found = dict.fromkeys((trellis.cheapest(), trellis.dearest()))
    generator = np.random.default_rng(seed)
    macs = [_option_macs(space, step) for step in space.steps if step.is_decision]
    for preference in np.linspace(-3, 3, max(count - 2, 0)):
        tilts = preference + generator.normal(0, _DEVIATION, len(macs))
        weights = [np.exp(tilt * scores) for tilt, scores in zip(tilts, macs, strict=True)]
        found.setdefault(_draw(space, weights, generator))
    return list(found | dict.fromkeys(_spare_networks(trellis, count, generator)))[:count]  # in place of draws that came twice


def _spare_networks(trellis: Trellis, count: int, generator: np.random.Generator) -> list[Architecture]:
    """Networks that may stand in for some of as many as are counted: all where that is little, else as many again."""
    if trellis.space.size <= 16 * count:
        return _shuffled(trellis.space, generator)
    return trellis.sample(2 * count, seed=generator)  # of which few meet


def _shuffled(space: Space, generator: np.random.Generator) -> list[Architecture]:
    paths: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for step in space.steps:
        paths = [(edge.target, (*row, edge.option) if step.is_decision else row)
                 for state, row in paths for edge in step.edges if edge.source == state]
    rows = [row for _, row in paths]
    return space.architectures(generator.permutation(np.array(rows)))


def _draw(space: Space, weights: Sequence[NDArray[np.float64]], generator: np.random.Generator) -> Architecture:
    """Draws option by option, with the given weights among those that are allowed."""
    state, row, remaining = 0, [], iter(weights)
    for step in space.steps:
        if step.is_decision:
            weight = np.where(step.numbers[state] >= 0, next(remaining), 0)
            row.append(int(generator.choice(len(weight), p=weight / weight.sum())))
        state = int(step.targets[state, row[-1] if step.is_decision else 0])
    return space.architectures(np.array([row]))[0]


def _option_macs(space: Space, step: Step) -> NDArray[np.float64]:
    """MACs of a decision's options, averaged over the states that allow them and standardised."""
    options = np.array([edge.option for edge in step.edges])
    costs = np.array([MacsCost().edge_cost(edge) for edge in step.edges], dtype=np.float64)
    mean = np.bincount(options, costs) / np.bincount(options)
    return (mean - mean.mean()) / max(mean.std(), 1e-9)


@dataclass(frozen=True)
class _BlockModel:
    part: Part
    batch_size: int

    def __call__(self) -> bytes:
        return to_onnx(self.part.network, batch_size=self.batch_size).SerializeToString()


@dataclass(frozen=True)
class _NetworkModel:
    space: Space
    architecture: Architecture
    batch_size: int

    def __call__(self) -> bytes:
        return to_onnx(self.space.network(self.architecture), batch_size=self.batch_size).SerializeToString()


def assemble_table(space: Space, environment: dict[str, Any], plan: ProfilePlan, workloads: Sequence[Workload],
                   measured: Measured, refused: Mapping[str, str], exported: Sequence[NetworkRecord] = (), *,
                   preparing_s: float = 0.0, estimate: bool = False) -> LatencyTable:
    """The table of what a journal holds.

    Args:
        space: The space.
        environment: Of the measurement.
        plan: What was to be measured.
        workloads: Blocks and networks, in the table's order.
        measured: Sessions by key.
        refused: Why the device does not run a model, by key. The table keeps that of blocks and of whole networks.
        exported: Measured networks that the journal knows nothing of.
        preparing_s: Seconds that no session counts: for preparing models ahead, and for models that were refused.
        estimate: Whether blocks that were not measured are estimated.

    Raises:
        InputError: There is no session at all.
    """
    least = {workload.key: plan.sessions(workload.role)[0] for workload in workloads}
    found = without_disturbed(measured, plan, lambda key: least.get(key, 1))
    entries, networks = {}, list(exported)
    for key in space.measured_parts:  # those that an earlier call measured and this one does not ask for, too
        if sessions := found.get(key):
            label: Literal["ok", "noisy"] = "noisy" if combine_sessions(sessions).label == "noisy" else "ok"
            entries[key] = EntryRecord(sessions=tuple(session.ratios for session in sessions), label=label)
    for workload in workloads:
        if workload.role != "entry" and workload.key not in refused and (sessions := found.get(workload.key)):
            networks.append(NetworkRecord(choices=workload.choices, role=workload.role,
                                          sessions=tuple(session.ratios for session in sessions)))
    every = [session for sessions in measured.values() for session in sessions]
    if not every:
        raise InputError("A table needs at least one measurement, but the time was over before the first: raise --max-minutes.")
    identity = str(environment["anchor"])
    anchor = AnchorRecord(name=anchor_name(identity) or "unknown", sha256=identity,
                          sessions_ms=tuple(session.anchor_ms for session in every),
                          clocks_mhz=tuple(clock for session in every for clock in session.clocks_mhz))
    missing = sum(max(0, count - len(measured.get(key, ()))) for key, count in least.items() if key not in refused)
    spent_s = preparing_s + sum(session.total_s for session in every)
    effort = EffortRecord(minutes=round(spent_s / 60, 6), sessions=len(every),
                          timing_minutes=round(sum(session.timing_s for session in every) / 60, 6),
                          planned_sessions=len(every) + missing)
    if estimate:
        entries = with_estimates(space, entries, refused)
    blocks = {workload.key for workload in workloads if workload.role == "entry"}
    table = LatencyTable(space, environment, anchor, entries, (), effort=effort,
                         refused={key: reason for key, reason in refused.items()
                                  if key in blocks or network_of(space, key) is not None})
    # Nothing can be calibrated while blocks are missing; the networks' sessions wait in the journal.
    return table if table.missing_workloads() else table.with_networks(networks)


def with_estimates(space: Space, entries: Mapping[str, EntryRecord], refused: Collection[str]) -> dict[str, EntryRecord]:
    """The entries, and estimates of the blocks that have none, unless too few were measured.

    Args:
        space: The space, in whose order they come.
        entries: What was measured.
        refused: Blocks that the device does not run, for which there is neither.
    """
    parts = {workload: part for workload, part in space.measured_parts.items() if workload not in refused}
    if len(entries) < LEAST_BLOCKS or parts.keys() <= entries.keys():
        return dict(entries)
    found = estimate_blocks(parts, {workload: entry.ratio for workload, entry in entries.items()})
    return {workload: entries.get(workload) or EntryRecord(sessions=((found.ratios[workload],),), label="estimated")
            for workload in space.measured_parts if workload in entries or workload in parts}


def _require_same(space: Space, space_hash: str, what: str) -> None:
    if space.hash != space_hash:
        raise InputError(f"{what} must be of the space {space.name!r} ({space.hash[:12]!r}), but is of another "
                         f"({space_hash[:12]!r}): choose another --output or profile with --restart.")
