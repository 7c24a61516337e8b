"""Measures a kit: what `hwnas kit build` made for a device that is reached by hand only. This half runs on the device.

It needs Python, numpy and the runtime. It is the profiler's own machinery (agent, rounds, journal), but for models that arrive
prepared. The journal is the result: every finished session is a line that is on the disk before the next begins, so that a
kill at any moment costs one session, and the same command goes on from there.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from hwnas.errors import HwnasError, InputError, VerificationError
from hwnas.files import content_sha256, locked, read_json
from hwnas.profiling.device import Anchor, Device, launch_here
from hwnas.profiling.protocol import Message, ProtocolError, program_message, program_of
from hwnas.profiling.rounds import Measured, Progress, RoundsPlan, measure_rounds, open_journal
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RUNTIMES
from hwnas.runtimes.base import Availability, Executable, Program, Runtime, RuntimeConfig, Setting

SCHEMA = "hwnas.kit/1"
KIT_FILE, RESULTS_FILE, PROGRAMS_FOLDER = "kit.json", "results.jsonl", "programs"

_LINE_SECONDS = 5.0  # how often there is a line of progress


@dataclass(frozen=True)
class KitWorkload:
    """Something to measure.

    Attributes:
        key: As in the profiler's plan.
        role: `entry` for a block, or the network's role.
        program: SHA-256 of its packed program, which is also its file's name.
        choices: The network's choices; empty for a block.
        blocks: Keys of the network's blocks; empty for a block.
    """

    key: str
    role: Literal["entry", "fit", "held_out"]
    program: str
    choices: dict[str, str] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kit:
    """A kit's manifest.

    Attributes:
        folder: Where the kit lies.
        sha256: Identity of the manifest.
        space: The space's definition.
        runtime: Name of the runtime.
        config: How it runs.
        converter: Version of what prepared the programs, if it has one.
        anchor: SHA-256 of the anchor's network.
        anchor_program: SHA-256 of its packed program.
        plan: The profiler's plan but for its minutes, field by field.
        sessions: The least and the most sessions by role.
        header: The beginning of the journal's header.
        hwnas_version: What built it.
        workloads: What is to be measured.
        refused: Blocks and networks that could not be prepared, with the reason.
        sizes: Bytes of every program, by SHA-256.
    """

    folder: Path
    sha256: str
    space: Mapping[str, Any]
    runtime: str
    config: RuntimeConfig
    converter: str | None
    anchor: str
    anchor_program: str
    plan: Mapping[str, Any]
    sessions: Mapping[str, tuple[int, int]]
    header: Mapping[str, Any]
    hwnas_version: str
    workloads: tuple[KitWorkload, ...]
    refused: Mapping[str, str]
    sizes: Mapping[str, int]

    @property
    def batch_size(self) -> int:
        return int(self.header["batch_size"])

    @property
    def seed(self) -> int:
        return int(self.header["seed"])

    def journal_header(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """What results must begin with."""
        return {**self.header, "kit": self.sha256, "environment": dict(environment)}

    def measurable(self, refused: Mapping[str, str]) -> list[KitWorkload]:
        """What the device does not refuse, a network with a refused block included."""
        return [workload for workload in self.workloads
                if workload.key not in refused and not any(block in refused for block in workload.blocks)]

    def missing_sessions(self, measured: Measured, refused: Mapping[str, str]) -> int:
        """How many sessions are left to measure at least."""
        return sum(max(0, self.sessions[workload.role][0] - len(measured.get(workload.key, ())))
                   for workload in self.measurable(refused))

    def read_program(self, sha256: str) -> bytes:
        """A packed program, which is what it was when the kit was built.

        Raises:
            VerificationError: It is not, or not there.
        """
        path = self.folder / PROGRAMS_FOLDER / sha256
        try:
            content = path.read_bytes()
        except OSError as error:
            raise VerificationError(f"A kit must be whole, but its program {path} cannot be read ({error.strerror}): copy it "
                                    "again.") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise VerificationError(f"A kit's programs must be as they were built, but {path} does not match its hash: copy "
                                    "the kit again.")
        return content

    def check_programs(self) -> None:
        """Reads every program once.

        Raises:
            VerificationError: One is missing or damaged.
        """
        for sha256 in self.sizes:
            self.read_program(sha256)


def load_kit(folder: Path) -> Kit:
    """Reads a kit's manifest.

    Raises:
        InputError: It is missing, of another schema, edited, or not complete.
    """
    path = folder / KIT_FILE
    document = read_json(path, "kit manifest")
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise InputError(f"A kit's manifest has schema {SCHEMA!r}, but {path} has {str(schema)[:80]!r}: build the kit again, "
                         "with the hwnas that reads it.")
    if document.get("content_sha256") != content_sha256(document):
        raise InputError(f"A kit's manifest must be as it was built, but the content of {path} does not match its own hash: it "
                         "was edited or damaged; copy or build the kit again.")
    try:
        return _read_manifest(folder, document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"A kit's manifest must be complete, but in {path} a field is missing or wrong ({error}): build the kit "
                         "again.") from None


def _read_manifest(folder: Path, document: Mapping[str, Any]) -> Kit:
    keys = [str(row["key"]) for row in document["workloads"]]
    workloads = tuple(KitWorkload(key, row["role"], str(row["program"]), dict(row.get("choices", {})),
                                  tuple(keys[index] for index in row.get("blocks", ())))
                      for key, row in zip(keys, document["workloads"], strict=True))
    kit = Kit(folder, str(document["content_sha256"]), document["space_definition"], str(document["runtime"]),
              RuntimeConfig(document["threads"], str(document["precision"])), document["converter"],
              str(document["anchor"]["sha256"]), str(document["anchor"]["program"]), document["plan"],
              {role: (int(least), int(most)) for role, (least, most) in document["sessions"].items()}, document["journal"],
              str(document["versions"]["hwnas"]), workloads, dict(document["refused"]), dict(document["programs"]))
    if not {workload.program for workload in workloads} | {kit.anchor_program} <= set(kit.sizes):
        raise ValueError("a program is not listed")
    if not {workload.role for workload in workloads} <= set(kit.sessions):
        raise ValueError("a role is not known")
    return kit


def pack_program(program: Program) -> bytes:
    """A program as one file, in the form in which it travels to an agent: a line of JSON, then the files that it names."""
    message = program_message({}, program)
    sizes = {name: len(content) for name, content in message.files.items()}
    return b"".join((json.dumps({**message.content, "files": sizes}).encode(), b"\n", *message.files.values()))


def unpack_program(content: bytes) -> Program:
    """What `pack_program` packed.

    Raises:
        InputError: It is something else.
    """
    line, _, rest = content.partition(b"\n")
    files, offset = {}, 0
    try:
        head = json.loads(line)
        for name, size in head["files"].items():
            files[name] = rest[offset:offset + size]
            offset += size
        if offset != len(rest):
            raise ValueError("its files are not as long as it says")
        return program_of(Message(head, files))
    except (KeyError, TypeError, ValueError, AttributeError, ProtocolError) as error:
        raise InputError(f"A packed program must be as hwnas packed it, but is not ({error}): build the kit again.") from None


class PreparedRuntime(Runtime):
    """A runtime whose models arrive prepared: `prepare` takes them packed.

    Args:
        runtime: What loads them.
        converter: What prepared them, if it has a version.
    """

    def __init__(self, runtime: Runtime, converter: str | None) -> None:
        self.name, self.precisions = runtime.name, runtime.precisions
        self._runtime, self._converter = runtime, converter

    def can_prepare(self) -> Availability:
        return Availability(True, version=self._converter)

    def can_load(self) -> Availability:
        return self._runtime.can_load()

    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        return self._runtime.settings(config)

    def clock_mhz(self) -> int | None:
        return self._runtime.clock_mhz()

    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        return unpack_program(model if isinstance(model, bytes) else model.read_bytes())

    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        return self._runtime.load(program, config)


def run_kit(folder: Path, *, max_minutes: float = math.inf, cpus: Sequence[int] = (), restart: bool = False,
            progress: Progress | None = None) -> tuple[Kit, Measured, dict[str, str]]:
    """Measures a kit's workloads here, and goes on where an earlier call ended.

    Args:
        folder: The kit.
        max_minutes: Stop after this long.
        cpus: Which processors to use, instead of the last ones.
        restart: Discards what is there.
        progress: Called with (sessions done, sessions planned, what was measured).

    Returns:
        The kit, its sessions by key, and what is refused, with the reason.

    Raises:
        InputError: The kit or its results are not usable, or the results are of another device.
        UnavailableError: The runtime is not usable here.
        VerificationError: A program is missing or damaged.
    """
    kit = load_kit(folder)
    if kit.runtime not in RUNTIMES:
        raise InputError(f"A kit is for one of {', '.join(sorted(RUNTIMES))}, but this one is for {kit.runtime!r}.")
    kit.check_programs()
    results = folder / RESULTS_FILE
    runtime = PreparedRuntime(RUNTIMES[kit.runtime], kit.converter)
    anchor = Anchor(kit.read_program(kit.anchor_program), kit.anchor)
    with locked(results, "file of results"), Device(runtime, kit.config, launch_here, cpus=cpus, anchor=anchor) as device:
        environment = device.environment(kit.batch_size) | {"hwnas_version": kit.hwnas_version}
        if restart:
            results.unlink(missing_ok=True)
        refused = dict(kit.refused)
        try:
            measured = open_journal(results, kit.journal_header(environment), refused=refused)
        except OSError as error:
            raise InputError(f"A kit's folder must be writable, but {results} is not ({error.strerror}): copy the kit to a "
                             "disk that is.") from None
        _measure(kit, device, results, measured, refused, max_minutes, progress)
    return kit, measured, refused


def _measure(kit: Kit, device: Device, results: Path, measured: Measured, refused: dict[str, str], max_minutes: float,
             progress: Progress | None) -> None:
    """One session of every block first, as the profiler has it: a network with a block that is refused is then left out."""
    deadline = time.monotonic() + 60 * max_minutes
    own = {name.name for name in fields(RoundsPlan)} - {"timing"}
    plan = RoundsPlan(**{name: value for name, value in kit.plan.items() if name in own}, max_minutes=max_minutes,
                      timing=TimingPlan(**kit.plan["timing"]))
    in_all = sum(kit.sessions[workload.role][0] for workload in kit.workloads)
    blocks = [workload for workload in kit.measurable(refused) if workload.role == "entry"]
    measure_rounds(_models(kit, blocks), measured, results, device, plan, seed=kit.header["seed"], refused=refused,
                   sessions={block.key: (1, 1) for block in blocks},
                   progress=progress and (lambda done, _, key: progress(done, in_all, key)))
    if time.monotonic() > deadline:
        return
    workloads = kit.measurable(refused)
    measure_rounds(_models(kit, workloads), measured, results, device,
                   replace(plan, max_minutes=(deadline - time.monotonic()) / 60),
                   sessions={workload.key: kit.sessions[workload.role] for workload in workloads}, seed=kit.header["seed"],
                   refused=refused, progress=progress)


@dataclass(frozen=True)
class PackedModel:
    """Reads a workload's packed program, for a `PreparedRuntime`."""

    kit: Kit
    program: str

    def __call__(self) -> bytes:
        return self.kit.read_program(self.program)


def _models(kit: Kit, workloads: Iterable[KitWorkload]) -> dict[str, PackedModel]:
    return {workload.key: PackedModel(kit, workload.program) for workload in workloads}


class _Lines:
    """Prints how far the measurement is, every few seconds."""

    def __init__(self) -> None:
        self._began = self._last_line = time.monotonic()
        self._before: int | None = None

    def __call__(self, done: int, total: int, key: str) -> None:
        now = time.monotonic()
        if self._before is None:
            self._before = done - 1  # measured by an earlier call: it says nothing about the pace
        if now - self._last_line < _LINE_SECONDS and done < total:
            return
        self._last_line = now
        left_s = (total - done) * (now - self._began) / (done - self._before)
        left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
        print(f"{done}/{total} sessions ({100 * done / total:.0f} %), about {left} left", flush=True)


def main(folder: str, arguments: Sequence[str]) -> int:
    """The kit's `run.py`: measures, tells in plain text how it goes, and returns the exit code.

    Args:
        folder: The kit.
        arguments: Of the command line.
    """
    try:
        options = _parse(arguments)
        kit = load_kit(Path(folder))
        print(f"Measuring on {kit.runtime}, {kit.config.threads} thread(s), {kit.config.precision}, into {RESULTS_FILE}; an "
              "interrupted run continues with the same command.", flush=True)
        kit, measured, refused = run_kit(Path(folder), max_minutes=options.max_minutes, cpus=options.cpus,
                                         restart=options.restart, progress=_Lines())
    except HwnasError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted: what was measured is kept, and the same command continues.", file=sys.stderr)
        return 130
    for key, reason in refused.items():
        print(f"Left out: {key}: {reason}")
    if missing := kit.missing_sessions(measured, refused):
        print(f"The time was over with {missing} session(s) to go: the same command continues. What is there already makes a "
              f"table: bring back {RESULTS_FILE}.")
    else:
        print(f"Everything is measured: bring back {RESULTS_FILE}.")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description="Measures this kit on this device; run it again to continue.")
    parser.add_argument("--max-minutes", type=_minutes, default=math.inf, help="stop measuring after this long")
    parser.add_argument("--cpus", type=_processors, default=(), help="processors to run on, as 2,3; by default the last ones")
    parser.add_argument("--restart", action="store_true", help="discard the results that are there, and measure again")
    return parser.parse_args(arguments)


def _minutes(text: str) -> float:
    if not (minutes := float(text)) >= 0:
        raise ValueError
    return minutes


def _processors(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
