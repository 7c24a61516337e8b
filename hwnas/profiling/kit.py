"""Builds a kit for a device that is reached by hand only (a USB stick, a vendor's cloud), and makes a table of its results.

A kit is a folder: every distinct block and every whole network that the profiler would measure, prepared for the runtime; the
plan; and the part of hwnas that measures, `kit_runner`, for which the device needs Python, numpy and the runtime. What it leaves
there, `results.jsonl`, is the profiler's journal, so the table that comes of it is the one that the profiler would have made.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

import hwnas
from hwnas.errors import InputError
from hwnas.files import content_sha256, locked, write_atomic, write_json
from hwnas.ir.documents import space_from_dict
from hwnas.ir.steps import Space
from hwnas.latency.refusals import network_of
from hwnas.latency.table import SCHEMA as TABLE_SCHEMA
from hwnas.latency.table import LatencyTable
from hwnas.profiling.agent import SHIPPED as AGENT_FILES
from hwnas.profiling.anchor import anchor_for, anchor_model, anchor_name, anchor_sha256
from hwnas.profiling.environment import CHECKED_KEYS, compare_environments
from hwnas.profiling.kit_runner import KIT_FILE, PROGRAMS_FOLDER, RESULTS_FILE, SCHEMA, Kit, PackedModel, load_kit, pack_program
from hwnas.profiling.preparing import prepare_ahead
from hwnas.profiling.profiler import (
    JOURNAL_SCHEMA,
    ProfilePlan,
    Workload,
    assemble_table,
    default_table_path,
    plan_blocks,
    plan_networks,
)
from hwnas.profiling.rounds import Measured, Progress, discard, open_journal, read_preparing_s
from hwnas.profiling.ssh import agent_archive
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import load_converter
from hwnas.runtimes.base import Runtime, RuntimeConfig

RUN_FILE, README_FILE, PACKAGE_FILE = "run.py", "README.md", "hwnas.zip"
# What has to be on the device, relative to the package.
SHIPPED = (*AGENT_FILES, "files.py", "profiling/device.py", "profiling/kit_runner.py", "profiling/preparing.py",
           "profiling/rounds.py")

# What pip calls the packages that a runtime's programs are loaded with.
_PACKAGES: dict[str, str] = {
    "onnxruntime-cpu": "onnxruntime", "openvino-cpu": "openvino", "ncnn-cpu": "ncnn", "mnn-cpu": "MNN", "torch-cpu": "torch onnx",
    "executorch-cpu": "executorch torch", "litert-cpu": "ai-edge-litert", "torch-cuda": "torch onnx nvidia-ml-py",
    "onnxruntime-cuda": "'onnxruntime-gpu[cuda,cudnn]' nvidia-ml-py",
    "tensorrt": "tensorrt cuda-bindings nvidia-ml-py", "tensorrt-rtx": "tensorrt-rtx cuda-bindings nvidia-ml-py"}


@dataclass(frozen=True)
class BuiltKit:
    """A kit that has been built.

    Attributes:
        folder: Where.
        blocks: Distinct blocks in it.
        networks: Whole networks in it.
        refused: Blocks and whole networks that the converter refuses, with its reason, by key.
        refused_blocks: How many of them are blocks.
        sessions: How many are to be measured at least.
        at_most_minutes: What timing these takes at most, without loading and starting.
        size_bytes: Of all files together.
    """

    folder: Path
    blocks: int
    networks: int
    refused: Mapping[str, str]
    refused_blocks: int
    sessions: int
    at_most_minutes: float
    size_bytes: int


@dataclass(frozen=True)
class CollectedKit:
    """The table of a kit's results.

    Attributes:
        table: The table, written to `path`.
        path: Where.
        missing_sessions: How many the device has not measured yet.
        left_out: Networks that cannot be measured there, since they or a block of theirs are refused.
    """

    table: LatencyTable
    path: Path
    missing_sessions: int
    left_out: int


def build_kit(space: Space, runtime: str, output: str | os.PathLike[str], *, config: RuntimeConfig | None = None,
              batch_size: int = 1, plan: ProfilePlan | None = None, seed: int = 0, overwrite: bool = False,
              progress: Progress | None = None) -> BuiltKit:
    """Makes the folder; it appears whole or not at all.

    Args:
        space: What to measure.
        runtime: Name of the runtime on the device; here only its converter is needed.
        output: The folder to make.
        config: Threads and precision.
        batch_size: Images a call.
        plan: How much to measure; its minutes are for the device to say.
        seed: Chooses the whole networks and the order.
        overwrite: Replaces a kit that is already there, and its results.
        progress: Called with (programs done, programs in all, what was prepared); beforehand, while models are converted on all
            processors, with (models done, models in all, "preparing" and what was).

    Raises:
        InputError: An argument is out of range, the folder exists, or the converter refuses every block.
        UnavailableError: The runtime's converter is missing.
    """
    plan = plan or ProfilePlan()
    if seed < 0:
        raise InputError(f"A seed must be at least 0, but is {seed}.")
    builder = _Builder(space, load_converter(runtime), config or RuntimeConfig(), batch_size, plan, seed)
    with _new_folder(Path(output), overwrite) as folder:
        rows, refused = builder.add_all(folder / PROGRAMS_FOLDER, progress)
        sessions = sum(plan.sessions(row["role"])[0] for row in rows)
        minutes = sessions * (plan.timing.max_seconds + plan.timing.max_warmup_seconds) / 60
        document = builder.manifest(rows, refused)
        write_json(folder / KIT_FILE, document)
        write_atomic(folder / PACKAGE_FILE, agent_archive(SHIPPED))
        write_atomic(folder / RUN_FILE, _RUN_SCRIPT)
        write_atomic(folder / README_FILE, _readme(document, sessions, minutes))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    blocks = sum(row["role"] == "entry" for row in rows)
    return BuiltKit(Path(output), blocks, len(rows) - blocks, refused, sum(network_of(space, key) is None for key in refused),
                    sessions, minutes, size)


def collect_kit(folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, *,
                results: str | os.PathLike[str] | None = None, overwrite: bool = False) -> CollectedKit:
    """Makes the table that the profiler would have made of what a kit measured; of a part of it, too.

    Args:
        folder: The kit; its programs need not be there any more.
        output: The table's path; by default where the profiler puts it.
        results: What the device left, if it does not lie in the kit.
        overwrite: Replaces a table that is already there.

    Raises:
        InputError: The kit or its results are missing, damaged, edited, or of different origin; the device refuses every
            block; or the table exists.
    """
    kit = load_kit(Path(folder))
    space = _space_of(kit)
    path = Path(results) if results is not None else kit.folder / RESULTS_FILE
    environment = _environment_of(kit, path)
    refused = dict(kit.refused)
    measured = open_journal(path, kit.journal_header(environment), refused=refused)
    _require_results(kit, path, measured, refused)
    networks = [Workload(one.key, one.role, PackedModel(kit, one.program), one.choices) for one in kit.measurable(refused)
                if one.role != "entry"]
    plan = _plan_of(kit)
    workloads = [*plan_blocks(space, kit.batch_size, plan.blocks, kit.seed), *networks]
    table = assemble_table(space, environment, plan, workloads, measured, refused, preparing_s=read_preparing_s(path),
                           estimate=plan.blocks is not None)
    target = Path(output) if output is not None else default_table_path(environment, space)
    with locked(target, "latency table"):
        if target.exists():
            if not overwrite:
                raise InputError(f"A kit's table is a new file, but {target} exists: pass --overwrite to replace it.")
            discard(target, TABLE_SCHEMA, "latency table")
        table.save(target)
    left_out = sum(one.role != "entry" for one in kit.workloads) - len(networks)
    return CollectedKit(table, target, kit.missing_sessions(measured, refused), left_out)


class _Builder:
    """Makes the parts of a kit.

    Args:
        space: What is measured.
        runtime: What prepares the models.
        config: How it runs.
        batch_size: Images a call.
        plan: How much is measured.
        seed: Chooses networks and order.
    """

    def __init__(self, space: Space, runtime: Runtime, config: RuntimeConfig, batch_size: int, plan: ProfilePlan,
                 seed: int) -> None:
        self._space, self._runtime, self._config = space, runtime, config
        self._batch_size, self._plan, self._seed = batch_size, plan, seed
        self._anchor_name, self._anchor = anchor_for((batch_size, *space.input_shape)), ""
        self._sizes: dict[str, int] = {}

    def add_all(self, folder: Path, progress: Progress | None) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Prepares the anchor, the blocks and the networks.

        Args:
            folder: Where programs are stored, each content once.
            progress: As for `build_kit`.

        Returns:
            The manifest's workloads, and what the converter refuses, blocks and whole networks.
        """
        self._anchor = self._add(folder, anchor_model(self._anchor_name))
        blocks = plan_blocks(self._space, self._batch_size, self._plan.blocks, self._seed)
        refused = self._convert(blocks, progress)
        networks = min(self._plan.fit_networks + self._plan.held_out_networks, self._space.size)
        rows: list[dict[str, Any]] = []
        for index, block in enumerate(blocks):
            if block.key not in refused:
                try:
                    rows.append({"key": block.key, "role": block.role, "program": self._add(folder, block.model())})
                except InputError as error:
                    refused[block.key] = str(error)
            if progress is not None:
                progress(index + 1, len(blocks) + networks, block.key)
        if not rows:
            why = next(iter(refused.values()), "it has none.")
            raise InputError(f"{self._runtime.name} refuses every block of {self._space.name!r}: {why}")
        number = {row["key"]: index for index, row in enumerate(rows)}
        while chosen := self._networks(refused, rows):  # again with those in place of what is refused, of which there are few
            refused |= self._convert(chosen, progress)
            for network in (network for network in chosen if network.key not in refused):
                try:
                    rows.append({"key": network.key, "role": network.role, "program": self._add(folder, network.model()),
                                 "choices": network.choices,
                                 "blocks": sorted(number[key] for key in self._blocks_of(network) if key in number)})
                except InputError as error:
                    refused[network.key] = str(error)
                if progress is not None:
                    progress(len(blocks) + len(rows) - len(number), len(blocks) + networks, network.key)
        return rows, refused

    def manifest(self, rows: list[dict[str, Any]], refused: dict[str, str]) -> dict[str, Any]:
        """The kit's manifest, of what `add_all` returned."""
        space, plan = self._space, self._plan
        content: dict[str, Any] = {
            "schema": SCHEMA, "space": space.name, "space_hash": space.hash, "runtime": self._runtime.name,
            "converter": self._runtime.can_prepare().version, "threads": self._config.threads,
            "precision": self._config.precision, "versions": {"hwnas": hwnas.__version__, "onnx": onnx.__version__},
            "journal": {"schema": JOURNAL_SCHEMA, "space_hash": space.hash, "seed": self._seed, "batch_size": self._batch_size},
            "plan": {name: value for name, value in asdict(plan).items() if name != "max_minutes"},
            "sessions": {role: plan.sessions(role) for role in ("entry", "fit", "held_out")},
            "anchor": {"name": self._anchor_name, "sha256": anchor_sha256(self._anchor_name), "program": self._anchor},
            "refused": refused, "programs": self._sizes, "workloads": rows, "space_definition": space.to_dict()}
        return content | {"content_sha256": content_sha256(content)}

    def _networks(self, refused: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> list[Workload]:
        """Those that are to be measured and have no row yet."""
        done = {row["key"] for row in rows}
        return [network for network in plan_networks(self._space, self._plan, self._batch_size, self._seed, refused)
                if network.key not in done]

    def _convert(self, workloads: Sequence[Workload], progress: Progress | None) -> dict[str, str]:
        """Converts ahead what is to be added; returns what the converter refuses, with its reason."""
        refused = {}
        models = {workload.key: workload.model for workload in workloads}
        with closing(prepare_ahead(self._runtime, self._config, models, math.inf)) as prepared:
            for done, (key, reason) in enumerate(prepared, 1):
                if reason is not None:
                    refused[key] = reason
                if progress is not None:
                    progress(done, len(models), f"preparing {key}")
        return refused

    def _add(self, folder: Path, model: bytes) -> str:
        content = pack_program(self._runtime.prepare(model, self._config))
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 not in self._sizes:
            write_atomic(folder / sha256, content)
            self._sizes[sha256] = len(content)
        return sha256

    def _blocks_of(self, network: Workload) -> set[str]:
        path = self._space.path(self._space.architecture(network.choices))
        return {part.workload for edge in path for part in edge.parts if not part.block.is_free}


def _plan_of(kit: Kit) -> ProfilePlan:
    return ProfilePlan(**{**kit.plan, "timing": TimingPlan(**kit.plan["timing"])})


def _space_of(kit: Kit) -> Space:
    """The space, checked to be cut into the same blocks here as where the kit was built."""
    space = space_from_dict(kit.space)
    blocks = {workload.key for workload in kit.workloads if workload.role == "entry"}
    blocks |= {key for key in kit.refused if network_of(space, key) is None}
    here = {workload.key for workload in plan_blocks(space, kit.batch_size, _plan_of(kit).blocks, kit.seed)}
    if space.hash != kit.header["space_hash"] or blocks != here or anchor_name(kit.anchor) is None:
        raise InputError(f"A kit is collected by the hwnas that built it, {kit.hwnas_version}, but this one, "
                         f"{hwnas.__version__}, has other blocks or another anchor: use that one, or build the kit again.")
    return space


def _environment_of(kit: Kit, path: Path) -> dict[str, Any]:
    """The device's environment, from the header of its results."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"A kit's results are what its {RUN_FILE} leaves, but {path} cannot be read ({error.strerror}): run it "
                         f"on the device and bring back {RESULTS_FILE}.") from None
    headers = [header for header in map(_header, lines) if header is not None]
    if not headers or _header(lines[0]) is None:
        raise InputError(f"A kit's results begin with the device's environment, but {path} does not: it is empty, truncated or "
                         "something else; bring it back again.")
    for header in headers:
        if header.get("kit") != kit.sha256:
            raise InputError(f"A kit's results must be of this kit ({kit.sha256[:12]}), but {path} is of another "
                             f"({str(header.get('kit'))[:12]}): collect it with the kit that it was measured with.")
        differences = compare_environments(headers[0]["environment"], header["environment"])
        if differences:
            listed = "; ".join(f"{key} is {first!r} and then {then!r}" for key, first, then in differences)
            raise InputError(f"A kit's results must be of one device, but in {path} {listed}: measure again with --restart.")
    environment = dict(headers[0]["environment"])
    lacking = [key for key in CHECKED_KEYS if key not in environment]
    if lacking:
        raise InputError(f"A kit's results begin with the device's environment, but in {path} it has no {lacking[0]}: the file "
                         "was edited; bring it back again.")
    wanted = {"runtime": kit.runtime, "threads": kit.config.threads, "precision": kit.config.precision,
              "batch_size": kit.batch_size, "anchor": kit.anchor}
    for key, value in wanted.items():
        if environment.get(key) != value:
            raise InputError(f"A kit's results must be measured as the kit says, but in {path} {key} is {environment.get(key)!r} "
                             f"and not {value!r}: the file was edited; bring it back again.")
    return environment


def _header(line: bytes) -> dict[str, Any] | None:
    """A line of results, if it is a header and whole."""
    if b'"environment"' not in line or not line.endswith(b"\n"):
        return None
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) and isinstance(header.get("environment"), dict) else None


def _require_results(kit: Kit, path: Path, measured: Measured, refused: Mapping[str, str]) -> None:
    strange = (set(measured) | set(refused)) - {workload.key for workload in kit.workloads} - set(kit.refused)
    if strange:
        raise InputError(f"A kit's results must be of this kit, but {path} has {min(strange)[:80]!r}, which is not in it: the "
                         "file was edited; bring it back again.")
    if all(workload.key in refused for workload in kit.workloads if workload.role == "entry"):
        raise InputError(f"A table needs at least one block, but {kit.runtime} refuses every one: {next(iter(refused.values()))}")
    if not measured:
        raise InputError(f"A table needs at least one measurement, but {path} has none: run {RUN_FILE} on the device for longer.")


@contextmanager
def _new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A hidden folder beside the destination that takes its name when the block ends without an error."""
    target = target.absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if not overwrite:
            raise InputError(f"A kit is a new folder, but {target} exists: pass --overwrite to replace it and any results in it.")
        if not (target / KIT_FILE).is_file():
            raise InputError(f"Only a kit is replaced, but {target} has no {KIT_FILE}: choose another --output.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise InputError(f"The kit cannot be written to {target} ({error.strerror}): choose another --output.") from None
    try:
        finished = temporary / "new"
        finished.mkdir()
        yield finished
        if target.exists():
            target.rename(temporary / "old")
        try:
            finished.rename(target)
        except OSError:
            if (temporary / "old").exists():
                (temporary / "old").rename(target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _readme(manifest: Mapping[str, Any], sessions: int, at_most_minutes: float) -> str:
    runtime, converter = manifest["runtime"], manifest["converter"]
    return _README.format(
        space=manifest["space"], runtime=runtime, threads=manifest["threads"], precision=manifest["precision"],
        batch_size=manifest["journal"]["batch_size"], prepared=f", models prepared by {converter}" if converter else "",
        packages=f"numpy {_PACKAGES[runtime]}", mib=math.ceil(sum(manifest["programs"].values()) / 2**20),
        sessions=sessions, minutes=math.ceil(at_most_minutes), run=RUN_FILE, results=RESULTS_FILE)


# Its syntax is that of any Python 3, so that an old one can say what it lacks.
_RUN_SCRIPT = f'''\
"""Measures this kit: python {RUN_FILE} [--max-minutes M] [--cpus 2,3] [--restart]"""
import os
import sys

if sys.version_info < (3, 11):
    said = "Error: Python 3.11 or newer is needed, but %s is %d.%d: run this with another one."
    print(said % (sys.executable, sys.version_info[0], sys.version_info[1]), file=sys.stderr)
    sys.exit(5)
here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(here, "{PACKAGE_FILE}"))
try:
    from hwnas.profiling.kit_runner import main
except ModuleNotFoundError as error:
    mend = "copy the kit again" if str(error.name).startswith("hwnas") else "run: python -m pip install %s" % error.name
    print("Error: %s is needed, but is not there; %s." % (error.name, mend), file=sys.stderr)
    sys.exit(5)
sys.exit(main(here, sys.argv[1:]))
'''

_README = """\
# A measuring kit for {space} on {runtime}

It times the blocks and some networks of the search space {space} on the device that it is carried to: with {runtime},
{threads} thread(s), {precision}, {batch_size} image(s) a call{prepared}.

## What the device needs

- Linux or macOS, with Python 3.11 or newer
- `pip install {packages}`, the runtime in the version that the device is to be known for: the results say which it was
- {mib} MiB of disk for this folder, which must be writable

It needs no network and no hwnas: what measures is in this folder.

## What to do there

    python {run}

This measures {sessions} sessions. Timing them takes {minutes} min at most; loading the models comes on top, and depends on the
device. It tells how much time is left. Leave the device alone meanwhile, plugged in and cool.

- Stopped, crashed or switched off? The same command continues; one session is lost at most.
- A model that the runtime refuses, or crashes on, is left out, and the rest goes on.
- `--max-minutes 20` stops after 20 minutes, `--cpus 2,3` chooses the processors, and `--restart` begins again.

## What to bring back

`{results}`. Put it into this folder where the kit was built, and make the table there:

    hwnas kit collect FOLDER --output TABLE.json
"""
