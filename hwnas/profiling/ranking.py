"""Which published network is best on this device: reference networks timed here, beside the accuracy that was published.

The file that is written holds every session, so that a later call adds networks to it; a journal lies beside it only while
a call is under way, or was killed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hwnas.errors import InputError
from hwnas.files import locked, read_json, write_atomic
from hwnas.latency.sessions import combine_sessions
from hwnas.lower.onnx import to_onnx
from hwnas.profiling.anchor import anchor_name
from hwnas.profiling.device import Device
from hwnas.profiling.environment import require_same_environment
from hwnas.profiling.rounds import (
    Measured,
    Progress,
    RoundsPlan,
    discard,
    measure_rounds,
    measurement_folder,
    open_journal,
)
from hwnas.profiling.session import SessionSamples, read_session
from hwnas.profiling.timing import TimingPlan
from hwnas.spaces.reference import ReferenceNetwork

SCHEMA = "hwnas.ranking/1"
JOURNAL_SCHEMA = "hwnas.ranking-journal/1"
# Whole networks take a hundred times as long as blocks: a session needs longer for as many pairs.
TIMING = TimingPlan(sample_ms=2.0, min_pairs=16, max_pairs=64, max_seconds=1.2, warmup_pairs=3, max_warmup_seconds=0.4)


@dataclass(frozen=True)
class RankedNetwork:
    """A network that was timed, with its 95 % interval over sessions.

    Attributes:
        name: The reference network's.
        sha256: Identity of its layers.
        macs: Multiply-accumulates for one image.
        parameters: All learnable ones.
        top1: Published ImageNet accuracy in percent; None where none was.
        source: Where it was published.
        latency_ms: Of one call.
        lower_ms: Of its interval.
        upper_ms: Of its interval.
        label: `ok`, or `noisy` when the interval is wide.
        on_front: Whether no other network is at least as fast and as accurate, and better in one of the two.
        sessions: What was measured.
    """

    name: str
    sha256: str
    macs: int
    parameters: int
    top1: float | None
    source: str
    latency_ms: float
    lower_ms: float
    upper_ms: float
    label: str
    on_front: bool
    sessions: tuple[SessionSamples, ...]


@dataclass(frozen=True)
class Ranking:
    """Reference networks on one device.

    Attributes:
        environment: Device, runtime, versions, threads, precision and batch of the measurement.
        anchor_ms: The anchor's latency, which turned ratios into milliseconds.
        networks: What was timed, fastest first.
        unfinished: Names of those asked for that time was over for.
        refused: Names of those that the runtime refuses, with its reason.
    """

    environment: Mapping[str, Any]
    anchor_ms: float
    networks: tuple[RankedNetwork, ...]
    unfinished: tuple[str, ...]
    refused: Mapping[str, str]

    @property
    def front(self) -> tuple[RankedNetwork, ...]:
        """The networks on the Pareto front, fastest (and least accurate) first."""
        return tuple(network for network in self.networks if network.on_front)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        identity = self.environment["anchor"]
        anchor = {"name": anchor_name(identity), "sha256": identity, "latency_ms": self.anchor_ms}
        return {"schema": SCHEMA, "environment": dict(self.environment), "anchor": anchor,
                "networks": [asdict(network) for network in self.networks], "unfinished": list(self.unfinished),
                "refused": dict(self.refused)}


def rank_networks(networks: Iterable[ReferenceNetwork], device: Device, output: str | os.PathLike[str], *,
                  only: Sequence[str] | None = None, batch_size: int = 1, plan: RoundsPlan | None = None, seed: int = 0,
                  restart: bool = False, progress: Progress | None = None) -> Ranking:
    """Times networks on a device, ranks them and writes what was measured; continues what an earlier call began.

    Args:
        networks: All there are.
        device: Where.
        output: The file to write, or to add to.
        only: Names of those to time and to rank; the others' measurements stay in the file. None: all.
        batch_size: Images a call.
        plan: How much to measure.
        seed: Chooses the order.
        restart: Discards what is there.
        progress: Called with (sessions done, sessions planned, name).

    Returns:
        The ranking of the networks asked for.

    Raises:
        InputError: What is there is of another environment or schema, is being measured by another process, or cannot be
            written; or nothing could be measured.
        UnavailableError: The device cannot be reached, or not any more; what was measured is kept.
    """
    plan = plan or RoundsPlan(timing=TIMING)
    environment = device.environment(batch_size)
    with locked(output, "ranking"):
        return _rank_networks(networks, device, environment, Path(output), only, batch_size, plan, seed, restart, progress)


def _rank_networks(networks: Iterable[ReferenceNetwork], device: Device, environment: dict[str, Any], path: Path,
                   only: Sequence[str] | None, batch_size: int, plan: RoundsPlan, seed: int, restart: bool,
                   progress: Progress | None) -> Ranking:
    journal = path.with_name(path.name + ".journal")
    known = {network.name: network for network in networks}
    asked = {_key(known[name]): known[name] for name in (known if only is None else only)}
    if restart:
        discard(path, SCHEMA, "ranking")
        journal.unlink(missing_ok=True)
    earlier = _load_sessions(path, environment) if path.exists() else {}
    try:
        measured = open_journal(journal, {"schema": JOURNAL_SCHEMA, "environment": environment}, earlier)
    except OSError as error:
        raise InputError(f"A ranking must be writable, but {path} is not ({error.strerror}): choose another --output.") from None
    refused: dict[str, str] = {}
    measure_rounds({key: _model(network, batch_size) for key, network in asked.items()}, measured, journal, device, plan,
                   seed=seed, refused=refused,
                   progress=None if progress is None else lambda done, total, key: progress(done, total, asked[key].name),
                   preparing=None if progress is None else (
                       lambda done, total, key: progress(done, total, f"preparing {asked[key].name}")))
    unfinished = tuple(network.name for key, network in asked.items()
                       if key not in refused and len(measured.get(key, ())) < plan.min_sessions)
    reasons = {asked[key].name: reason for key, reason in refused.items()}
    if measured != earlier:
        write_atomic(path, _dump_lines(_rank(environment, known.values(), measured, unfinished, reasons).to_dict()))
    journal.unlink()
    if not any(key in measured for key in asked):
        why = next(iter(refused.values()), "the time was over before the first session: raise --max-minutes.")
        raise InputError(f"A ranking needs at least one measurement, but there is none: {why}")
    return _rank(environment, asked.values(), measured, unfinished, reasons)


def default_ranking_path(environment: Mapping[str, Any], batch_size: int = 1) -> Path:
    """`network_latencies/<device>/<runtime>-<precision>-<threads>t.json`; a batch of more than one image is named too."""
    place = measurement_folder(environment)
    batch = f"-batch{batch_size}" if batch_size > 1 else ""
    return Path("network_latencies") / place.with_name(f"{place.name}{batch}.json")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each (latency, accuracy) is such that no other is at least as good in both and better in one."""
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    on_front = [False] * len(points)
    last: tuple[float, float] | None = None
    for index in order:
        if last is None or points[index][1] > last[1] or points[index] == last:
            on_front[index] = True
            last = points[index]
    return on_front


def _rank(environment: Mapping[str, Any], networks: Iterable[ReferenceNetwork], measured: Measured, unfinished: tuple[str, ...],
          refused: Mapping[str, str]) -> Ranking:
    """The anchor's latency is that of all sessions, so that the order of ratios is the order of latencies."""
    timed = {key: network for network in networks if (key := _key(network)) in measured}
    anchor_ms = median([session.anchor_ms for sessions in measured.values() for session in sessions] or [0.0])
    ratios = {key: combine_sessions(measured[key]) for key in timed}
    points = {key: (ratios[key].ratio, network.published.top1) for key, network in timed.items()
              if network.published.top1 is not None}
    front = dict(zip(points, pareto_front(list(points.values())), strict=True))
    ranked = []
    for key in sorted(timed, key=lambda key: ratios[key].ratio):
        network, statistics = timed[key], ratios[key]
        low, high = statistics.ratio_ci
        ranked.append(RankedNetwork(
            name=network.name, sha256=_sha256(network), macs=network.network.macs, parameters=network.network.parameters,
            top1=network.published.top1, source=network.published.source, latency_ms=statistics.ratio * anchor_ms,
            lower_ms=low * anchor_ms, upper_ms=high * anchor_ms, label=statistics.label, on_front=front.get(key, False),
            sessions=tuple(measured[key])))
    return Ranking(environment, anchor_ms, tuple(ranked), unfinished, refused)


def _load_sessions(path: Path, environment: Mapping[str, Any]) -> Measured:
    document = read_json(path, "ranking")
    try:
        if document["schema"] != SCHEMA:
            raise InputError(f"A ranking has schema {SCHEMA!r}, but {path} has {document['schema']!r}: choose another --output.")
        require_same_environment(dict(document["environment"]), environment, f"the ranking {path}",
                                 remedy="repeat with --restart to measure again")
        return {f"{row['name']} {row['sha256']}": [read_session(session) for session in row["sessions"]]
                for row in document["networks"]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"The ranking {path} must be as hwnas wrote it, but cannot be read ({error}): choose another --output, "
                         "or repeat with --restart to measure again.") from None


def _dump_lines(document: Mapping[str, Any]) -> str:
    """JSON with one line for every network: compact, and readable in a diff."""
    networks = ",\n".join(f"  {json.dumps(network, allow_nan=False)}" for network in document["networks"])
    rest = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "networks"]
    return "{\n" + ",\n".join([*rest, f' "networks": [\n{networks}\n ]']) + "\n}\n"


def _key(network: ReferenceNetwork) -> str:
    """Name and layers: measurements of a network whose definition has changed since are no longer its own."""
    return f"{network.name} {_sha256(network)}"


def _sha256(network: ReferenceNetwork) -> str:
    layers = network.network
    return hashlib.sha256(repr((layers.input_shape, layers.nodes, layers.output)).encode()).hexdigest()


def _model(network: ReferenceNetwork, batch_size: int) -> Callable[[], bytes]:
    return lambda: to_onnx(network.network, batch_size=batch_size).SerializeToString()
