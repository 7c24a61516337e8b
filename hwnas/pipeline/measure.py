"""Times a finished model on its target in a table's milliseconds, and certifies that it keeps its budget."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from hwnas.errors import InputError, UnavailableError
from hwnas.export.artifact import record_measurement
from hwnas.export.certify import Certification, CertificationPlan
from hwnas.export.formats import FORMATS
from hwnas.export.loading import LoadedArtifact, load_artifact
from hwnas.export.manifest import Manifest, load_manifest
from hwnas.export.verify import verify_loaded
from hwnas.latency.interchange import IMPORTED
from hwnas.latency.table import LatencyTable
from hwnas.profiling.anchor import anchor_for, anchor_name, anchor_sha256
from hwnas.profiling.device import Device, open_device
from hwnas.profiling.environment import require_same_environment
from hwnas.profiling.measure import Measurement, measure_model
from hwnas.profiling.session import SessionSamples
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes.base import Program, RuntimeConfig
from hwnas.runtimes.onnx_model import read_onnx


@dataclass(frozen=True)
class Target:
    """A device as a table was measured on it, checked to be the one that is there now.

    Attributes:
        device: Its name, as `open_device` takes it.
        config: Threads and precision.
        batch_size: Images a call.
        environment: The fingerprint, now.
        cpus: Which processors to use; empty for the last ones.
        anchor_ms: The anchor's latency in the table, which turns ratios into the table's milliseconds; None to use the
            anchor's latency of the measurement itself.
        anchor: The anchor's name; None for the small one.
    """

    device: str
    config: RuntimeConfig
    batch_size: int
    environment: dict[str, Any]
    cpus: tuple[int, ...] = ()
    anchor_ms: float | None = None
    anchor: str | None = None

    def open(self) -> Device:
        """The device itself, to measure on."""
        return open_device(self.device, self.config, self.cpus, self.anchor)

    def for_inputs(self, shape: Sequence[int]) -> "Target":
        """This target with the anchor for inputs of a shape, batch included."""
        return self._with_anchor(anchor_for(shape))

    def _with_anchor(self, name: str) -> "Target":
        return replace(self, anchor=name, environment=self.environment | {"anchor": anchor_sha256(name)})

    def measure(self, model: bytes | Program, sessions: int, progress: Callable[[int, int], None] | None = None) -> Measurement:
        """Times ONNX bytes, or a prepared program, over fresh sessions."""
        with self.open() as device:
            return measure_model(device, model, TimingPlan(), sessions, progress)

    def certify(self, model: bytes | Program, budget_ms: float, plan: CertificationPlan,
                progress: Callable[[int, int], None] | None = None) -> tuple[Certification, Measurement]:
        """Times a model in one fresh session after the other, until the test decides or the plan's sessions are spent.

        Args:
            model: ONNX bytes, from which every session builds its own engine where the runtime has any; or a prepared program.
            budget_ms: What the latency must be within.
            plan: The claim that is tested, and how many sessions may be spent.
            progress: Called with (done, total) after each session; the total is the most until the test has decided.
        """
        sessions: list[SessionSamples] = []
        with self.open() as device:
            for count in range(1, plan.most + 1):
                sessions += measure_model(device, model, TimingPlan(), sessions=1).sessions
                found = plan.judge([self.latency_ms(session) for session in sessions], budget_ms)
                decided = found.verdict != "undecided"
                if progress is not None:
                    progress(count, count if decided else plan.most)
                if decided:
                    break
        return found, Measurement(tuple(sessions))

    def latency_ms(self, session: SessionSamples) -> float:
        """A session's median."""
        return median(session.ratios) * (session.anchor_ms if self.anchor_ms is None else self.anchor_ms)

    def milliseconds(self, measurement: Measurement) -> dict[str, float]:
        """Latency with its 95 % interval, and the ratios behind them."""
        anchor_ms = measurement.anchor_ms if self.anchor_ms is None else self.anchor_ms
        low, high = measurement.ratio_ci
        return {"latency_ms": measurement.ratio * anchor_ms, "lower_ms": low * anchor_ms, "upper_ms": high * anchor_ms,
                "ratio": measurement.ratio, "ratio_lower": low, "ratio_upper": high}


def load_target(device: str, threads: int = 1, precision: str = "fp32", batch_size: int = 1,
                cpus: tuple[int, ...] = ()) -> Target:
    """A device on its own terms.

    Raises:
        InputError: No such runtime or precision.
        UnavailableError: The device cannot be reached, or the runtime is not usable there.
    """
    config = RuntimeConfig(threads, precision)
    with open_device(device, config, cpus) as opened:
        environment = opened.environment(batch_size)
    return Target(device, config, batch_size, environment, cpus)


def artifact_target(directory: str | os.PathLike[str], device: str | None = None, threads: int = 1,
                    precision: str | None = None) -> Target:
    """A device for an artefact.

    Args:
        directory: The artefact.
        device: The device's name; None for the artefact's own runtime on this machine.
        threads: Of the runtime.
        precision: What it computes in; None for what the artefact was made for.

    Raises:
        InputError: The folder is no artefact, or there is no such runtime or precision.
        UnavailableError: The device cannot be reached, or the runtime is not usable there.
    """
    manifest = load_manifest(directory)
    target = load_target(device or FORMATS[manifest.format].runtime, threads, precision or manifest.precision,
                         batch_size=manifest.input_shape[0] or 1)
    return target.for_inputs((target.batch_size, *manifest.input_shape[1:]))


def model_target(path: str | os.PathLike[str], device: str, threads: int = 1, precision: str = "fp32") -> Target:
    """A device for an ONNX file.

    Raises:
        InputError: The file cannot be read or is no ONNX, or there is no such runtime or precision.
        UnavailableError: The device cannot be reached, or the runtime is not usable there.
    """
    target = load_target(device, threads, precision)
    inputs = read_onnx(Path(path)).inputs
    return target.for_inputs(inputs[0].shape if inputs else ())


def target_of_table(table: LatencyTable, device: str | None = None) -> Target:
    """The target that a table was measured on, if it is the device.

    Args:
        table: The table.
        device: The device's name; None for the table's runtime on this machine.

    Raises:
        InputError: The device, its runtime or its version is another; the message names every key that differs.
        UnavailableError: The device cannot be reached, or the runtime is not usable there.
    """
    there = table.environment
    if there.get("runtime") == IMPORTED:
        raise InputError("A device is timed as a table measured it, but this table was imported and does not say how: profile "
                         "the space with 'hwnas profile'.")
    try:
        cpus = there["affinity"]  # None where the system has none
        target = load_target(device or str(there["runtime"]), int(there["threads"]), str(there["precision"]),
                             int(there["batch_size"]), tuple(map(int, str(cpus).split(","))) if cpus else ())
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"A table's environment must name runtime, threads, precision and batch_size, but {error} is missing or "
                         "malformed: profile again.") from None
    if (anchor := anchor_name(there.get("anchor"))) is not None:  # else the comparison says that it is another
        target = target._with_anchor(anchor)
    require_same_environment(there, target.environment, "the latency table")
    return replace(target, anchor_ms=table.anchor_ms)


def read_model(path: str | os.PathLike[str], target: Target | None = None, trust_engine: bool = False) -> bytes | Program:
    """What is timed of a file or of an artefact, which is verified first.

    Args:
        path: An ONNX file, with weights that lie beside it, or an artefact's folder.
        target: What it is timed on; None for ONNX, whatever it is timed on.
        trust_engine: Take an artefact's model even if it is not the one that was exported.

    Raises:
        InputError: The file cannot be read, is no ONNX, or names weights elsewhere than in its own folder; or the target is not
            what the artefact was made for.
        VerificationError: The artefact is not as it was exported.
    """
    place = Path(path)
    if not place.is_dir():
        return read_onnx(place).content
    loaded = load_artifact(place, trust_engine)
    with suppress(UnavailableError):  # its runtime may be on the device alone; the hashes are right in any case
        verify_loaded(loaded)
    return loaded.onnx_model() if target is None else artifact_model(loaded, target)


def artifact_model(artifact: LoadedArtifact, target: Target) -> bytes | Program:
    """What is timed of an artefact: ONNX, which every runtime takes, or the very files that its own runtime loads.

    Raises:
        InputError: The target has another runtime or computes in another precision than the artefact was made for.
    """
    manifest = artifact.manifest
    if manifest.format == "onnx":
        return artifact.onnx_model()
    made_for = artifact.format.runtime, manifest.precision
    if (target.environment.get("runtime"), target.config.precision) != made_for:
        raise InputError(f"An artefact of the format {manifest.format} in {manifest.precision} runs in {made_for[0]}, but the "
                         f"target is {target.environment.get('runtime')} in {target.config.precision}: choose another, or export "
                         "the network as onnx.")
    return artifact.program()


def measure_artifact(directory: str | os.PathLike[str], target: Target, sessions: int = 5,
                     progress: Callable[[int, int], None] | None = None,
                     plan: CertificationPlan | None = None) -> tuple[Manifest, Measurement]:
    """Times an artefact's model and records it in the manifest, with the verdict on its budget.

    Args:
        directory: The artefact.
        target: Where it is to run.
        sessions: Fresh sessions of an artefact without a budget.
        progress: Called with (done, total) after each session.
        plan: How a budget is certified.

    Raises:
        InputError: The target is not what the artefact was made for, or the artefact was replaced meanwhile.
        UnavailableError: The device cannot be reached any more.
        VerificationError: The artefact is not as it was exported.
    """
    loaded = load_artifact(directory)
    manifest, model = loaded.manifest, artifact_model(loaded, target)
    verdict, test = "no budget", dict[str, Any]()
    if manifest.budget_ms is None:
        measurement = target.measure(model, sessions, progress)
    else:
        found, measurement = target.certify(model, manifest.budget_ms, plan or CertificationPlan(), progress)
        verdict, test = found.verdict, found.to_dict()
    record = {**target.milliseconds(measurement), "sessions": [session.ratios for session in measurement.sessions],
              "environment": target.environment, **test}
    now = load_manifest(directory)
    if (now.files, now.budget_ms) != (manifest.files, manifest.budget_ms):
        raise InputError(f"A measurement joins the artefact that was measured, but {os.fspath(directory)} holds another by now: "
                         "measure it again.")
    return record_measurement(directory, record, verdict), measurement
