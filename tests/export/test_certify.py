"""The test of a promise: against enumeration of every outcome, SciPy, MLPerf's figures, and simulation."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hwnas.errors import InputError
from hwnas.export.certify import CertificationPlan, acceptable_above, needed_observations


def test_the_numbers_that_mlperf_publishes():
    """LoadGen's own: 459 queries without a failure for p99 at 99 %; with one that is thrown away, 662, and 64 for p90."""
    assert needed_observations(0.99, 0.99) == 459
    assert needed_observations(0.99, 0.99, failures=1) == 662
    assert needed_observations(0.9, 0.99, failures=1) == 64


@pytest.mark.parametrize(("quantile", "confidence", "needed"), [
    (0.5, 0.95, 5), (0.9, 0.95, 29), (0.95, 0.95, 59), (0.99, 0.95, 299), (0.5, 0.99, 7), (0.5, 0.5, 1), (0.5, 0.75, 2)])
def test_the_fewest_observations(quantile, confidence, needed):
    assert needed_observations(quantile, confidence) == needed == CertificationPlan(quantile, confidence).needed
    assert CertificationPlan(quantile, confidence, rounds=3).needed == needed_observations(quantile, 1 - (1 - confidence) / 3)
    assert quantile**needed <= 1 - confidence + 1e-12 < quantile ** (needed - 1) + 1e-9


@pytest.mark.parametrize("quantile", [Fraction(1, 2), Fraction(3, 4), Fraction(9, 10)])
def test_one_look_against_every_outcome(quantile):
    """A network exactly on its budget: of all outcomes with that few above, none may weigh more than is allowed."""
    for confidence, failures in itertools.product((Fraction(1, 2), Fraction(3, 4), Fraction(9, 10)), (0, 1, 2)):
        def weight(count, failures=failures):
            outcomes = itertools.product((False, True), repeat=count)
            return sum((1 - quantile) ** sum(one) * quantile ** (count - sum(one)) for one in outcomes if sum(one) <= failures)

        counts = [count for count in range(failures + 1, 15) if weight(count) <= 1 - confidence]
        if counts:
            assert needed_observations(float(quantile), float(confidence), failures) == counts[0]


@given(quantile=st.floats(0.5, 0.99), confidence=st.floats(0.5, 0.999), failures=st.integers(0, 30))
def test_one_look_against_scipy(quantile, confidence, failures):
    needed = needed_observations(quantile, confidence, failures)
    assert stats.binom.cdf(failures, needed, 1 - quantile) <= 1 - confidence + 1e-9
    assert needed == failures + 1 or stats.binom.cdf(failures, needed - 1, 1 - quantile) > 1 - confidence - 1e-9


# Several looks


def outcomes(plan, quantile):
    """Every sequence of sessions below and above a budget of 1, and its probability when a share `quantile` is below."""
    for above in itertools.product((False, True), repeat=plan.most):
        yield [1 + 0.5 * one for one in above], quantile ** above.count(False) * (1 - quantile) ** above.count(True)


@pytest.mark.parametrize(("quantile", "confidence", "most"), [(0.5, 0.95, 14), (0.5, 0.8, 12), (0.75, 0.9, 14), (0.9, 0.7, 13)])
def test_no_more_than_allowed_passes_or_fails_wrongly_in_all_looks_together(quantile, confidence, most):
    """Of every sequence there is, for a network exactly on its budget, in exact sums."""
    plan = CertificationPlan(quantile, confidence, most)
    passed = failed = 0.0
    for latencies, probability in outcomes(plan, quantile):
        verdict = plan.judge(latencies, 1.0).verdict
        passed, failed = passed + probability * (verdict == "kept"), failed + probability * (verdict == "broken")
    assert quantile**plan.needed - 1e-12 <= passed <= 1 - confidence + 1e-9
    assert failed <= 1 - confidence + 1e-9
    assert passed > 0.6 * (1 - confidence)  # and hardly less: what may be spent is spent


def simulate(plan, quantile_of_budget, runs, seed):
    """Verdicts on skewed latencies of which a given share is within the budget of 1."""
    generator = np.random.default_rng(seed)
    shift = np.quantile(np.random.default_rng(99).gamma(2.0, 0.01, 10**6), quantile_of_budget)
    latencies = 1 - shift + generator.gamma(2.0, 0.01, (runs, plan.most))
    return [plan.judge(row, 1.0) for row in latencies.tolist()]


@pytest.mark.parametrize(("plan", "runs"), [(CertificationPlan(), 20_000), (CertificationPlan(confidence=0.99), 5_000),
                                            (CertificationPlan(0.9), 5_000), (CertificationPlan(0.5, 0.95, 60), 5_000)])
def test_simulated_false_acceptances(plan, runs):
    """A network whose quantile is a hair above its budget: fresh draws, another program for the probabilities."""
    found = simulate(plan, plan.quantile, runs, seed=1)
    allowed = stats.binom.ppf(0.999, runs, 1 - plan.confidence)
    assert sum(one.verdict == "kept" for one in found) <= allowed
    assert sum(one.verdict == "broken" for one in found) <= allowed


def test_all_rounds_together_let_no_more_through():
    """Networks exactly on their budget, one after the other until one is kept: without a share for each, too many would be."""
    def kept(plan):
        found = simulate(plan, plan.quantile, 3 * 3_000, seed=5)
        return sum(any(one.verdict == "kept" for one in found[start:start + 3]) for start in range(0, len(found), 3))

    allowed = stats.binom.ppf(0.999, 3_000, 0.05)
    assert kept(CertificationPlan(rounds=3)) <= allowed < kept(CertificationPlan())


def test_looking_again_without_paying_would_let_more_through():
    """The reason for spending: every look with the whole error, on the same draws."""
    plan, runs = CertificationPlan(), 5_000
    above = np.cumsum(np.random.default_rng(2).random((runs, plan.most)) < 0.5, axis=1)
    passed = stats.binom.cdf(above, np.arange(1, plan.most + 1), 0.5) <= 0.05
    assert passed.any(axis=1).sum() > stats.binom.ppf(0.999, runs, 0.05)


def test_networks_off_their_budget_are_decided_soon():
    fast = simulate(CertificationPlan(), 0.9, 2_000, seed=3)
    slow = simulate(CertificationPlan(), 0.1, 2_000, seed=4)
    assert np.mean([one.verdict == "kept" for one in fast]) > 0.98
    assert np.mean([one.verdict == "broken" for one in slow]) > 0.98
    assert np.mean([one.observations for one in fast + slow]) < 9


def test_limits_only_grow():
    limits = acceptable_above(0.5, 0.95, 25)
    assert limits[:5] == (-1, -1, -1, -1, 0) and list(limits) == sorted(limits) and len(limits) == 25
    assert all(limit < count / 2 for count, limit in enumerate(limits, 1))


# Judging


def test_the_order_of_the_sessions_decides():
    plan = CertificationPlan()
    kept = plan.judge([0.9] * 5 + [2.0] * 20, 1.0)
    assert (kept.verdict, kept.observations, kept.above) == ("kept", 5, 0)
    broken = plan.judge([1.1] * 5 + [0.5] * 20, 1.0)
    assert (broken.verdict, broken.observations, broken.above) == ("broken", 5, 5)
    later = plan.judge([1.1] + [0.9] * 24, 1.0)
    assert later.verdict == "kept" and 5 < later.observations < 25 and later.above == 1
    never = plan.judge([0.9, 1.1] * 30, 1.0)
    assert (never.verdict, never.observations, never.above) == ("undecided", 25, 12)
    assert plan.judge([1.0] * 5, 1.0).verdict == "kept"  # on the budget is within it
    assert plan.judge([0.9] * 4, 1.0).verdict == "undecided"


@given(latencies=st.lists(st.floats(0.5, 1.5), min_size=1, max_size=25), budget=st.floats(0.5, 1.5))
def test_what_could_have_been_promised(latencies, budget):
    plan = CertificationPlan()
    found = plan.judge(latencies, budget)
    seen = latencies[:found.observations]
    limit = max(acceptable_above(0.5, 0.95, 25)[found.observations - 1], 0)
    assert sum(one > found.certifiable_ms for one in seen) <= limit
    assert found.certifiable_ms in seen
    below = max((one for one in seen if one < found.certifiable_ms), default=0.0)
    assert sum(one > below for one in seen) > limit  # nothing smaller would do
    if found.observations >= plan.needed:
        assert (found.certifiable_ms <= budget) == (found.verdict == "kept")


def test_what_three_rounds_take():
    assert CertificationPlan(rounds=3).needed == 6 and CertificationPlan(0.9, rounds=3).needed == 39
    assert "p50 of latency within the budget at 95 % confidence: 6 fresh sessions" in str(CertificationPlan(rounds=3))
    assert CertificationPlan(0.99, 0.999, rounds=20).needed == needed_observations(0.99, 1 - 0.001 / 20)
    with pytest.raises(InputError, match="6 sessions to show in 3 round"):
        CertificationPlan(max_observations=5, rounds=3)


def test_words():
    plan = CertificationPlan(0.9)
    assert str(plan) == ("p90 of latency within the budget at 95 % confidence: 29 fresh sessions if none is above, 145 at most")
    assert str(CertificationPlan().judge([2.0] * 5, 1.0)) == "broken: 5 of 5 sessions above the budget"
    assert CertificationPlan().judge([2.0] * 5, 1.0).to_dict() == {
        "quantile": 0.5, "confidence": 0.95, "observations": 5, "above": 5, "certifiable_ms": 2.0}


@pytest.mark.parametrize("arguments", [(0.0,), (0.49,), (0.999,), (float("nan"),), (0.5, 0.4), (0.5, 1.0), (0.5, float("nan")),
                                       (0.9, 0.95, 28), (0.5, 0.95, 0), (0.5, 0.95, None, 0)])
def test_what_cannot_be_shown_is_refused(arguments):
    with pytest.raises(InputError):
        CertificationPlan(*arguments)


def test_too_few_sessions_are_told_with_the_number_it_takes():
    with pytest.raises(InputError, match="at least 29 sessions"):
        CertificationPlan(0.9, 0.95, 10)
    with pytest.raises(InputError, match="at least one session"):
        CertificationPlan().judge([], 1.0)
