"""Times a finished model on its target in a table's milliseconds, and says whether a promise held."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwnas.errors import InputError
from hwnas.export.artifact import record_measurement
from hwnas.export.manifest import MODEL_FILE, Manifest, load_manifest
from hwnas.export.verify import verify_artifact
from hwnas.latency.interchange import IMPORTED
from hwnas.latency.table import LatencyTable
from hwnas.profiling.device import open_device
from hwnas.profiling.environment import require_same_environment
from hwnas.profiling.measure import Measurement, measure_model
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes.base import RuntimeConfig


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
    """

    device: str
    config: RuntimeConfig
    batch_size: int
    environment: dict[str, Any]
    cpus: tuple[int, ...] = ()
    anchor_ms: float | None = None

    def measure(self, model: bytes, sessions: int, progress: Callable[[int, int], None] | None = None) -> Measurement:
        """Times ONNX bytes over fresh sessions."""
        with open_device(self.device, self.config, self.cpus) as device:
            return measure_model(device, model, TimingPlan(), sessions, progress)

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
        target = load_target(device or str(there["runtime"]), int(there["threads"]), str(there["precision"]),
                             int(there["batch_size"]), tuple(map(int, str(there["affinity"] or "").split(","))))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"A table's environment must name runtime, threads, precision and batch_size, but {error} is missing or "
                         "malformed: profile again.") from None
    require_same_environment(there, target.environment, "the latency table")
    return replace(target, anchor_ms=table.anchor_ms)


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
