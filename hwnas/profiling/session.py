"""One session: a program and the anchor, loaded afresh and timed in turn. This is what runs on the device itself.

Needs the standard library, numpy and the runtime.
"""

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from hwnas.profiling.timing import TimingPlan, time_paired
from hwnas.runtimes.base import Executable, Program, Runtime, RuntimeConfig

_DIGITS = 5  # significant digits kept of a ratio: a hundred times finer than the noise, and half the file


@dataclass(frozen=True)
class SessionSamples:
    """One fresh session of one workload.

    Attributes:
        ratios: Workload over anchor, pair by pair.
        anchor_ms: Median latency of the anchor in this session.
        timing_s: Seconds spent in calls, warm-up included; 0 where nobody kept them.
        total_s: Seconds that the session took in all, from making the model to its result; 0 where nobody kept them.
    """

    ratios: tuple[float, ...]
    anchor_ms: float
    timing_s: float = 0.0
    total_s: float = 0.0


def read_session(row: Mapping[str, Any]) -> SessionSamples:
    """A session from its JSON form.

    Raises:
        KeyError, TypeError, ValueError: It is malformed.
    """
    session = SessionSamples(tuple(map(float, row["ratios"])), float(row["anchor_ms"]),
                             *(float(row.get(key, 0)) for key in ("timing_s", "total_s")))
    if not session.ratios or not all(0 < value < math.inf for value in (*session.ratios, session.anchor_ms)):
        raise ValueError("a session has no samples, or one that is not a positive number")
    return session


def run_session(runtime: Runtime, config: RuntimeConfig, program: Program, anchor: Program, plan: TimingPlan) -> SessionSamples:
    """Loads a program and the anchor and times them in turn.

    Both are loaded anew, so that what a session does to the anchor (memory layout, thread placement) averages out over
    sessions as it does for the workload.

    Raises:
        InputError: The runtime refuses the program or the configuration.
    """
    with closing(runtime.load(anchor, config)) as yardstick, closing(runtime.load(program, config)) as workload:
        bound, bound_anchor = workload.bind(random_inputs(workload)), yardstick.bind(random_inputs(yardstick))
        start = time.perf_counter()
        samples = time_paired(bound, bound_anchor, plan)
        timing_s = time.perf_counter() - start
    return SessionSamples(tuple(rounded(ratio) for ratio in samples.ratios), rounded(median(samples.anchor_ns) / 1e6),
                          round(timing_s, 3))


def random_inputs(executable: Executable) -> dict[str, np.ndarray]:
    """Normal noise for every input, the same each time: zeros or denormals would run at another speed."""
    generator = np.random.default_rng(0)
    return {info.name: generator.standard_normal(info.shape).astype(info.dtype) for info in executable.inputs}


def rounded(value: float) -> float:
    """As many digits as are kept."""
    return float(f"{value:.{_DIGITS}g}")
