"""The latency table: what was measured, on what, and what follows from it for any network of the space.

Raw samples are kept, statistics derived on loading. Nothing here measures; nothing here needs a runtime. A block that the runtime
refuses, or crashes on, has a reason in place of samples; it costs infinity, so the trellis leaves out every network with it.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median, median_low
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from hwnas.errors import InputError
from hwnas.files import content_sha256, read_json, write_atomic
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Part
from hwnas.ir.documents import space_from_dict
from hwnas.ir.steps import Edge, Space, Step
from hwnas.latency.calibration import Calibration, fit_calibration
from hwnas.latency.correlation import rank_correlation
from hwnas.latency.effects import block_traits
from hwnas.latency.sessions import combine_ratios, student_t95

# History of the format; `_UPGRADES`, below, makes each of the next.
# 1 (2026-11): first.
# 2 (2026-11): `refused`, the blocks that a runtime does not run, and `effort`, what the measurement took.
# 3 (2026-11): `sittings`, networks that judge the table in other hours, and the anchor's `clocks_mhz`.
# 4 (2026-11): entries that are estimated from others.
SCHEMA = "hwnas.latency-table/4"
COVERAGE = 0.95

# A machine has ratios of its own for hours, which the networks of one hour share and cannot show. What another hour adds to a
# prediction's error varies from table to table: its variance is taken for inverse chi-squared with such a scale and so many
# degrees of freedom, to which each sitting in another hour adds one. A network on large images, or of many times the anchor's
# size, does not find all it needs in a processor's own caches; what it shares with its neighbours differs more between hours. The
# second scale is about that of the committed tables' sittings with such networks, on the machine whose hours differ more;
# 'tools/bench_latency_prediction.py' prints what each hour has added.
_TYPICAL_HOUR_SCALE, _TYPICAL_HOUR_SCALE_IF_LARGE = 0.0043, 0.012
_LARGE = 10.0  # times the anchor's latency
LARGE_INPUT = 3 * 128 * 128  # values that go into one call
_TYPICAL_DEGREES = 4


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AnchorRecord(_Record):
    """The fixed network that everything is timed in turn with.

    Attributes:
        name: Which anchor.
        sha256: Identity of its layers.
        sessions_ms: Median latency of the anchor in every session, which turns ratios into milliseconds.
        clocks_mhz: An accelerator's clock before and after every session, as far as it tells; empty for a CPU.
    """

    name: str
    sha256: str
    sessions_ms: tuple[float, ...] = Field(min_length=1)
    clocks_mhz: tuple[PositiveInt, ...] = ()

    @property
    def spread_ms(self) -> tuple[float, float]:
        """5th and 95th percentile of `sessions_ms`: how much the machine changed meanwhile."""
        low, high = np.percentile(self.sessions_ms, (5, 95))
        return float(low), float(high)

    @property
    def clock_mhz(self) -> tuple[int, int, int] | None:
        """Least, median and largest of `clocks_mhz`; None where there is none."""
        clocks = self.clocks_mhz
        return (min(clocks), median_low(clocks), max(clocks)) if clocks else None


class EntryRecord(_Record):
    """One workload: its ratio to the anchor, sample by sample.

    Attributes:
        sessions: One tuple of paired ratios for every fresh session.
        label: `ok`; `noisy` when the sessions disagree by more than the profiler's target; `imported` when another tool measured
            it, so that neither sessions nor an interval are known; or `estimated` from the entries that were measured (see
            `latency.estimates`), when there is one session of one ratio.
    """

    sessions: tuple[tuple[float, ...], ...] = Field(min_length=1)
    label: Literal["ok", "noisy", "imported", "estimated"]

    @property
    def is_measured(self) -> bool:
        """Whether there are sessions of its own."""
        return self.label in ("ok", "noisy")

    @property
    def ratio(self) -> float:
        """Median over sessions of each session's median: one bad session cannot move it far."""
        return median(median(session) for session in self.sessions)

    @property
    def ratio_ci(self) -> tuple[float, float] | None:
        """95 % confidence interval of `ratio` over sessions; None where it is unknown."""
        return combine_ratios(self.sessions).ratio_ci if self.is_measured else None


class NetworkRecord(_Record):
    """A whole network that was measured.

    Attributes:
        choices: Decision to option.
        sessions: As in an entry.
        role: `fit` networks shape the calibration; `held_out` ones only judge it; `exported` ones come from finished
            artefacts and join the fit.
    """

    choices: dict[str, str]
    sessions: tuple[tuple[float, ...], ...] = Field(min_length=1)
    role: Literal["fit", "held_out", "exported"]

    @property
    def session_ratios(self) -> NDArray[np.float64]:
        """Each session's median; (sessions,)."""
        return np.array([median(session) for session in self.sessions], np.float64)

    @property
    def ratio(self) -> float:
        return median(median(session) for session in self.sessions)


class SittingRecord(_Record):
    """Networks that neither the fit nor an earlier sitting has seen, measured in another hour than the table.

    Attributes:
        measured_utc: When, ISO 8601.
        anchor_ms: The anchor's median latency meanwhile; for the reader, since all else are ratios.
        networks: Each judges the table, none joins the fit.
    """

    measured_utc: str
    anchor_ms: float = Field(gt=0)
    networks: tuple[NetworkRecord, ...] = Field(min_length=1)


class EffortRecord(_Record):
    """What a table took to measure, and how far it came.

    Attributes:
        minutes: Wall clock of all calls that built it, those that were killed among them.
        timing_minutes: Of these, in timed and warm-up calls; the rest prepared, compiled, loaded and started processes.
        sessions: How many were measured.
        planned_sessions: How many were to be.
    """

    minutes: float = Field(ge=0)
    timing_minutes: float = Field(ge=0)
    sessions: int = Field(ge=0)
    planned_sessions: int = Field(ge=0)

    @property
    def complete(self) -> bool:
        """Whether nothing that was planned is left to measure."""
        return self.sessions >= self.planned_sessions


class _Document(_Record):
    """The file, field by field. `calibration` and `held_out` are written for readers and re-derived on loading."""

    schema_: str = Field(alias="schema")
    space: str
    space_hash: str
    space_definition: dict[str, Any]
    environment: dict[str, Any]
    anchor: AnchorRecord
    entries: dict[str, EntryRecord]
    refused: dict[str, str]
    effort: EffortRecord | None
    networks: tuple[NetworkRecord, ...]
    sittings: tuple[SittingRecord, ...]
    calibration: dict[str, Any]
    held_out: dict[str, Any]
    content_sha256: str


@dataclass(frozen=True)
class Prediction:
    """What a network will take on the table's device, with a 95 % interval (conformal on held-out networks)."""

    latency_ms: float
    lower_ms: float
    upper_ms: float


@dataclass(frozen=True)
class HeldOut:
    """How far predictions were off on networks that no fit has seen.

    Attributes:
        networks: How many.
        mean_error: Mean relative error.
        max_error: Largest.
        within_5_percent: Share of networks within 5 %.
        spearman: Rank correlation of prediction and measurement (0 where it is not defined, as with fewer than three networks).
        interval: Half-width of the relative 95 % interval, for a measurement in any hour: the two below, square to square.
        same_hour_interval: Of a measurement in the hour of these networks.
        other_hour_interval: Of what another hour adds.
        sittings: In how many other hours that was measured; it is what is typical for none, and less so with each.
    """

    networks: int
    mean_error: float
    max_error: float
    within_5_percent: float
    spearman: float
    interval: float
    same_hour_interval: float
    other_hour_interval: float
    sittings: int = 0


@dataclass(frozen=True)
class LatencyTable:
    """A measured table; also the trellis' cost model, in milliseconds, infinite for what is refused.

    Attributes:
        search_space: The space that was profiled.
        environment: Device, runtime, versions, threads, precision and flags of the measurement.
        anchor: The anchor's identity and latency.
        entries: Workload text (`Edge.workload`) to its record.
        networks: Whole networks, those that calibrate and those that judge.
        refused: Workload text to one sentence that says why the runtime does not run it; stronger than an entry. Whole networks
            that were refused are among them, by the keys of `hwnas.latency.refusals`.
        effort: What it took to measure; None where that is not known.
        sittings: Networks that judged it in other hours.
    """

    search_space: Space
    environment: Mapping[str, Any]
    anchor: AnchorRecord
    entries: Mapping[str, EntryRecord]
    networks: tuple[NetworkRecord, ...]
    refused: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    effort: EffortRecord | None = field(default=None, kw_only=True)
    sittings: tuple[SittingRecord, ...] = field(default=(), kw_only=True)

    unit = "ms"

    @property
    def space(self) -> str:
        """Name of the profiled space."""
        return self.search_space.name

    @cached_property
    def anchor_ms(self) -> float:
        """The anchor's latency: median over sessions. A ratio times this is a latency."""
        return median(self.anchor.sessions_ms)

    @cached_property
    def usable_networks(self) -> tuple[NetworkRecord, ...]:
        """Those without a refused block: the others, measured before the refusal, say nothing about what is left."""
        columns = [column for workload, column in self._workloads.items() if workload in self.refused]
        if not columns:
            return self.networks
        refused_blocks = self._block_counts(self._rows(self.networks))[:, columns].sum(axis=1).tolist()
        return tuple(record for record, count in zip(self.networks, refused_blocks, strict=True) if not count)

    @cached_property
    def judging_networks(self) -> tuple[NetworkRecord, ...]:
        """The held-out networks, but for those that were exported since: these have joined the fit."""
        return self._not_exported(record for record in self.usable_networks if record.role == "held_out")

    @cached_property
    def judging_sittings(self) -> tuple[tuple[NetworkRecord, ...], ...]:
        """The networks of other hours, likewise without those that were exported since."""
        found = (self._not_exported(sitting.networks) for sitting in self.sittings)
        return tuple(networks for networks in found if networks)

    @cached_property
    def calibration(self) -> Calibration:
        """Fitted on all but the held-out networks."""
        records = [record for record in self.usable_networks if record.role != "held_out"]
        counts = self._block_counts(self._rows(records))
        known = [(workload, column) for workload, column in self._workloads.items()
                 if counts[:, column].any() or (workload in self.entries and workload not in self.refused)]
        return fit_calibration(counts[:, [column for _, column in known]],
                               {workload: self._entry(workload).ratio for workload, _ in known},
                               [record.session_ratios for record in records],
                               {workload: block_traits(self.search_space.measured_parts[workload]) for workload, _ in known})

    @cached_property
    def held_out(self) -> HeldOut:
        """Error on networks that the calibration has not seen."""
        return judge(self.predicted_ratios(self.judging_networks), measured_ratios(self.judging_networks),
                     [self.errors(networks) for networks in self.judging_sittings], self.has_large_inputs)

    @property
    def has_large_inputs(self) -> bool:
        """Whether a call takes large images, or many."""
        batch_size = self.environment.get("batch_size", 1)
        images = batch_size if isinstance(batch_size, int) else 1
        return images * math.prod(self.search_space.input_shape) >= LARGE_INPUT

    def errors(self, records: Sequence[NetworkRecord]) -> NDArray[np.float64]:
        """Measured over predicted, less one, of each network."""
        return measured_ratios(records) / self.predicted_ratios(records) - 1

    def predicted_ratios(self, records: Sequence[NetworkRecord]) -> NDArray[np.float64]:
        """What the table predicts for each network, to the anchor."""
        return (self.constant + self._edge_costs(self._rows(records))) / self.anchor_ms

    @property
    def constant(self) -> float:
        """What every network costs beyond its edges, in ms."""
        return self.calibration.intercept * self.anchor_ms

    def edge_cost(self, edge: Edge) -> float:
        """Milliseconds that an edge adds to a network; infinity where the runtime refuses a workload of the edge.

        Raises:
            InputError: The table has no entry for a workload of the edge.
        """
        if self.refusal(edge) is not None:
            return math.inf
        return sum(self.calibration.cost(part.workload, self._entry(part.workload).ratio)
                   for part in _measured_parts(edge)) * self.anchor_ms

    def refusal(self, edge: Edge) -> str | None:
        """The first of an edge's workloads that the runtime refuses."""
        return next((part.workload for part in _measured_parts(edge) if part.workload in self.refused), None)

    def predict(self, architecture: Architecture) -> Prediction:
        """Predicts one network's latency.

        Raises:
            InputError: The architecture is not of the table's space, the table lacks one of its blocks, or the runtime refuses
                one.
        """
        return self.predict_many([architecture])[0]

    def predict_many(self, architectures: Sequence[Architecture]) -> list[Prediction]:
        """Predicts many networks at once.

        Raises:
            InputError: As `predict`.
        """
        rows = self.search_space.indices(architectures)
        return [self.interval_around(float(latency)) for latency in self.constant + self._edge_costs(rows)]

    def interval_around(self, latency_ms: float) -> Prediction:
        """The prediction whose centre is the given latency."""
        half = self.held_out.interval
        return Prediction(latency_ms, latency_ms * max(0.0, 1 - half), latency_ms * (1 + half))

    def promise_budget(self, max_latency_ms: float) -> float:
        """The predicted latency whose upper end is the budget: what a search may use for a promise to hold."""
        return max_latency_ms / (1 + self.held_out.interval)

    def missing_workloads(self) -> list[str]:
        """Workloads of the space that have no entry yet and are not refused, in the space's order."""
        return [workload for workload in self._workloads if workload not in self.entries and workload not in self.refused]

    def with_networks(self, records: Sequence[NetworkRecord]) -> "LatencyTable":
        """The same table with more measured networks (a certification that failed, for example)."""
        return replace(self, networks=(*self.networks, *records))

    def with_sitting(self, sitting: SittingRecord) -> "LatencyTable":
        """The same table, judged in one more hour."""
        return replace(self, sittings=(*self.sittings, sitting))

    def _not_exported(self, records: Iterable[NetworkRecord]) -> tuple[NetworkRecord, ...]:
        joined = [record.choices for record in self.usable_networks if record.role == "exported"]
        return tuple(record for record in records if record.choices not in joined)

    @cached_property
    def _workloads(self) -> dict[str, int]:
        """The space's workloads, numbered in its order."""
        return {workload: number for number, workload in enumerate(self.search_space.measured_parts)}

    def _entry(self, workload: str) -> EntryRecord:
        try:
            return self.entries[workload]
        except KeyError:
            raise InputError(f"The table of {self.space!r} has no entry for {workload}: complete it with "
                             f"'hwnas profile --device {self.environment.get('runtime')} --space ...'.") from None

    def _rows(self, records: Sequence[NetworkRecord]) -> NDArray[np.int64]:
        return self.search_space.indices([self.search_space.architecture(record.choices) for record in records])

    def _edge_costs(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Milliseconds of networks (N, decisions) beyond the constant."""
        return path_costs(self.search_space, rows, self.require_runs, self.edge_cost)

    def require_runs(self, step: Step, edge: Edge) -> None:
        """Refuses an edge that the runtime refuses.

        Raises:
            InputError: As said; names the option.
        """
        workload = self.refusal(edge)
        if workload is not None:
            option = f"option {step.options[edge.option]!r} of decision {step.name!r}" if step.is_decision else (
                f"layer {step.name!r}")
            raise InputError(f"A network is predicted from blocks that {self.environment.get('runtime')} runs, but it refuses "
                             f"{option}, {workload} ({self.refused[workload].rstrip('. ')}): choose another option or runtime.")

    def _block_counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How often each network (N, decisions) has each workload; (N, workloads)."""
        counts = np.zeros((len(rows), len(self._workloads)), np.int64)
        for step, passed in self.search_space.passed(rows):
            for index in np.unique(passed):
                for part in _measured_parts(step.edges[index]):
                    counts[passed == index, self._workloads[part.workload]] += 1
        return counts

    def to_dict(self) -> dict[str, Any]:
        """The document that is stored; `content_sha256` covers everything else in it."""
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "space": self.space,
            "space_hash": self.search_space.hash,
            "environment": dict(self.environment),
            "anchor": self.anchor.model_dump() | {"latency_ms": self.anchor_ms},
            "calibration": vars(self.calibration),
            "held_out": vars(self.held_out),
            "effort": None if self.effort is None else self.effort.model_dump(),
            "refused": dict(self.refused),
            "entries": {key: {"label": entry.label, "ratio": entry.ratio, "sessions": entry.sessions}
                        for key, entry in self.entries.items()},
            "networks": [record.model_dump() for record in self.networks],
            "sittings": [sitting.model_dump() for sitting in self.sittings],
            "space_definition": self.search_space.to_dict(),
        }
        return content | {"content_sha256": content_sha256(content)}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the table atomically, one entry a line."""
        return write_atomic(path, _dump_lines(self.to_dict()))


def path_costs(space: Space, rows: NDArray[np.int64], require: Callable[[Step, Edge], None],
               edge_cost: Callable[[Edge], float]) -> NDArray[np.float64]:
    """What the edges of networks (N, decisions) cost together, each edge once looked at; (N,)."""
    totals = np.zeros(len(rows))
    for step, passed in space.passed(rows):
        costs = np.zeros(len(step.edges))
        for index in np.unique(passed):
            require(step, step.edges[index])
            costs[index] = edge_cost(step.edges[index])
        totals += costs[passed]
    return totals


def _measured_parts(edge: Edge) -> list[Part]:
    return [part for part in edge.parts if not part.block.is_free]


_UNKNOWN_INTERVAL = 1.0  # no network has judged the table: from nothing to double, and no promise worth the word
_ENOUGH_NETWORKS = 19  # the least whose largest error covers 95 %


def load_table(path: str | os.PathLike[str]) -> LatencyTable:
    """Reads a table file of this version or an earlier one, and checks it whole.

    Raises:
        InputError: Missing, truncated, edited, of another schema, or with values that cannot be.
    """
    document = read_json(path, "latency table")
    _require_readable(document, path)
    if document.get("content_sha256") != content_sha256(document):  # as it was stored: an upgrade changes the content
        raise InputError(f"A latency table must be as it was measured, but the content of {path} does not match its own "
                         "hash: it was edited or damaged; restore it or profile again.")
    while document["schema"] in _UPGRADES:
        document = _UPGRADES[document["schema"]](document)
    try:
        derived = {"anchor": {key: value for key, value in document["anchor"].items() if key != "latency_ms"},
                   "entries": {key: {part: value for part, value in entry.items() if part != "ratio"}
                               for key, entry in document["entries"].items()}}
        record = _Document.model_validate(document | derived)
    except (ValidationError, KeyError, AttributeError, TypeError) as error:
        reason = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (str(error),), "msg": "missing"}
        raise InputError(f"A latency table's fields must be complete, but {path} fails at "
                         f"{'.'.join(map(str, reason['loc']))} ({reason['msg']}): profile the space again.") from None
    space = space_from_dict(record.space_definition)
    if space.hash != record.space_hash:
        raise InputError(f"A table's space must match its hash, but in {path} it does not: profile the space again.")
    networks = (*record.networks, *(network for sitting in record.sittings for network in sitting.networks))
    measured: list[EntryRecord | NetworkRecord] = [*record.entries.values(), *networks]
    samples = [sample for owner in measured for session in owner.sessions for sample in (session or (math.nan,))]
    if not all(sample > 0 for sample in (*samples, *record.anchor.sessions_ms)):
        raise InputError(f"Measured samples must be positive, but {path} has an empty session or one that is not: profile "
                         "the space again.")
    table = LatencyTable(space, record.environment, record.anchor, record.entries, record.networks, refused=record.refused,
                         effort=record.effort, sittings=record.sittings)
    for network in networks:
        space.architecture(network.choices)
    return table


def _require_readable(document: Any, path: str | os.PathLike[str]) -> None:
    """Refuses what is no table, and tells a table of a version to come from a file of something else."""
    schema = document.get("schema") if isinstance(document, dict) else type(document).__name__
    if isinstance(document, dict) and isinstance(schema, str) and (schema == SCHEMA or schema in _UPGRADES):
        return
    kind, _, latest = SCHEMA.rpartition("/")
    version = re.fullmatch(rf"{re.escape(kind)}/(\d{{1,9}})", schema, re.ASCII) if isinstance(schema, str) else None
    if version and int(version[1]) > int(latest):
        raise InputError(f"A latency table has a schema up to {SCHEMA!r} here, but {path} has {schema!r}, so it was written by a "
                         "newer hwnas: upgrade.")
    known = " or ".join(map(repr, (*_UPGRADES, SCHEMA)))
    raise InputError(f"A latency table has schema {known}, but {path} has {str(schema)[:80]!r}: profile the space again.")


def _upgrade_1(document: dict[str, Any]) -> dict[str, Any]:
    """Version 1 ended where a runtime refused a block, and did not count what it took."""
    return document | {"schema": "hwnas.latency-table/2", "refused": {}, "effort": None}


def _upgrade_2(document: dict[str, Any]) -> dict[str, Any]:
    """Version 2 was of a single hour."""
    return document | {"schema": "hwnas.latency-table/3", "sittings": []}


def _upgrade_3(document: dict[str, Any]) -> dict[str, Any]:
    """Version 3 had measured every block."""
    return document | {"schema": "hwnas.latency-table/4"}


_UPGRADES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "hwnas.latency-table/1": _upgrade_1, "hwnas.latency-table/2": _upgrade_2, "hwnas.latency-table/3": _upgrade_3}
"""What makes a document of the next version out of one of an earlier version."""


def measured_ratios(records: Sequence[NetworkRecord]) -> NDArray[np.float64]:
    """What was measured of each network, to the anchor."""
    return np.array([record.ratio for record in records], np.float64)


def judge(predicted: NDArray[np.float64], measured: NDArray[np.float64],
          later: Sequence[NDArray[np.float64]] = (), has_large_inputs: bool = False) -> HeldOut:
    """How far predictions are off networks that no fit has seen, and how far they may be off another one in another hour.

    Args:
        predicted: Of the networks that were measured with the table, to the anchor; (N,).
        measured: The same; (N,).
        later: Relative errors of the networks of every other hour.
        has_large_inputs: Whether more is to be expected of another hour, as of networks of many times the anchor's latency.
    """
    errors = measured / predicted - 1
    is_large = has_large_inputs or (bool(measured.size) and float(np.median(measured)) > _LARGE)
    other_hour = other_hour_interval(errors, later, _TYPICAL_HOUR_SCALE_IF_LARGE if is_large else _TYPICAL_HOUR_SCALE)
    if not measured.size:
        return HeldOut(0, 0.0, 0.0, 0.0, 0.0, _UNKNOWN_INTERVAL, _UNKNOWN_INTERVAL, other_hour, len(later))
    far = np.abs(errors)
    same_hour = conformal_interval(far)
    return HeldOut(len(far), float(far.mean()), float(far.max()), float((far <= 0.05).mean()),
                   rank_correlation(predicted.tolist(), measured.tolist()) or 0.0,
                   math.hypot(same_hour, other_hour), same_hour, other_hour, len(later))


def other_hour_interval(errors: NDArray[np.float64], later: Sequence[NDArray[np.float64]], typical_scale: float) -> float:
    """Half-width that covers what another hour adds to a relative error, with a probability of 95 %.

    Student's quantile around nothing of a moderated scale (Smyth, "Linear models and empirical Bayes methods", 2004, section 3):
    what is typical, and by how much the mean square of each sitting exceeds that of the table's own hour.

    Args:
        errors: Relative errors in the hour of the table; (N,).
        later: Those of each other hour.
        typical_scale: What is typical.
    """
    usual = float(np.mean(errors**2)) if errors.size else 0.0
    added = sum(float(np.mean(sitting**2)) - usual for sitting in later)
    degrees = _TYPICAL_DEGREES + len(later)
    return student_t95(degrees) * math.sqrt(max(_TYPICAL_DEGREES * typical_scale**2 + added, 0.0) / degrees)


def conformal_interval(errors: NDArray[np.float64]) -> float:
    """Half-width that covers a new network's relative error with a probability of 95 %.

    Split conformal prediction (Lei et al. 2018, arXiv 1604.04173, sec. 2.2): the ceil((n + 1) * 95 %)-th smallest error.
    Fewer than 19 networks bear no such statement whatever the errors are; then the largest is widened by 19 / n, which
    covers more than 95 % where errors are normal, with a single network, too.
    """
    ordered = np.sort(errors)
    if ordered.size < _ENOUGH_NETWORKS:
        return float(ordered[-1] * _ENOUGH_NETWORKS / ordered.size)
    return float(ordered[math.ceil((ordered.size + 1) * COVERAGE) - 1])


def _dump_lines(document: dict[str, Any]) -> str:
    """JSON with one line for every block and network: compact, and readable in a diff."""
    parts = []
    for key, value in document.items():
        if key in ("entries", "refused") and value:
            rows = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items()]
            parts.append(f' "{key}": {{\n' + ",\n".join(rows) + "\n }")
        elif key in ("networks", "sittings") and value:
            rows = [f"  {json.dumps(row)}" for row in value]
            parts.append(f' "{key}": [\n' + ",\n".join(rows) + "\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
