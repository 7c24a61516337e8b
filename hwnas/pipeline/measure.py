"""Times a finished model on its target in a table's milliseconds, and says whether a promise held."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas.errors import InputError
from hwnas.export.artifact import record_measurement
from hwnas.export.manifest import MODEL_FILE, Manifest, load_manifest
from hwnas.export.verify import verify_artifact
from hwnas.latency.table import LatencyTable
from hwnas.profiling.anchor import anchor_sha256
from hwnas.profiling.environment import environment_fingerprint, require_same_environment
from hwnas.profiling.measure import Measurement, measure_model
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import load_runtime
from hwnas.runtimes.base import Runtime, RuntimeConfig


@dataclass(frozen=True)
class Target:
    """A runtime as a table was measured on it, checked to be the one of this machine.

    Attributes:
        runtime: The runtime.
        config: Threads and precision.
        batch_size: Images a call.
        environment: The fingerprint, here and now.
        anchor_ms: The anchor's latency in the table, which turns ratios into the table's milliseconds; None to use the
            anchor's latency of the measurement itself.
    """

    runtime: Runtime
    config: RuntimeConfig
    batch_size: int
    environment: dict[str, Any]
    anchor_ms: float | None

    def measure(self, model: bytes, sessions: int, progress: Callable[[int, int], None] | None = None) -> Measurement:
        """Times ONNX bytes over fresh sessions."""
        return measure_model(self.runtime, self.config, model, TimingPlan(), sessions, progress)

    def milliseconds(self, measurement: Measurement) -> dict[str, float]:
        """Latency with its 95 % interval, and the ratios behind them."""
        anchor_ms = measurement.anchor_ms if self.anchor_ms is None else self.anchor_ms
        low, high = measurement.ratio_ci
        return {"latency_ms": measurement.ratio * anchor_ms, "lower_ms": low * anchor_ms, "upper_ms": high * anchor_ms,
                "ratio": measurement.ratio, "ratio_lower": low, "ratio_upper": high}


def load_target(device: str, threads: int = 1, precision: str = "fp32", batch_size: int = 1) -> Target:
    """A runtime of this machine, on its own terms.

    Raises:
        InputError: No such runtime or precision.
        UnavailableError: The runtime is not usable here.
    """
    runtime, config = load_runtime(device), RuntimeConfig(threads, precision)
    environment = environment_fingerprint(runtime, config, batch_size=batch_size, anchor=anchor_sha256())
    return Target(runtime, config, batch_size, environment, None)


def target_of_table(table: LatencyTable) -> Target:
    """The target that a table was measured on, if this machine is it.

    Raises:
        InputError: This machine, its runtime or its version is another; the message names every key that differs.
        UnavailableError: The runtime is not usable here.
    """
    there = table.environment
    try:
        target = load_target(str(there["runtime"]), int(there["threads"]), str(there["precision"]), int(there["batch_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"A table's environment must name runtime, threads, precision and batch_size, but {error} is missing or "
                         "malformed: profile again.") from None
    require_same_environment(there, target.environment, "the latency table")
    return Target(target.runtime, target.config, target.batch_size, target.environment, table.anchor_ms)


def read_model(path: str | os.PathLike[str]) -> bytes:
    """ONNX bytes of a file, or of an artefact's model if it is as the manifest says.

    Raises:
        InputError: The file cannot be read, or the folder is no artefact.
        VerificationError: The artefact's model is not the one that was exported.
    """
    place = Path(path)
    if place.is_dir():
        verify_artifact(place)
        place = place / MODEL_FILE
    try:
        return place.read_bytes()
    except OSError as error:
        raise InputError(f"The model {path} cannot be read ({error.strerror}): check the path.") from None


def measure_artifact(directory: str | os.PathLike[str], target: Target, sessions: int = 5,
                     progress: Callable[[int, int], None] | None = None) -> tuple[Manifest, Measurement]:
    """Times an artefact's model and records it in the manifest, with the verdict on its budget."""
    folder = Path(directory)
    manifest = load_manifest(folder)
    measurement = target.measure((folder / MODEL_FILE).read_bytes(), sessions, progress)
    figures = target.milliseconds(measurement)
    record = {**figures, "sessions": [session.ratios for session in measurement.sessions], "environment": target.environment}
    return record_measurement(folder, record, verdict(figures, manifest.budget_ms)), measurement


def verdict(figures: dict[str, float], budget_ms: float | None) -> str:
    """`kept`, `broken` or `no budget`: whether the measured latency is within the budget."""
    if budget_ms is None:
        return "no budget"
    return "kept" if figures["latency_ms"] <= budget_ms else "broken"
