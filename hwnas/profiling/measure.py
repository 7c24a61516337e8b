"""Measures one model: fresh sessions, each a paired timing against the anchor in the same process."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from hwnas.profiling.anchor import anchor_model
from hwnas.profiling.timing import TimingPlan, combine_sessions, time_paired
from hwnas.runtimes.base import Executable, Runtime, RuntimeConfig

_DIGITS = 5  # significant digits kept of a ratio: a hundred times finer than the noise, and half the file


@dataclass(frozen=True)
class SessionSamples:
    """One fresh session of one workload.

    Attributes:
        ratios: Workload over anchor, pair by pair.
        anchor_ms: Median latency of the anchor in this session.
    """

    ratios: tuple[float, ...]
    anchor_ms: float


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


def measure_session(runtime: Runtime, config: RuntimeConfig, model: bytes, plan: TimingPlan) -> SessionSamples:
    """Compiles the model and the anchor afresh and times them in turn.

    Both are compiled anew, so that what a session does to the anchor (memory layout, thread placement) averages out over
    sessions as it does for the workload.

    Raises:
        InputError: The runtime refuses the model or the configuration.
    """
    with closing(runtime.compile(anchor_model(), config)) as anchor, closing(runtime.compile(model, config)) as workload:
        samples = time_paired(workload.bind(random_inputs(workload)), anchor.bind(random_inputs(anchor)), plan)
    ratios = tuple(float(f"{ratio:.{_DIGITS}g}") for ratio in samples.ratios)
    return SessionSamples(ratios, float(f"{median(samples.anchor_ns) / 1e6:.{_DIGITS}g}"))


def measure_model(runtime: Runtime, config: RuntimeConfig, model: bytes, plan: TimingPlan, sessions: int = 5,
                  progress: Callable[[int, int], None] | None = None) -> Measurement:
    """Measures a model over several fresh sessions.

    Args:
        runtime: Where it runs.
        config: Threads and precision.
        model: ONNX bytes.
        plan: How one session is timed.
        sessions: How many.
        progress: Called with (done, total) after each.
    """
    results = []
    for index in range(sessions):
        results.append(measure_session(runtime, config, model, plan))
        if progress is not None:
            progress(index + 1, sessions)
    return Measurement(tuple(results))


def random_inputs(executable: Executable) -> dict[str, np.ndarray]:
    """Normal noise for every input, the same each time: zeros or denormals would run at another speed."""
    generator = np.random.default_rng(0)
    return {info.name: generator.standard_normal(info.shape).astype(info.dtype) for info in executable.inputs}
