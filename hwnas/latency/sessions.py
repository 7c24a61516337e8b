"""What several timing sessions of one workload say together: a ratio, its 95 % interval, and whether they agree.

A session's own samples scatter little; sessions differ by more (see `hwnas.profiling.timing`), so the scatter between them
counts. Medians throughout: one bad session among several moves nothing far.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hwnas.errors import InputError

_Z95 = statistics.NormalDist().inv_cdf(0.975)

# Two sessions of one model on one quiet machine differ by about this much (relative standard deviation of the ratio).
# It takes part in every interval with the weight of this many degrees of freedom, as in Smyth's moderated t statistic
# ("Linear models and empirical Bayes methods", 2004, section 3): two or three sessions say little about their own scatter.
_TYPICAL_SESSION_SD = 0.013
_TYPICAL_DEGREES = 4

# An entry whose 95 % interval is wider than this to either side is labelled noisy.
NOISY_RELATIVE_CI = 0.05


class HasRatios(Protocol):
    """One session, however it was stored: its ratios are all that counts."""

    @property
    def ratios(self) -> Sequence[float]:
        """Workload over anchor, pair by pair; at least one."""
        ...


@dataclass(frozen=True)
class SessionStatistics:
    """What several sessions of one workload say together.

    Args:
        ratio: Median of the sessions' median ratios.
        ratio_ci: 95 % confidence interval of `ratio`.
        relative_sd: Standard deviation between sessions as a share of `ratio`, every session counted; None for one session.
        label: "ok", or "noisy" when the interval is wider than `NOISY_RELATIVE_CI` to either side.
    """

    ratio: float
    ratio_ci: tuple[float, float]
    relative_sd: float | None
    label: str


def combine_sessions(sessions: Sequence[HasRatios]) -> SessionStatistics:
    """Joins the sessions of one workload by the median, which one bad session among three or more cannot move far.

    The interval is Student's around the median. Its scale mixes the scatter of these sessions with the typical one, so
    it is of use from the first session on; from four sessions on, the farthest one is forgiven.

    Raises:
        InputError: There is no session.
    """
    return combine_ratios([session.ratios for session in sessions])


def combine_ratios(sessions: Sequence[Sequence[float]]) -> SessionStatistics:
    """`combine_sessions` of bare ratios, one sequence for every session."""
    if not sessions:
        raise InputError("At least one timing session is needed, but got none.")
    ratios = np.array([statistics.median(session) for session in sessions])
    count = len(ratios)
    ratio = float(np.median(ratios))
    within = statistics.median(median_relative_ci(session) for session in sessions) / _Z95
    typical = _TYPICAL_SESSION_SD**2 + within**2
    degrees = _TYPICAL_DEGREES + count - 1
    variance = (_TYPICAL_DEGREES * typical + (count - 1) * _forgiving_sd(ratios / ratio) ** 2) / degrees
    # A median of three or more normal values scatters up to sqrt(pi / 2) times as much as their mean.
    efficiency = 1.0 if count < 3 else math.sqrt(math.pi / 2)
    half_width = student_t95(degrees) * efficiency * math.sqrt(variance / count)
    return SessionStatistics(
        ratio=ratio,
        ratio_ci=(ratio * (1 - half_width), ratio * (1 + half_width)),
        relative_sd=float(np.std(ratios, ddof=1)) / ratio if count > 1 else None,
        label="noisy" if half_width > NOISY_RELATIVE_CI else "ok",
    )


def _forgiving_sd(values: np.ndarray) -> float:
    """Standard deviation around a median of 1; from four values on without the farthest, which one bad session makes."""
    count = len(values)
    if count < 2:
        return 0.0
    if count < 4:
        return float(np.std(values, ddof=1))
    kept = values[np.argsort(np.abs(values - 1))[:-1]]
    # For normal values the farthest is worth this factor (simulated: 1.66 for 4 values, 1.44 for 5, 1.31 for 7, 1.23 for 10).
    return float(np.std(kept, ddof=1)) * (1 + 2.4 / count)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the median from order statistics, which assumes no distribution.

    The k-th smallest and k-th largest value enclose the median unless fewer than k of n fair coins fall on one side.
    Below six values it is their whole range, which covers less often.
    """
    ordered = sorted(values)
    count = len(ordered)
    rank, ways, fewer = 0, 1, 1  # of 2**count outcomes, `ways` have `rank` heads and `fewer` at most `rank`
    while 40 * fewer <= 2**count:  # 2.5 % on each side
        ways = ways * (count - rank) // (rank + 1)
        rank += 1
        fewer += ways
    lowest = max(rank - 1, 0)
    return ordered[lowest], ordered[count - 1 - lowest]


def student_t95(degrees: int) -> float:
    """The 97.5 % quantile of Student's t by its series in 1 / degrees; within 0.3 % from 4 degrees on."""
    z, n = _Z95, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def median_relative_ci(ratios: Sequence[float]) -> float:
    """Half the width of `median_interval`, as a share of the median."""
    low, high = median_interval(ratios)
    return (high - low) / 2 / statistics.median(ratios)
