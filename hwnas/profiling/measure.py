"""Measures one model on a device: fresh sessions, each in a process of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from hwnas.latency.sessions import combine_sessions
from hwnas.profiling.device import Device
from hwnas.profiling.session import SessionSamples
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import Program


@dataclass(frozen=True)
class Measurement:
    """Several fresh sessions of one model.

    Attributes:
        sessions: In the order in which they were measured.
    """

    sessions: tuple[SessionSamples, ...] = field(repr=False)

    @property
    def ratio(self) -> float:
        """Median over sessions of each session's median ratio to the anchor."""
        return median(median(session.ratios) for session in self.sessions)

    @property
    def ratio_ci(self) -> tuple[float, float]:
        """95 % confidence interval of `ratio` over sessions."""
        return combine_sessions(self.sessions).ratio_ci

    @property
    def anchor_ms(self) -> float:
        return median(session.anchor_ms for session in self.sessions)


def measure_model(device: Device, model: bytes | Program, plan: TimingPlan, sessions: int = 5,
                  progress: Callable[[int, int], None] | None = None) -> Measurement:
    """Measures a model over several fresh sessions.

    Args:
        device: Where it runs.
        model: ONNX bytes, or a program that was prepared before for the device's runtime and configuration.
        plan: How one session is timed.
        sessions: How many.
        progress: Called with (done, total) after each.

    Raises:
        InputError: The runtime refuses the model.
        UnavailableError: The device cannot be reached.
    """
    results = []
    for index in range(sessions):
        device.renew()
        results.append(device.measure(model, plan))
        if progress is not None:
            progress(index + 1, sessions)
    return Measurement(tuple(results))
