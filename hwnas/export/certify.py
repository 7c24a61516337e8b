"""Certification: whether a network keeps its latency budget is decided by a test, not by a glance.

The claim is "the p-quantile of latency <= budget": at least a share p of observations is within the budget. It is accepted at
confidence c when its opposite is rejected: if more than 1 - p of all observations were above the budget, k or fewer of n would be
with probability P(Binomial(n, 1 - p) <= k) at most, and that must not exceed 1 - c. No distribution of latencies is assumed.
MLPerf's LoadGen stops early by this rule (mlcommons/inference, loadgen/early_stopping.cc: `odds`, with the tolerance d = 0, and
`MinPassingQueriesFinder`). Where the claim itself would let so many be above with probability 1 - c at most, it is rejected.

Three departures from LoadGen:

- **An observation is a session, not an inference**: a fresh process that loads the model anew, and its median ratio to the
  anchor times the anchor's latency. Inferences of one process share its memory layout and its runtime's choices, so their errors
  do not average out: hundreds of them would pass for hundreds of observations and be worth hardly more than one. So the quantile
  is one *over sessions*: p50 is "half of all starts run within the budget", p90 "nine starts in ten do", each in its own median.
  It says nothing of the slowest inferences within a process. Those are the operating system's doing at least as much as the
  network's, and a timed sample fills a millisecond or more with repeated calls, which hides them.
- **Looking again is paid for**: sessions are added one by one until the test decides. Testing after every one of them as if it
  were the only time would let more networks through that break their budget than 1 - c says. So 1 - c is *spent* over the looks
  (Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 1983): at the first that can decide, what a
  network exactly on its budget takes to pass it without a failure; then evenly up to the last. What every limit lets through is
  counted exactly, over all sequences of sessions.
- **So is trying again**: where a network fails and the search goes on to the next, up to a number of rounds, each test gets an
  even share of 1 - c. Else three networks exactly on their budget would have three chances to pass.

Engines whose build is not deterministic (TensorRT chooses kernels by timing them) vary from build to build, too. Of an artefact
in ONNX, every session builds its engine anew: builds are part of the scatter between sessions, and the claim covers whoever
builds again. Of an artefact that is an engine, every session loads that very engine: the claim is about it alone, and says
nothing of another build. Conversion for the runtimes of CPUs is deterministic: there is nothing to build again, and what varies
from session to session is the process.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from hwnas.errors import InputError

Verdict = Literal["kept", "broken", "undecided"]

LEAST_QUANTILE, LARGEST_QUANTILE = 0.5, 0.99
LEAST_CONFIDENCE, LARGEST_CONFIDENCE = 0.5, 0.999
_MOST = 5  # times the fewest observations
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Certification:
    """What the test said.

    Attributes:
        verdict: `kept` and `broken` are each shown at the confidence; `undecided` means that neither is.
        quantile: Of latency over sessions, which the budget is for.
        confidence: One minus the probability of a wrong `kept`, and of a wrong `broken`, in all rounds of the plan together.
        observations: Sessions that were looked at.
        above: How many of them were above the budget.
        certifiable_ms: The least budget that these observations would have shown kept; the largest of them while there are too
            few to show anything. Above the budget unless the verdict is `kept`.
    """

    verdict: Verdict
    quantile: float
    confidence: float
    observations: int
    above: int
    certifiable_ms: float

    def to_dict(self) -> dict[str, Any]:
        """The numbers of the test for a manifest or a summary, without the verdict, which stands beside them."""
        return {name: value for name, value in asdict(self).items() if name != "verdict"}

    def __str__(self) -> str:
        return f"{self.verdict}: {self.above} of {self.observations} sessions above the budget"


@dataclass(frozen=True)
class CertificationPlan:
    """What is to be shown, and how many observations may be spent on it.

    Attributes:
        quantile: Of latency over sessions: 0.5 for "half of all sessions are within the budget".
        confidence: One minus the probability of accepting a network that breaks its budget.
        max_observations: Where the test gives up; None for five times the fewest.
        rounds: How many networks may be tested until one is shown: each test gets an even share of 1 - confidence, so that this
            is what all of them let through together (Bonferroni).

    Raises:
        InputError: A value is out of range, or `max_observations` can never show anything.
    """

    quantile: float = 0.5
    confidence: float = 0.95
    max_observations: int | None = None
    rounds: int = 1

    def __post_init__(self) -> None:
        if not LEAST_QUANTILE <= self.quantile <= LARGEST_QUANTILE:
            raise InputError(f"The quantile must be {LEAST_QUANTILE} to {LARGEST_QUANTILE}, but is {self.quantile}.")
        if not LEAST_CONFIDENCE <= self.confidence <= LARGEST_CONFIDENCE:
            raise InputError(f"The confidence must be {LEAST_CONFIDENCE} to {LARGEST_CONFIDENCE}, but is {self.confidence}.")
        if self.rounds < 1:
            raise InputError(f"A network must have at least 1 round to be shown in, but rounds is {self.rounds}.")
        if self.most < self.needed:
            raise InputError(f"{self.claim} takes at least {self.needed} sessions to show in {self.rounds} round(s), but at most "
                             f"{self.most} are allowed: raise the most, or lower quantile, confidence or rounds.")

    @property
    def needed(self) -> int:
        """The fewest observations that can show the claim: all within the budget."""
        return needed_observations(self.quantile, self._of_a_round)

    @property
    def most(self) -> int:
        """The most observations that are spent."""
        return _MOST * self.needed if self.max_observations is None else self.max_observations

    @property
    def claim(self) -> str:
        """In words: `p50 of latency within the budget at 95 % confidence`."""
        return f"p{100 * self.quantile:g} of latency within the budget at {100 * self.confidence:g} % confidence"

    @property
    def _of_a_round(self) -> float:
        """The confidence of one test."""
        return self.confidence + (1 - self.confidence) * (1 - 1 / self.rounds)

    def __str__(self) -> str:
        return f"{self.claim}: {self.needed} fresh sessions if none is above, {self.most} at most"

    def judge(self, latencies_ms: Sequence[float], budget_ms: float) -> Certification:
        """Looks after every observation, in the order taken, and stops at the first that decides.

        Args:
            latencies_ms: One for every session; those after the deciding one, or beyond the most, do not count.
            budget_ms: The budget.

        Raises:
            InputError: There is no observation.
        """
        if not latencies_ms:
            raise InputError("A certification needs at least one session, but got none.")
        acceptable = acceptable_above(self.quantile, self._of_a_round, self.most)
        rejected = acceptable_above(1 - self.quantile, self._of_a_round, self.most)  # the same test of the opposite claim
        above, verdict = 0, "undecided"
        for count, latency_ms in enumerate(latencies_ms[:self.most], 1):
            above += latency_ms > budget_ms
            if above <= acceptable[count - 1]:
                verdict = "kept"
            elif count - above <= rejected[count - 1]:
                verdict = "broken"
            if verdict != "undecided":
                break
        # All but the acceptable number must be within a budget; that many larger ones may be above it.
        may_be_above = max(acceptable[count - 1], 0)
        certifiable_ms = sorted(latencies_ms[:count], reverse=True)[may_be_above]
        return Certification(verdict, self.quantile, self.confidence, count, above, float(certifiable_ms))  # type: ignore[arg-type]


def needed_observations(quantile: float, confidence: float, failures: int = 0) -> int:
    """How many observations it takes in one look to show that a quantile is within a budget.

    Args:
        quantile: The quantile, between 0 and 1.
        confidence: The confidence, between 0 and 1.
        failures: How many observations may be above the budget.

    Returns:
        The smallest n with P(Binomial(n, 1 - quantile) <= failures) <= 1 - confidence: 5 for p50 at 95 %, 29 for p90.
    """
    def shows(count: int) -> bool:
        return _binomial_cdf(failures, count, 1 - quantile) <= 1 - confidence + _ROUNDING

    enough = 2 * failures + 2
    while not shows(enough):  # the probability falls to nothing as the count grows
        enough *= 2
    return bisect_left(range(enough), True, lo=failures + 1, key=shows)


@lru_cache(maxsize=64)
def acceptable_above(quantile: float, confidence: float, most: int) -> tuple[int, ...]:
    """How many of the first 1, 2, ... observations may be above the budget for the claim to be accepted there.

    The probabilities of all numbers above are carried from one look to the next for a network exactly on its budget, the worst
    that must not pass; those that are accepted end there.

    Args:
        quantile: The quantile, between 0 and 1.
        confidence: One minus the probability of accepting at any look.
        most: Observations at the last look.

    Returns:
        A limit for every number of observations; -1 where nothing is accepted yet.
    """
    first = needed_observations(quantile, confidence)
    error, at_first = 1 - confidence + _ROUNDING, quantile**first
    going = np.zeros(most + 2)  # by the number above: the probability of having it without having been accepted before
    going[0] = 1.0
    spent, limit, limits = 0.0, -1, []
    for count in range(1, most + 1):
        going[1:] = quantile * going[1:] + (1 - quantile) * going[:-1]
        going[0] *= quantile
        share = (count - first) / max(most - first, 1)
        allowed = at_first + (error - at_first) * share if count >= first else 0.0
        while limit < count and spent + going[limit + 1] <= allowed + _ROUNDING:
            limit += 1
            spent += float(going[limit])
            going[limit] = 0.0
        limits.append(limit)
    return tuple(limits)


def _binomial_cdf(most: int, count: int, probability: float) -> float:
    """P(Binomial(count, probability) <= most)."""
    log_yes, log_no, log_ways = math.log(probability), math.log1p(-probability), math.lgamma(count + 1)
    return math.fsum(math.exp(log_ways - math.lgamma(above + 1) - math.lgamma(count - above + 1)
                              + above * log_yes + (count - above) * log_no) for above in range(min(most, count) + 1))
