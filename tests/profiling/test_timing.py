"""Paired timing: ratios known by construction, stopping rules, and intervals checked by simulation."""

import gc
import math
import time
from dataclasses import replace
from itertools import chain, count, repeat
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import InputError
from hwnas.profiling import timing
from hwnas.profiling.rounds import RoundsPlan
from hwnas.profiling.timing import (
    PairedSamples,
    TimingPlan,
    _is_done,
    combine_sessions,
    median_interval,
    student_t95,
    time_many,
    time_paired,
)

QUICK = TimingPlan(sample_ms=0.5, max_seconds=1.0, max_warmup_seconds=0.5)


def busy_work():
    """A few microseconds of arithmetic in the caches, where the interpreter's own overhead is small."""
    values = np.linspace(0.1, 1.0, 4000)
    out = np.empty_like(values)
    return lambda: np.sqrt(values, out=out)


def repeated(call, times):
    def run():
        for _ in range(times):
            call()

    return run


def session(ratios):
    """A session with the given ratios, on an anchor of 1 ms."""
    return PairedSamples(tuple(1e6 * ratio for ratio in ratios), (1e6,) * len(ratios))


def steady_session(ratio):
    return session(ratio * np.linspace(0.998, 1.002, 41))


def test_a_workload_of_three_anchors_has_the_ratio_three():
    anchor = busy_work()
    seen = []
    for _ in range(3):  # neighbours may spoil an attempt; a wrong ratio stays wrong
        seen.append(time_paired(repeated(anchor, 3), anchor, QUICK).ratio)
        if seen[-1] == pytest.approx(3, rel=0.1):
            return
    pytest.fail(f"a workload of three anchor calls had the ratios {seen}")


def test_a_call_longer_than_a_sample_is_timed_one_by_one():
    calls = []

    def slow():
        calls.append(None)
        time.sleep(0.003)

    plan = TimingPlan(sample_ms=0.1, min_pairs=6, max_pairs=6, max_warmup_seconds=1e-9)
    samples = time_paired(slow, repeated(busy_work(), 3), plan)
    assert len(samples.workload_ns) == 6 and min(samples.workload_ns) >= 3e6
    assert samples.workload_ms >= 3
    assert len(calls) == 6 * 2 + 4 * 2  # one call to warm the caches before each sample; at least two windows of two pairs


def test_several_workloads_keep_their_order():
    anchor = busy_work()
    workloads = {str(n): repeated(anchor, n) for n in (4, 1, 2)}
    for _ in range(3):
        samples = time_many(workloads, anchor, QUICK)
        assert list(samples) == ["4", "1", "2"]
        if all(samples[name].ratio == pytest.approx(int(name), rel=0.15) for name in samples):
            return
    pytest.fail(f"ratios { ({name: found.ratio for name, found in samples.items()}) } should be like their names")


def test_pairs_run_out_at_the_bound():
    plan = TimingPlan(sample_ms=0.05, min_pairs=4, max_pairs=7, target_relative_ci=1e-12)
    samples = time_paired(busy_work(), busy_work(), plan)
    assert len(samples.workload_ns) == len(samples.anchor_ns) == 7
    assert not samples.stable


def test_an_interval_that_is_narrow_enough_ends_it_early():
    plan = TimingPlan(sample_ms=0.05, min_pairs=8, max_pairs=10_000, target_relative_ci=1e3)
    samples = time_paired(busy_work(), busy_work(), plan)
    assert len(samples.workload_ns) == 8 and samples.stable


def test_an_interval_that_no_longer_narrows_ends_it():
    """Fed with samples of known behaviour, since a loaded machine makes real ones wander."""
    plan = TimingPlan(min_pairs=6, max_pairs=5000, target_relative_ci=1e-9)
    generator = np.random.default_rng(0)
    drifting = [(1000.0 * 1.01**turn, 1000.0) for turn in range(5000)]  # ever slower: more pairs never settle on a median
    steady = [(1000.0 * generator.normal(1, 0.05), 1000.0) for _ in range(1600)]
    ends = next(count for count in range(1, 5000) if _is_done(drifting[:count], plan))
    assert ends <= 60
    assert not any(_is_done(steady[:count], replace(plan, min_pairs=100)) for count in (100, 400, 800, 1600))


def test_seconds_are_a_bound_even_before_the_first_interval():
    def slow():
        time.sleep(0.02)

    plan = TimingPlan(min_pairs=1000, max_pairs=1000, max_seconds=0.05, max_warmup_seconds=1e-9)
    samples = time_paired(slow, busy_work(), plan)
    assert 1 <= len(samples.ratios) < 5 and not samples.stable


def test_the_first_slow_calls_do_not_count():
    anchor = busy_work()
    left = iter([100] * 12)

    def lazy():  # as a runtime that compiles or allocates at first
        repeated(anchor, 2 + next(left, 0))()

    for _ in range(3):
        found = time_paired(lazy, anchor, QUICK)
        if np.max(found.ratios[:3]) < 20:
            return
        left = iter([100] * 12)
    pytest.fail(f"the first samples still have the ratios {found.ratios[:3]}")


def test_the_first_slow_calls_of_a_slow_workload_do_not_count():
    """The first two take all of the time for warming up."""
    plan = TimingPlan(sample_ms=0.1, min_pairs=4, max_pairs=4, warmup_pairs=5, max_warmup_seconds=0.05)
    for _ in range(3):
        left = iter([0.03] * 6)
        found = time_paired(lambda left=left: time.sleep(next(left, 0.01)), busy_work(), plan)
        if max(found.workload_ns) < 2 * min(found.workload_ns):
            return
    pytest.fail(f"samples still take {found.workload_ns} ns")


@pytest.fixture
def tick(monkeypatch):
    """Makes callables of known duration: a clock that only they move."""
    clock = SimpleNamespace(ns=0, calls=0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.ns / 1e9, perf_counter_ns=lambda: clock.ns))

    def make(durations_ms, counted=False):
        durations_ms = iter(durations_ms)

        def call():
            clock.ns += round(1e6 * next(durations_ms))
            clock.calls += counted

        return call

    make.clock = clock
    return make


@pytest.mark.parametrize(("call_ms", "pairs"), [(1, 10), (5, 10), (8, 8), (15, 4), (50, 4), (500, 4)])
def test_windows_shrink_for_slow_calls(tick, call_ms, pairs):
    plan = replace(RoundsPlan().timing, min_pairs=1, max_pairs=1)
    time_paired(tick(repeat(call_ms), counted=True), tick(repeat(0.1)), plan)
    assert tick.clock.calls == 2 * (pairs + 1)  # the last one is what is kept


def test_what_is_slow_at_first_is_not_a_slow_call(tick):
    """The time is over after the first calls, yet windows grow again, and two are taken; anchors still last 20 ms."""
    plan = replace(RoundsPlan().timing, min_pairs=1, max_pairs=1)
    time_paired(tick(chain([100] * 6, repeat(1)), counted=True), tick(repeat(0.1)), plan)
    assert tick.clock.calls == 2 * (8 + 1)


def test_warming_up_a_slow_workload_costs_little(tick):
    """What never settles ends with the time; for a call of 50 ms that is four pairs, of which each takes an anchor of 20 ms."""
    falling = (50 * 0.97**turn for turn in count())
    samples = time_paired(tick(falling), tick(repeat(0.1)), replace(RoundsPlan().timing, min_pairs=1, max_pairs=1))
    assert tick.clock.ns < 5 * (2 * 50 + 20 + 1) * 1e6 + 10e6 and samples.workload_ms == pytest.approx(50 * 0.97**9)


def test_garbage_collection_is_off_while_timing_and_as_before_afterwards():
    seen = set()

    def watch():
        seen.add(gc.isenabled())

    plan = TimingPlan(sample_ms=0.05, min_pairs=6, max_pairs=6)
    assert gc.isenabled()
    time_paired(watch, busy_work(), plan)
    assert seen == {False} and gc.isenabled()

    def fails():
        raise RuntimeError("workload failed")

    with pytest.raises(RuntimeError, match="workload failed"):
        time_paired(fails, busy_work(), plan)
    assert gc.isenabled()


@pytest.mark.parametrize(
    "change",
    [
        {"sample_ms": 0},
        {"max_seconds": -1},
        {"target_relative_ci": math.nan},
        {"max_seconds": math.inf},
        {"min_pairs": 10, "max_pairs": 9},
    ],
)
def test_a_plan_without_bounds_is_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        TimingPlan(**change)


@pytest.mark.parametrize(
    ("workload_ns", "anchor_ns"),
    [((), ()), ((1.0,), ()), ((1.0, 2.0), (1.0,)), ((0.0,), (1.0,)), ((1.0,), (-1.0,)), ((math.nan,), (1.0,))],
)
def test_broken_samples_are_refused(workload_ns, anchor_ns):
    with pytest.raises(InputError, match="ample"):
        PairedSamples(workload_ns, anchor_ns)


def test_a_common_drift_leaves_the_ratio_alone():
    clock = 1 + np.linspace(0, 5, 51)
    samples = PairedSamples(tuple(3e6 * clock), tuple(2e6 * clock))
    assert samples.ratio == pytest.approx(1.5) and samples.relative_ci == pytest.approx(0, abs=1e-12)
    assert samples.anchor_ms == pytest.approx(2 * np.median(clock))


def test_interrupted_samples_do_not_move_the_ratio():
    ratios = np.random.default_rng(0).normal(2, 0.02, 101)
    spoiled = ratios.copy()
    spoiled[::7] *= 50
    assert session(spoiled).ratio == pytest.approx(session(ratios).ratio, rel=0.005)


@given(st.integers(1, 300))
def test_interval_ranks_are_those_of_the_binomial_distribution(count):
    low, high = median_interval(list(range(count, 0, -1)))  # rank = value
    rank = max(int(scipy.stats.binom.ppf(0.025, count, 0.5)), 1)
    if scipy.stats.binom.cdf(rank - 1, count, 0.5) > 0.025:
        rank = max(rank - 1, 1)
    assert (low, high) == (rank, count + 1 - rank)


@pytest.mark.parametrize("count", [6, 9, 20, 75, 200])
def test_the_interval_covers_the_true_median_in_95_percent_of_cases(count):
    rng = np.random.default_rng(count)
    trials = rng.lognormal(mean=0, sigma=0.1, size=(2000, count))  # median 1, skewed
    covered = np.mean([low <= 1 <= high for low, high in map(median_interval, trials)])
    # 2000 trials at 95 % scatter by 0.5 % each way; whole ranks make small samples cover more.
    assert 0.935 <= covered <= (0.995 if count < 20 else 0.98)


@pytest.mark.parametrize("degrees", [4, 5, 7, 12, 100])
def test_student_quantile(degrees):
    assert student_t95(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=3e-3)


def test_sessions_are_joined_by_their_median():
    joined = combine_sessions([steady_session(ratio) for ratio in (1.19, 1.20, 1.18, 1.22, 1.205)])
    assert joined.ratio == pytest.approx(1.20)
    assert joined.relative_sd == pytest.approx(np.std([1.19, 1.20, 1.18, 1.22, 1.205], ddof=1) / 1.20)
    assert joined.ratio_ci[0] < 1.20 < joined.ratio_ci[1] and joined.label == "ok"


@pytest.mark.parametrize("position", range(6))
def test_one_bad_session_among_several_changes_nothing_that_matters(position):
    good = [1.18, 1.19, 1.20, 1.205, 1.21]
    bad = good.copy()
    bad.insert(position, 2.65)
    joined, spoiled = (combine_sessions([steady_session(ratio) for ratio in ratios]) for ratios in (good, bad))
    assert spoiled.ratio == pytest.approx(joined.ratio, rel=0.01)
    assert spoiled.label == "ok"
    assert spoiled.relative_sd > 0.4  # but it is not hidden


def test_sessions_that_disagree_are_noisy():
    assert combine_sessions([steady_session(ratio) for ratio in (1.0, 2.65)]).label == "noisy"
    assert combine_sessions([steady_session(ratio) for ratio in (1.0, 1.01, 1.4, 1.0, 1.42)]).label == "noisy"


def test_one_session_is_trusted_less_than_five():
    one, five = (combine_sessions([steady_session(1.0)] * count) for count in (1, 5))
    assert one.relative_sd is None and five.relative_sd == pytest.approx(0)
    assert one.ratio_ci[1] - one.ratio_ci[0] > 2 * (five.ratio_ci[1] - five.ratio_ci[0])
    vague = combine_sessions([session(np.linspace(0.5, 1.5, 20))])
    assert vague.label == "noisy"  # its own samples do not even agree


def test_no_session_is_refused():
    with pytest.raises(InputError, match="got none"):
        combine_sessions([])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_the_sessions_interval_covers_typical_scatter(count):
    rng = np.random.default_rng(count)
    trials = [[steady_session(ratio) for ratio in rng.normal(1, 0.013, count)] for _ in range(400)]
    intervals = [combine_sessions(sessions).ratio_ci for sessions in trials]
    assert np.mean([low <= 1 <= high for low, high in intervals]) >= 0.93
