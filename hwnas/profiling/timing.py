"""Paired timing: a workload is timed in turn with an anchor, and what is kept is the ratio of the two.

On a shared machine the clock and the neighbours move every absolute time by half within a minute; both halves of a
pair move together, so their ratio stays within a percent. Three habits keep the ratio honest:

- the order within a pair is random, so that a drift within pairs cancels in the median;
- each sample starts with an untimed call, so that it does not depend on what the other callable left in the caches;
- medians throughout: a sample that the scheduler interrupted changes nothing.

A process, or session, also has a ratio of its own (memory layout, and sometimes a runtime's unlucky choices), which more
samples within it cannot average away. `combine_sessions` (of `hwnas.latency.sessions`) therefore judges the scatter between
sessions.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import repeat

from hwnas.errors import InputError
from hwnas.latency.sessions import combine_sessions as combine_sessions
from hwnas.latency.sessions import median_interval, median_relative_ci
from hwnas.latency.sessions import student_t95 as student_t95

# With five values even the whole range encloses the median in only 94 % of cases.
_MIN_FOR_INTERVAL = 6

_LONGEST_ANCHOR_MS = 20.0

_LEAST_WINDOW = 2  # pairs


@dataclass(frozen=True)
class TimingPlan:
    """How long to time, and when to stop.

    Args:
        sample_ms: Wall time of one timed sample; short calls are repeated to fill it, so that the timer and the loop
            cost nothing, yet most samples end before the scheduler interrupts them. Beside a longer call the anchor is
            repeated for as long, up to 20 ms.
        min_pairs: Pairs before the first look at the interval.
        max_pairs: Pairs at most.
        target_relative_ci: Stop once the 95 % interval of the median ratio reaches this far to either side. Much less
            than the scatter between sessions (about 0.013) buys nothing.
        max_seconds: Stop then at the latest, however few the pairs (the pair in progress is finished).
        warmup_pairs: Pairs in one warm-up window; fewer, but two at least, where calls are so slow that two such windows would
            take longer than `max_warmup_seconds`.
        warmup_agreement: Warm-up ends when the median ratios of two windows in a row differ by less than this share.
        max_warmup_seconds: Warm-up ends then at the latest, if two windows were compared.

    Raises:
        InputError: A value is not positive, or `max_pairs` is below `min_pairs`.
    """

    sample_ms: float = 2.0
    min_pairs: int = 20
    max_pairs: int = 400
    target_relative_ci: float = 0.01
    max_seconds: float = 3.0
    warmup_pairs: int = 10
    warmup_agreement: float = 0.02
    max_warmup_seconds: float = 1.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{field.name} must be positive and finite, but got {value!r}.")
        if self.max_pairs < self.min_pairs:
            raise InputError(
                f"min_pairs <= max_pairs must hold, but got (min_pairs={self.min_pairs}, max_pairs={self.max_pairs})."
            )


@dataclass(frozen=True)
class PairedSamples:
    """The raw samples of one session, in the order taken; everything else is derived from them.

    Args:
        workload_ns: Time of one call of the workload, one entry a pair.
        anchor_ns: Time of one call of the anchor in the same pair.
        target_relative_ci: The plan's, which decides `stable`.

    Raises:
        InputError: There are no samples, unequally many, or some are not positive.
    """

    workload_ns: tuple[float, ...]
    anchor_ns: tuple[float, ...]
    target_relative_ci: float = TimingPlan.target_relative_ci

    def __post_init__(self) -> None:
        if not self.workload_ns or len(self.workload_ns) != len(self.anchor_ns):
            raise InputError(
                "Samples must come in pairs, at least one, but got "
                f"{len(self.workload_ns)} of the workload and {len(self.anchor_ns)} of the anchor."
            )
        if not all(value > 0 and math.isfinite(value) for value in (*self.workload_ns, *self.anchor_ns)):
            raise InputError("Every sample must be a positive, finite time in ns: the file was edited; profile again.")

    @property
    def ratios(self) -> tuple[float, ...]:
        """Workload over anchor, pair by pair."""
        return tuple(workload / anchor for workload, anchor in zip(self.workload_ns, self.anchor_ns, strict=True))

    @property
    def ratio(self) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios)

    @property
    def ratio_ci(self) -> tuple[float, float]:
        """95 % confidence interval of the median ratio within this session."""
        return median_interval(self.ratios)

    @property
    def relative_ci(self) -> float:
        """Half the width of `ratio_ci`, as a share of the ratio."""
        return median_relative_ci(self.ratios)

    @property
    def stable(self) -> bool:
        """Whether the interval is as narrow as the plan asked for."""
        return len(self.ratios) >= _MIN_FOR_INTERVAL and self.relative_ci <= self.target_relative_ci

    @property
    def workload_ms(self) -> float:
        """Median time of one call of the workload, as the clock ran in this session."""
        return statistics.median(self.workload_ns) / 1e6

    @property
    def anchor_ms(self) -> float:
        """Median time of one call of the anchor, as the clock ran in this session."""
        return statistics.median(self.anchor_ns) / 1e6


def time_paired(workload: Callable[[], object], anchor: Callable[[], object], plan: TimingPlan) -> PairedSamples:
    """Times a workload in turn with the anchor, until the ratio's interval is narrow, stops narrowing, or time is up.

    Args:
        workload: Runs once a call and returns when done.
        anchor: The same for the yardstick.
        plan: When to stop.
    """
    return time_many({"workload": workload}, anchor, plan)["workload"]


def time_many(
    workloads: Mapping[str, Callable[[], object]], anchor: Callable[[], object], plan: TimingPlan
) -> dict[str, PairedSamples]:
    """Times several workloads in one session, one pair each in turn, in a new random order every round.

    The workloads then see the same drift, which makes them comparable with each other. A workload leaves the rounds
    when it is done by itself; the plan's bounds hold for each, the seconds on average.

    Args:
        workloads: Callables by name, each as in `time_paired`.
        anchor: The yardstick that each pair contains.
        plan: When to stop.
    """
    order = random.Random(0)
    with _garbage_collection_off():
        pairs = {name: _warm_up(workload, anchor, plan, order) for name, workload in workloads.items()}
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in workloads}
        deadline = time.perf_counter() + plan.max_seconds * len(workloads)
        active = list(workloads)
        while active:
            order.shuffle(active)
            for name in active:
                samples[name].append(pairs[name].take(order))
            late = time.perf_counter() >= deadline
            active = [name for name in active if not late and not _is_done(samples[name], plan)]
    return {
        name: PairedSamples(tuple(w for w, _ in taken), tuple(a for _, a in taken), plan.target_relative_ci)
        for name, taken in samples.items()
    }


class _Pair:
    """A workload and the anchor, each with the number of repeats that fills one sample.

    Args:
        workload: As in `time_paired`.
        anchor: The same for the yardstick.
        sample_ms: As in the plan.
        call_ns: How long one call of each takes.
    """

    def __init__(self, workload: Callable[[], object], anchor: Callable[[], object], sample_ms: float,
                 call_ns: tuple[float, float]) -> None:
        self._workload, self._anchor = workload, anchor
        self._workload_repeats = math.ceil(1e6 * sample_ms / call_ns[0])
        self._anchor_repeats = math.ceil(1e6 * _anchor_sample_ms(sample_ms, call_ns[0]) / call_ns[1])

    def take(self, order: random.Random) -> tuple[float, float]:
        """One sample of each in random order: ns per call of the workload and of the anchor."""
        if order.random() < 0.5:
            workload_ns = _sample_ns(self._workload, self._workload_repeats)
            return workload_ns, _sample_ns(self._anchor, self._anchor_repeats)
        anchor_ns = _sample_ns(self._anchor, self._anchor_repeats)
        return _sample_ns(self._workload, self._workload_repeats), anchor_ns


def _sample_ns(call: Callable[[], object], repeats: int) -> float:
    call()  # brings its own data back into the caches
    start_ns = time.perf_counter_ns()
    for _ in repeat(None, repeats):
        call()
    return max(time.perf_counter_ns() - start_ns, 1) / repeats


def _anchor_sample_ms(sample_ms: float, workload_ns: float) -> float:
    """A long call averages over what disturbs the machine; its anchor has to be as long, or it is the noisier half."""
    return min(max(sample_ms, workload_ns / 1e6), _LONGEST_ANCHOR_MS)


def _call_ns(call: Callable[[], object], sample_ms: float) -> float:
    """How long one call takes; doubles the calls until half a sample is filled, so that it is sound."""
    repeats = 1
    while True:
        call_ns = _sample_ns(call, repeats)
        if call_ns * repeats >= 0.5e6 * sample_ms:
            return call_ns
        repeats *= 2


def _warm_up(workload: Callable[[], object], anchor: Callable[[], object], plan: TimingPlan, order: random.Random) -> _Pair:
    """Takes windows of pairs until two in a row agree, or time is up, then sets the repeats by the last one.

    Of slow calls, windows are of fewer pairs, so that two fit into the time; at least two are compared whatever they take. It is
    the fastest pair so far that counts as slow or not: first calls may be slow in all workloads.
    """
    start = time.perf_counter()
    workload_ns = _call_ns(workload, plan.sample_ms)
    taken = [(workload_ns, _call_ns(anchor, _anchor_sample_ms(plan.sample_ms, workload_ns)))]  # as good as any other pair
    pair = _Pair(workload, anchor, plan.sample_ms, taken[0])
    fastest_s = math.inf
    while True:
        pair_start = time.perf_counter()
        taken.append(pair.take(order))
        now = time.perf_counter()
        fastest_s = min(fastest_s, now - pair_start)
        window = min(plan.warmup_pairs, max(_LEAST_WINDOW, int(plan.max_warmup_seconds / (2 * fastest_s))))
        if len(taken) >= 2 * window and (now - start >= plan.max_warmup_seconds or _windows_agree(taken, window, plan)):
            last = taken[-window:]
            call_ns = statistics.median(one for one, _ in last), statistics.median(other for _, other in last)
            return _Pair(workload, anchor, plan.sample_ms, call_ns)


def _windows_agree(taken: list[tuple[float, float]], window: int, plan: TimingPlan) -> bool:
    if len(taken) % window:
        return False
    ratios = [workload_ns / anchor_ns for workload_ns, anchor_ns in taken[-2 * window:]]
    before, now = statistics.median(ratios[:window]), statistics.median(ratios[window:])
    return abs(now - before) <= plan.warmup_agreement * before


def _is_done(taken: list[tuple[float, float]], plan: TimingPlan) -> bool:
    """Whether the interval is narrow, did not narrow while the pairs doubled (it should by 1 / sqrt 2), or pairs ran out."""
    if len(taken) >= plan.max_pairs:
        return True
    if len(taken) % plan.min_pairs or len(taken) < _MIN_FOR_INTERVAL:
        return False
    ratios = [workload_ns / anchor_ns for workload_ns, anchor_ns in taken]
    width = median_relative_ci(ratios)
    narrows = len(ratios) < 4 * plan.min_pairs or width < median_relative_ci(ratios[: len(ratios) // 2])
    return width <= plan.target_relative_ci or not narrows


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()  # without a collection first: in a large process that takes longer than a short session
    try:
        yield
    finally:
        if was_on:
            gc.enable()
