"""Builds a latency table: every distinct block of a space, then whole networks that calibrate and judge it.

Work is done in rounds, one fresh session of everything a round in random order, so that a drift of the machine falls on all
alike and a run that is cut short is even. Each finished session is a line in a journal beside the table, flushed to disk:
a kill at any moment loses at most the session under way, and the same command goes on from there.
"""

import json
import math
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.costs import MacsCost
from hwnas.ir.space import Edge, SearchSpace, Step, block_network
from hwnas.ir.trellis import Trellis
from hwnas.latency.table import SCHEMA as TABLE_SCHEMA
from hwnas.latency.table import AnchorRecord, EntryRecord, LatencyTable, NetworkRecord, load_table
from hwnas.lower.onnx import to_onnx
from hwnas.profiling.anchor import ANCHOR_NAME, anchor_sha256
from hwnas.profiling.environment import environment_fingerprint, read_processor, require_same_environment
from hwnas.profiling.measure import SessionSamples, measure_session
from hwnas.profiling.timing import TimingPlan, combine_sessions
from hwnas.runtimes.base import Runtime, RuntimeConfig

_DEVIATION = 2.0  # of a decision's preference for cheap or dear options, which itself goes from -3 to 3
JOURNAL_SCHEMA = "hwnas.profile-journal/1"
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ProfilePlan:
    """How much is measured.

    Attributes:
        min_sessions: Fresh sessions of every block and network.
        max_sessions: Sessions of those whose sessions disagree.
        target_relative_ci: Half-width of an entry's 95 % interval over sessions above which another session is worth it.
        fit_networks: Whole networks that calibrate.
        held_out_networks: Whole networks that judge; 19 is the least from which a 95 % interval can be had.
        max_minutes: Wall-clock bound; what is there by then becomes the table.
        timing: How one session is timed. Short: what more samples cannot average away is the scatter between sessions.

    Raises:
        InputError: A value is out of range.
    """

    min_sessions: int = 3
    max_sessions: int = 6
    target_relative_ci: float = 0.03
    fit_networks: int = 16
    held_out_networks: int = 24
    max_minutes: float = 30.0
    timing: TimingPlan = field(default_factory=lambda: TimingPlan(
        sample_ms=1.0, min_pairs=16, max_pairs=64, max_seconds=0.4, warmup_pairs=5, max_warmup_seconds=0.2))

    def __post_init__(self) -> None:
        if not 1 <= self.min_sessions <= self.max_sessions:
            raise InputError("1 <= min_sessions <= max_sessions must hold, but got "
                             f"(min_sessions={self.min_sessions}, max_sessions={self.max_sessions}).")
        for name in ("target_relative_ci", "fit_networks", "held_out_networks", "max_minutes"):
            value = getattr(self, name)
            if not value >= 0:  # not a number is refused too
                raise InputError(f"{name} must be at least 0, but is {value}.")


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


def profile_space(space: SearchSpace, runtime: Runtime, config: RuntimeConfig, output: str | os.PathLike[str], *,
                  batch_size: int = 1, plan: ProfilePlan | None = None, seed: int = 0, restart: bool = False,
                  progress: Progress | None = None) -> LatencyTable:
    """Measures a space on a runtime and writes its table; continues what an earlier call began.

    Args:
        space: What to measure.
        runtime: Where.
        config: Threads and precision.
        output: The table's path; the journal lies beside it until everything has its `min_sessions`.
        batch_size: Images a call.
        plan: How much to measure.
        seed: Chooses the whole networks and the order.
        restart: Discards what is there.
        progress: Called with (sessions done, sessions planned, what was measured).

    Returns:
        The table, also written to `output`.

    Raises:
        InputError: What is there is of another space, environment or schema, or cannot be written; or the time was over before
            anything was measured.
    """
    plan = plan or ProfilePlan()
    if seed < 0:
        raise InputError(f"A seed must be at least 0, but is {seed}.")
    path = Path(output)
    journal = path.with_name(path.name + ".journal")
    environment = environment_fingerprint(runtime, config, batch_size=batch_size, anchor=anchor_sha256())
    if restart:
        _discard(path)
        journal.unlink(missing_ok=True)
    exported: list[NetworkRecord] = []
    if path.exists():
        table = load_table(path)
        _require_same(space, table.search_space.hash, f"The table {path}")
        require_same_environment(table.environment, environment, f"the table {path}")
        if not journal.exists() and not table.missing_workloads():
            return table
        exported = [record for record in table.networks if record.role == "exported"]  # the journal knows nothing of them
    header = {"schema": JOURNAL_SCHEMA, "space_hash": space.hash, "seed": seed, "batch_size": batch_size,
              "environment": environment}
    try:
        measured = _open_journal(journal, header)
    except OSError as error:
        raise InputError(f"The table must be writable, but {path} is not ({error.strerror}): choose another --output.") from None
    workloads = plan_workloads(space, plan, batch_size, seed)
    _measure_rounds(workloads, measured, journal, runtime, config, plan, seed, progress)
    table = _assemble(space, environment, workloads, measured, exported)
    table.save(path)
    if all(len(measured.get(workload.key, ())) >= plan.min_sessions for workload in workloads):
        journal.unlink(missing_ok=True)
    return table


def default_table_path(runtime: Runtime, config: RuntimeConfig, space: SearchSpace) -> Path:
    """`latency_tables/<device>/<runtime>-<precision>-<threads>t/<space>.json`."""
    device = re.sub(r"[^a-z0-9]+", "-", read_processor().name.lower()).strip("-")
    return Path("latency_tables", device, f"{runtime.name}-{config.precision}-{config.threads}t", f"{space.name}.json")


def plan_workloads(space: SearchSpace, plan: ProfilePlan, batch_size: int, seed: int) -> list[Workload]:
    """Every distinct block once, and whole networks spread over the space's range of size."""
    workloads = []
    for edge in {edge.workload: edge for step in space.steps for edge in step.edges}.values():
        if block_network(edge.block, edge.input_shape).nodes:
            workloads.append(Workload(edge.workload, "entry", _BlockModel(edge, batch_size)))
    for index, architecture in enumerate(spread_networks(space, plan.fit_networks + plan.held_out_networks, seed)):
        # A regular comb, so that both groups cover the range.
        teeth = index * plan.fit_networks // (plan.fit_networks + plan.held_out_networks)
        last = (index - 1) * plan.fit_networks // (plan.fit_networks + plan.held_out_networks)
        role: Literal["fit", "held_out"] = "fit" if teeth != last else "held_out"
        workloads.append(Workload(f"network {architecture}", role, _NetworkModel(space, architecture, batch_size),
                                  dict(architecture.choices)))
    return workloads


def spread_networks(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
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
        row = [generator.choice(len(weight), p=weight / weight.sum()) for weight in weights]
        found.setdefault(space.architectures(np.array([row]))[0])
    # Stand in for draws that came twice: all where that is little, else as many again, of which few meet.
    spare = _shuffled(space, generator) if space.size <= 16 * count else trellis.sample(2 * count, seed=generator)
    return list(found | dict.fromkeys(spare))[:count]


def _shuffled(space: SearchSpace, generator: np.random.Generator) -> list[Architecture]:
    rows = list(np.ndindex(*(len(decision.options) for decision in space.decisions)))
    return space.architectures(generator.permutation(np.array(rows)))


def _option_macs(space: SearchSpace, step: Step) -> NDArray[np.float64]:
    """MACs of a decision's options, averaged over the shapes that reach it and standardised."""
    costs = np.array([MacsCost().edge_cost(edge) for edge in step.edges], dtype=np.float64)
    mean = costs.reshape(len(step.inputs), len(step.options)).mean(axis=0)
    return (mean - mean.mean()) / max(mean.std(), 1e-9)


@dataclass(frozen=True)
class _BlockModel:
    edge: Edge
    batch_size: int

    def __call__(self) -> bytes:
        network = block_network(self.edge.block, self.edge.input_shape)
        return to_onnx(network, batch_size=self.batch_size).SerializeToString()


@dataclass(frozen=True)
class _NetworkModel:
    space: SearchSpace
    architecture: Architecture
    batch_size: int

    def __call__(self) -> bytes:
        return to_onnx(self.space.network(self.architecture), batch_size=self.batch_size).SerializeToString()


def _measure_rounds(workloads: list[Workload], measured: dict[str, list[SessionSamples]], journal: Path, runtime: Runtime,
                    config: RuntimeConfig, plan: ProfilePlan, seed: int, progress: Progress | None) -> None:
    deadline = time.monotonic() + plan.max_minutes * 60
    with open(journal, "a", encoding="utf-8") as file:
        for round_index in range(plan.max_sessions):
            due = [workload for workload in workloads if _is_due(measured.get(workload.key, []), round_index, plan)]
            random.Random(f"{seed}/{round_index}").shuffle(due)
            later = max(0, plan.min_sessions - round_index - 1) * len(workloads)
            done_before = sum(len(sessions) for sessions in measured.values())
            for index, workload in enumerate(due):
                if time.monotonic() > deadline:
                    return
                session = measure_session(runtime, config, workload.model(), plan.timing)
                measured.setdefault(workload.key, []).append(session)
                file.write(json.dumps({"key": workload.key, "ratios": session.ratios, "anchor_ms": session.anchor_ms}) + "\n")
                file.flush()
                os.fsync(file.fileno())
                if progress is not None:
                    progress(done_before + index + 1, done_before + len(due) + later, workload.key)


def _is_due(sessions: list[SessionSamples], round_index: int, plan: ProfilePlan) -> bool:
    if len(sessions) > round_index:
        return False  # measured before an interruption
    return round_index < plan.min_sessions or _relative_ci(sessions) > plan.target_relative_ci


def _relative_ci(sessions: list[SessionSamples]) -> float:
    combined = combine_sessions(sessions)
    return (combined.ratio_ci[1] - combined.ratio) / combined.ratio


def _assemble(space: SearchSpace, environment: dict[str, Any], workloads: list[Workload],
              measured: dict[str, list[SessionSamples]], exported: list[NetworkRecord]) -> LatencyTable:
    entries, networks = {}, list(exported)
    for workload in workloads:
        sessions = measured.get(workload.key)
        if not sessions:
            continue
        ratios = tuple(session.ratios for session in sessions)
        if workload.role == "entry":
            label: Literal["ok", "noisy"] = "noisy" if combine_sessions(sessions).label == "noisy" else "ok"
            entries[workload.key] = EntryRecord(sessions=ratios, label=label)
        else:
            networks.append(NetworkRecord(choices=workload.choices, sessions=ratios, role=workload.role))
    anchor_ms = tuple(session.anchor_ms for sessions in measured.values() for session in sessions)
    if not anchor_ms:
        raise InputError("A table needs at least one measurement, but the time was over before the first: raise --max-minutes.")
    anchor = AnchorRecord(name=ANCHOR_NAME, sha256=anchor_sha256(), sessions_ms=anchor_ms)
    table = LatencyTable(space, environment, anchor, entries, ())
    # Nothing can be calibrated while blocks are missing; the networks' sessions wait in the journal.
    return table if table.missing_workloads() else table.with_networks(networks)


def _open_journal(path: Path, header: dict[str, Any]) -> dict[str, list[SessionSamples]]:
    """Reads what an earlier call measured, or starts the journal; a torn last line is cut off."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    content = path.read_bytes()
    length = content.rfind(b"\n") + 1
    lines = content[:length].split(b"\n")[:-1]
    if not lines:  # killed before the header was on disk
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    measured: dict[str, list[SessionSamples]] = {}
    try:
        found = json.loads(lines[0])
        for key in ("schema", "space_hash", "seed", "batch_size"):
            if found[key] != header[key]:
                raise InputError(f"The unfinished profile {path} must continue as it began, but its {key} is {found[key]!r} "
                                 f"and this call's is {header[key]!r}: delete it, or profile with --restart.")
        require_same_environment(dict(found["environment"]), header["environment"], f"the unfinished profile {path}")
        for line in lines[1:]:
            key, session = _read_session(line)
            measured.setdefault(key, []).append(session)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"The journal {path} must be as hwnas wrote it, but a line cannot be read ({error}): profile with "
                         "--restart to measure again.") from None
    if length < len(content):
        os.truncate(path, length)  # the line that was being written when the last call was killed
    return measured


def _read_session(line: bytes) -> tuple[str, SessionSamples]:
    row = json.loads(line)
    session = SessionSamples(tuple(map(float, row["ratios"])), float(row["anchor_ms"]))
    if not session.ratios or not all(0 < value < math.inf for value in (*session.ratios, session.anchor_ms)):
        raise ValueError("a session has no samples, or one that is not a positive number")
    return row["key"], session


def _discard(path: Path) -> None:
    """Deletes a table, whole or torn, and nothing else."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        start = file.read(200)
    if start and TABLE_SCHEMA.rpartition("/")[0].encode() not in start:
        raise InputError(f"Only a latency table is replaced, but {path} is something else: choose another --output.")
    path.unlink()


def _require_same(space: SearchSpace, space_hash: str, what: str) -> None:
    if space.hash != space_hash:
        raise InputError(f"{what} must be of the space {space.name!r} ({space.hash[:12]}), but is of another "
                         f"({space_hash[:12]}): choose another --output or profile with --restart.")
