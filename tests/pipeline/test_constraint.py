"""Budgets against brute force over every network of a small space."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.costs import MacsCost, ParametersCost
from hwnas.ir.trellis import Trellis
from hwnas.pipeline.constraint import count_constraint, latency_constraint
from tests.pipeline.samples import all_networks, make_space, make_table

SPACE = make_space()
TABLE = make_table(SPACE)  # predictions are ± 10 % in the table's hour
HALF = TABLE.held_out.interval
PREDICTIONS = {one: TABLE.predict(one) for one in all_networks(SPACE)}
LOWEST = min(one.latency_ms for one in PREDICTIONS.values())
HIGHEST = max(one.latency_ms for one in PREDICTIONS.values())


def test_the_interval_of_the_table_is_what_the_tests_take_it_for():
    assert TABLE.held_out.same_hour_interval == pytest.approx(0.1) and 0.1 < HALF < 0.101
    assert TABLE.calibration.scale == pytest.approx(1)
    assert HIGHEST > 1.5 * LOWEST and len(PREDICTIONS) == 27


def test_a_promise_is_made_on_the_upper_end():
    budget = (LOWEST + HIGHEST) / 2
    constraint = latency_constraint(TABLE, budget)
    assert constraint.promised and constraint.limit == budget and constraint.name == "max_latency_ms"
    allowed = set(Trellis(SPACE, TABLE).sample(2000, max_cost=constraint.search_limit))
    assert allowed == {one for one, prediction in PREDICTIONS.items() if prediction.upper_ms <= budget}
    assert any(prediction.latency_ms <= budget for one, prediction in PREDICTIONS.items() if one not in allowed)


def test_near_the_fastest_network_the_prediction_is_the_limit():
    for budget in (LOWEST * 1.0001, LOWEST * 1.05, LOWEST * (1 + 0.999 * HALF)):
        constraint = latency_constraint(TABLE, budget)
        assert not constraint.promised and constraint.search_limit == constraint.limit == budget
        allowed = set(Trellis(SPACE, TABLE).sample(200, max_cost=constraint.search_limit))
        assert allowed == {one for one, prediction in PREDICTIONS.items() if prediction.latency_ms <= budget}
    assert latency_constraint(TABLE, LOWEST * (1 + 1.001 * HALF)).promised


def test_the_fastest_networks_own_latency_is_a_budget():
    least = Trellis(SPACE, TABLE).min_cost()
    assert not latency_constraint(TABLE, least).promised
    with pytest.raises(InfeasibleError):
        latency_constraint(TABLE, math.nextafter(least, 0))


@pytest.mark.parametrize("budget", [LOWEST * 0.999, 1e-9, 0.0, -1.0, -math.inf])
def test_an_infeasible_budget_names_the_range(budget):
    with pytest.raises(InfeasibleError) as caught:
        latency_constraint(TABLE, budget)
    numbers = [float(word.strip(";.:,")) for word in str(caught.value).split() if word.strip(";.:,")[:1].isdigit()]
    for end in (LOWEST, HIGHEST):
        assert any(number == pytest.approx(end, rel=1e-3) and number >= end * (1 - 1e-9) for number in numbers)


def test_what_the_message_advises_works():
    with pytest.raises(InfeasibleError) as caught:
        latency_constraint(TABLE, LOWEST / 2)
    advised = float(str(caught.value).split("at least ")[1].split(" ")[0])
    assert latency_constraint(TABLE, advised).search_limit == advised


def test_not_a_number_is_refused():
    with pytest.raises(InputError):
        latency_constraint(TABLE, math.nan)


def test_no_limit_allows_everything():
    constraint = latency_constraint(TABLE, math.inf)
    assert constraint.promised and Trellis(SPACE, TABLE).count(constraint.search_limit) == 27


def test_without_held_out_networks_only_half_the_budget_is_promised():
    """Nothing is known about the error: then a promise takes an interval of a hundred percent."""
    table = make_table(SPACE, held_out=0)
    assert latency_constraint(table, 2.01 * LOWEST).promised
    assert latency_constraint(table, 2.01 * LOWEST).search_limit == pytest.approx(1.005 * LOWEST)
    assert not latency_constraint(table, 1.99 * LOWEST).promised


@given(share=st.floats(-0.5, 1.5))
def test_any_budget(share):
    budget = LOWEST + share * (HIGHEST - LOWEST)
    predicted = sorted(prediction.latency_ms for prediction in PREDICTIONS.values() if prediction.latency_ms <= budget)
    try:
        constraint = latency_constraint(TABLE, budget)
    except InfeasibleError:
        assert not predicted or predicted[-1] == pytest.approx(budget, rel=1e-9)
        return
    assert constraint.search_limit <= constraint.limit == budget
    cheapest = min(PREDICTIONS.values(), key=lambda prediction: prediction.latency_ms)
    assert constraint.promised == (cheapest.upper_ms <= budget) or cheapest.upper_ms == pytest.approx(budget, rel=1e-9)
    assert Trellis(SPACE, TABLE).feasible(constraint.search_limit)


@pytest.mark.parametrize(("costs", "name", "count"), [
    (MacsCost(), "max_macs", lambda network: network.macs),
    (ParametersCost(), "max_parameters", lambda network: network.parameters)])
def test_counts_are_exact(costs, name, count):
    counts = {one: count(SPACE.network(one)) for one in PREDICTIONS}
    limit = sorted(counts.values())[9]
    constraint = count_constraint(SPACE, costs, limit)
    assert (constraint.name, constraint.limit, constraint.search_limit, constraint.promised) == (name, limit, limit, True)
    assert set(Trellis(SPACE, costs).sample(2000, max_cost=limit)) == {one for one, value in counts.items() if value <= limit}
    with pytest.raises(InfeasibleError, match=str(min(counts.values()))):
        count_constraint(SPACE, costs, min(counts.values()) - 1)
