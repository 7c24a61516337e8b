"""One session: a program and the anchor, loaded afresh and timed in turn. This is what runs on the device itself.

Needs the standard library, numpy and the runtime.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from hwnas.errors import UnavailableError
from hwnas.profiling.timing import TimingPlan, time_paired
from hwnas.runtimes.base import Bound, Executable, Program, Runtime, RuntimeConfig, described

_DIGITS = 5  # significant digits kept of a ratio: a hundred times finer than the noise, and half the file


@dataclass(frozen=True)
class SessionSamples:
    """One fresh session of one workload.

    Attributes:
        ratios: Workload over anchor, pair by pair.
        anchor_ms: Median latency of the anchor in this session.
        timing_s: Seconds spent in calls, warm-up included; 0 where nobody kept them.
        total_s: Seconds that the session took in all, from making the model to its result; 0 where nobody kept them.
        clocks_mhz: An accelerator's clock before and after timing, as far as it tells; empty for a CPU.
    """

    ratios: tuple[float, ...]
    anchor_ms: float
    timing_s: float = 0.0
    total_s: float = 0.0
    clocks_mhz: tuple[int, ...] = ()


def read_session(row: Mapping[str, Any]) -> SessionSamples:
    """A session from its JSON form.

    Raises:
        KeyError, TypeError, ValueError: It is malformed.
    """
    session = SessionSamples(tuple(map(float, row["ratios"])), float(row["anchor_ms"]), float(row.get("timing_s", 0)),
                             float(row.get("total_s", 0)), tuple(map(int, row.get("clocks_mhz", ()))))
    samples = (*session.ratios, session.anchor_ms, *session.clocks_mhz)
    if not session.ratios or not all(0 < value < math.inf for value in samples):
        raise ValueError("a session has no samples, or one that is not a positive number")
    return session


def run_session(runtime: Runtime, config: RuntimeConfig, program: Program, anchor: Program, plan: TimingPlan) -> SessionSamples:
    """Loads a program and the anchor and times them in turn.

    Both are loaded anew, so that what a session does to the anchor (memory layout, thread placement) averages out over
    sessions as it does for the workload.

    Raises:
        InputError: The runtime refuses the program.
        UnavailableError: It does not run the anchor.
    """
    with _of_the_machine():
        yardstick = runtime.load(anchor, config)
    with closing(yardstick), closing(runtime.load(program, config)) as workload:
        bound = workload.bind(random_inputs(workload))
        with _of_the_machine():
            anchor_inference = yardstick.bind(random_inputs(yardstick))
        bound_anchor = _BoundAnchor(anchor_inference.infer, anchor_inference.read_outputs)
        clock_before = runtime.clock_mhz()
        start = time.perf_counter()
        samples = time_paired(bound, bound_anchor, plan)
        timing_s = time.perf_counter() - start
        clocks = clock_before, runtime.clock_mhz()
    return SessionSamples(tuple(rounded(ratio) for ratio in samples.ratios), rounded(median(samples.anchor_ns) / 1e6),
                          round(timing_s, 3), clocks_mhz=tuple(clock for clock in clocks if clock is not None))


@dataclass(frozen=True)
class _BoundAnchor(Bound):
    """An inference of the anchor, whose failure is no model's fault; as quick to call as any other."""

    def __call__(self) -> None:
        try:
            self.infer()
        except Exception as error:
            raise _anchor_failure(error) from None


@contextmanager
def _of_the_machine() -> Iterator[None]:
    """Has whatever the runtime makes of the anchor be a fault of the machine: on a sound one it runs."""
    try:
        yield
    except Exception as error:
        raise _anchor_failure(error) from None


def _anchor_failure(error: Exception) -> UnavailableError:
    if isinstance(error, UnavailableError):
        return error
    return UnavailableError(f"The anchor must run wherever anything is measured, but does not ({described(error)}): see to the "
                            "runtime there, and to its memory.")


def random_inputs(executable: Executable) -> dict[str, np.ndarray]:
    """Normal noise for every input, the same each time: zeros or denormals would run at another speed."""
    generator = np.random.default_rng(0)
    return {info.name: generator.standard_normal(info.shape).astype(info.dtype) for info in executable.inputs}


def rounded(value: float) -> float:
    """As many digits as are kept."""
    return float(f"{value:.{_DIGITS}g}")
