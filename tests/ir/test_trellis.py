"""The trellis against brute-force enumeration, polynomial arithmetic, networkx and statistics."""

import copy
import math
import re
from collections import Counter
from fractions import Fraction
from multiprocessing.reduction import ForkingPickler

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.blocks import ConvBlock, Identity, MBConv, SeparableConv
from hwnas.ir.costs import MacsCost, ParametersCost
from hwnas.ir.grid import MAX_TICKS
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from tests.ir.strategies import (
    WorkloadCosts,
    all_indices,
    possible_indices,
    spaces,
    spaces_with_costs,
    spaces_with_refusals,
    walked_cost,
    walked_edges,
)

settings.register_profile("trellis", deadline=None, max_examples=80)
many = settings(settings.get_profile("trellis"))


def chain(decisions: int, options: int, widths: tuple[int, ...] = (2,)) -> SearchSpace:
    """Convolutions that differ in kernel, and in width where several are given."""
    return SearchSpace("chain", TensorShape(2, 4, 4), tuple(
        Decision(f"d{index}", {f"o{number}": ConvBlock(widths[number % len(widths)], 2 * number + 1)
                               for number in range(options)})
        for index in range(decisions)))


def random_costs(space: SearchSpace, seed: int, digits: int | None = None) -> WorkloadCosts:
    generator = np.random.default_rng(seed)
    workloads = sorted({edge.workload for step in space.steps for edge in step.edges})
    values = generator.uniform(0.1, 1, len(workloads))
    return WorkloadCosts(dict(zip(workloads, (values if digits is None else values.round(digits)).tolist(), strict=True)))


class PositionCosts:
    """Costs by layer and option alone, handed out in the order in which a trellis asks."""

    unit = "ms"
    constant = 0.0

    def __init__(self, values: np.ndarray) -> None:
        self._values = iter(values.ravel().tolist())

    def edge_cost(self, edge: object) -> float:
        return next(self._values)


def budgets_around(costs: np.ndarray) -> list[float]:
    """Every achievable cost, just below it, and what lies outside."""
    distinct = np.unique(costs)[:40]
    return sorted({*distinct, *np.nextafter(distinct, -np.inf), *np.nextafter(distinct, np.inf), costs.max(), costs.max() + 1})


def assert_uniform(drawn: np.ndarray, expected: np.ndarray) -> None:
    """Only expected rows are drawn, and all equally often (chi-square test)."""
    counts = Counter(map(tuple, drawn.tolist()))
    rows = list(map(tuple, expected.tolist()))
    assert set(counts) <= set(rows)
    if len(rows) > 1:
        assert stats.chisquare([counts[row] for row in rows]).pvalue > 1e-4


# Costs and their range


@many
@given(spaces_with_costs())
def test_costs_are_those_of_the_walked_path(case):
    space, model = case
    trellis = Trellis(space, model)
    rows = possible_indices(space, model)
    costs = trellis.costs_of(rows)
    assert costs.shape == (len(rows),)
    finite = [value for value in model.costs.values() if value < math.inf]
    largest = max(len(space.steps) * max(finite), abs(model.constant))
    for row, cost in zip(rows, costs, strict=True):
        exact = walked_cost(space, model, row)
        assert abs(Fraction(cost) - exact) <= Fraction(1e-12 * largest) + Fraction(1, 10**20)
        if all(value == int(value) for value in [*finite, model.constant]):
            assert cost == exact
    assert trellis.cost(space.architectures(rows[:1])[0]) == costs[0]


@many
@given(spaces_with_costs())
def test_range_is_attained(case):
    space, model = case
    trellis = Trellis(space, model)
    costs = trellis.costs_of(possible_indices(space, model))
    assert trellis.min_cost() == costs.min() == trellis.cost(trellis.cheapest())
    assert trellis.max_cost() == costs.max() == trellis.cost(trellis.dearest())


def test_decimals_add_up_as_people_expect():
    trellis = Trellis(chain(3, 1), PositionCosts(np.array([0.1, 0.2, 0.0])))
    assert trellis.min_cost() == 0.3 < 0.1 + 0.2
    assert trellis.feasible(0.3)


@many
@given(spaces())
def test_explicit_costs_are_those_of_the_network(space):
    for model, attribute in ((MacsCost(), "macs"), (ParametersCost(), "parameters")):
        trellis = Trellis(space, model)
        for architecture in trellis.sample(5):
            assert trellis.cost(architecture) == getattr(space.network(architecture), attribute)


def test_costs_of_checks_its_indices():
    trellis = Trellis(chain(2, 3))
    for wrong in ([[0, 3]], [[-1, 0]], [[0]], [0, 0], [[0.0, 1.0]]):
        with pytest.raises(InputError):
            trellis.costs_of(np.array(wrong))
    assert trellis.costs_of(np.empty((0, 2), int)).shape == (0,)


@pytest.mark.parametrize("value", [math.nan, -math.inf, -1.0])
def test_unusable_costs_are_refused_by_name(value):
    space = chain(2, 2)
    with pytest.raises(InputError, match=r"'d1'.*'o0'"):
        Trellis(space, PositionCosts(np.array([1, 1, value, 1])))
    with pytest.raises(InputError, match="constant"):
        Trellis(space, WorkloadCosts(random_costs(space, 0).costs, constant=math.inf))
    with pytest.raises(InputError, match="larger unit"):
        Trellis(space, PositionCosts(np.array([1, 1, MAX_TICKS, 1])))


@many
@given(spaces_with_refusals())
def test_a_space_without_a_network_of_finite_cost_is_infeasible(case):
    space, model = case
    if len(possible_indices(space, model)):
        Trellis(space, model)
        return
    with pytest.raises(InfeasibleError, match="is possible") as refusal:
        Trellis(space, model)
    # It is the first layer that no prefix of finite cost passes.
    prefixes = [[edge.workload for edge in walked_edges(space, row)] for row in all_indices(space)]
    passed = max(next(number for number, workload in enumerate(prefix) if model.costs[workload] == math.inf)
                 for prefix in prefixes)
    assert repr(space.steps[passed].name) in str(refusal.value)


@many
@given(spaces_with_refusals())
def test_a_network_of_infinite_cost_has_no_cost(case):
    space, model = case
    possible = set(map(tuple, possible_indices(space, model).tolist()))
    if not possible:
        return
    trellis = Trellis(space, model)
    for row in all_indices(space):
        if tuple(row.tolist()) not in possible:
            with pytest.raises(InputError, match="finite cost"):
                trellis.costs_of(row[None])


def test_dead_ends_and_states_that_nothing_reaches():
    """Widths are states: after width 2 every kernel is refused, and width 4, which goes on, cannot be reached."""
    widths = Decision("width", {f"w{width}": ConvBlock(width) for width in (2, 3, 4)})
    kernels = Decision("kernel", {f"k{kernel}": ConvBlock(3, kernel) for kernel in (1, 3, 5)})
    space = SearchSpace("dead", TensorShape(6, 4, 4), (widths, kernels))
    first, second = space.steps
    costs = {edge.workload: 1.0 + edge.option for edge in (*first.edges, *second.edges)}
    costs[first.edges[2].workload] = math.inf
    costs |= {edge.workload: math.inf for edge in second.edges if edge.source == 0 or (edge.source, edge.option) == (1, 0)}
    model = WorkloadCosts(costs)
    trellis = Trellis(space, model)
    networks = [{"width": "w3", "kernel": kernel} for kernel in ("k3", "k5")]
    assert trellis.count() == 2 and (trellis.min_cost(), trellis.max_cost()) == (4, 5)
    assert [dict(one.choices) for one in (trellis.cheapest(), trellis.dearest())] == networks
    assert {str(one) for one in trellis.sample(100)} == {"w3 k3", "w3 k5"}
    scores = {"width": [9.0, 0.0, math.nan], "kernel": [9.0, 0.0, 0.5]}  # what cannot be taken does not count
    assert str(trellis.best(scores)) == "w3 k5" and str(trellis.best(scores, 4)) == "w3 k3"
    assert trellis.expected_cost({"width": [0.5, 0.1, 0.4], "kernel": [0.5, 0.25, 0.25]}) == 4.5
    assert trellis.restrict({"kernel": ["k1", "k5"]}).cheapest().choices == networks[1]
    assert str(trellis.resample(trellis.cheapest(), ["width"])) == "w3 k3"
    assert {node for node in trellis.graph() if node[0] == 1} == {(1, second.inputs[0]), (1, second.inputs[1])}
    for nothing in ({"width": ["w2"]}, {"width": ["w4"]}, {"kernel": ["k1"]}):
        with pytest.raises(InputError, match="leave none"):
            trellis.restrict(nothing).min_cost()
    with pytest.raises(InfeasibleError, match=r"^No network of space 'dead' fits"):  # nobody restricted it
        trellis.sample(1, 3)


# Counting


@many
@given(spaces_with_costs())
def test_count_of_small_spaces_is_exact(case):
    space, model = case
    trellis = Trellis(space, model)
    costs = trellis.costs_of(possible_indices(space, model))
    assert trellis.count() == trellis.count(math.inf) == len(costs)
    for budget in budgets_around(costs):
        within = int((costs <= budget).sum())
        assert trellis.count(budget) == within
        assert trellis.feasible(budget) == (within > 0)


@many
@given(spaces_with_costs(), st.integers(1, 9))
def test_rounded_count_is_a_monotone_lower_bound(case, resolution):
    space, model = case
    trellis = Trellis(space, model, resolution=resolution)
    costs = trellis.costs_of(possible_indices(space, model))
    previous = 0
    for budget in budgets_around(costs):
        within = int((costs <= budget).sum())
        counted = trellis.count(budget)
        assert max(previous, min(within, 1)) <= counted <= within
        previous = counted
    assert previous == len(costs)


def test_rounded_count_is_close():
    space = chain(6, 6)
    trellis = Trellis(space, PositionCosts(np.random.default_rng(1).uniform(0.1, 1, (6, 6))))
    costs = np.sort(trellis.costs_of(all_indices(space)))
    for share in (1e-3, 0.01, 0.1, 0.5, 0.9):
        within = int(share * space.size)
        assert 0.98 * within - 1 <= trellis.count(float(costs[within - 1])) < within


@pytest.mark.parametrize(("decisions", "options"), [(22, 9), (40, 12), (400, 7)])
def test_huge_counts_are_exact(decisions, options):
    values = np.random.default_rng(0).integers(0, 30, (decisions, options))
    trellis = Trellis(chain(decisions, options), PositionCosts(values.astype(float)))
    ways = [1]
    for row in values.tolist():
        longer = [0] * (len(ways) + 29)
        for spent, count in enumerate(ways):
            for cost in row:
                longer[spent + cost] += count
        ways = longer
    least, most = int(values.min(axis=1).sum()), int(values.max(axis=1).sum())
    for budget in (least - 1, least, least + 3, (least + most) // 2, most - 1):
        if budget - least <= 4096:
            assert trellis.count(budget) == sum(ways[:budget + 1])
    assert trellis.count(most) == trellis.count() == options**decisions
    assert trellis.sample_indices(3, least + 3).shape == (3, decisions)


@many
@given(spaces_with_costs(), st.integers(1, 9))
def test_those_within_a_budget_are_listed_whatever_the_resolution(case, resolution):
    space, model = case
    trellis = Trellis(space, model, resolution=resolution)
    rows = possible_indices(space, model)
    costs = trellis.costs_of(rows)
    for budget in [None, *budgets_around(costs)[:12]]:
        within = rows if budget is None else rows[costs <= budget]
        if len(within):
            assert sorted(trellis.indices_within(budget, len(within)).tolist()) == sorted(within.tolist())
            assert trellis.indices_within(budget, len(within) - 1) is None
        else:
            with pytest.raises(InfeasibleError):
                trellis.indices_within(budget, 10)


# Sampling


@many
@given(spaces_with_costs(), st.integers(1, 4096), st.integers(0, 99), st.data())
def test_samples_keep_the_budget(case, resolution, seed, data):
    space, model = case
    trellis = Trellis(space, model, resolution=resolution)
    costs = trellis.costs_of(possible_indices(space, model))
    budget = data.draw(st.sampled_from(budgets_around(costs)))
    if budget < costs.min():
        with pytest.raises(InfeasibleError):
            trellis.sample(1, budget)
    else:
        drawn = trellis.sample_indices(50, budget, seed)
        assert drawn.shape == (50, len(space.decisions))
        assert (trellis.costs_of(drawn) <= budget).all()
        assert len({tuple(row) for row in drawn.tolist()}) <= trellis.count(budget)
        assert all(trellis.cost(one) <= budget for one in trellis.sample(3, budget, seed))


@pytest.mark.parametrize("widths", [(2,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("quantile", [0.0, 0.02, 0.2, 0.7, 1.0])
def test_samples_are_uniform(widths, quantile):
    space = SearchSpace("mixed", TensorShape(2, 8, 8), (
        Fixed("stem", ConvBlock(2)), *chain(2, 5, widths).layers, Fixed("middle", SeparableConv(3)),
        Decision("last", {"id": Identity(), "conv": ConvBlock(4), "mb": MBConv(3)}), Fixed("end", Identity())))
    trellis = Trellis(space, random_costs(space, 3))
    rows = all_indices(space)
    costs = trellis.costs_of(rows)
    budget = float(np.quantile(costs, quantile, method="lower"))
    assert_uniform(trellis.sample_indices(40_000, budget, 5), rows[costs <= budget])


def test_samples_with_rounded_costs_are_uniform_over_what_is_counted():
    space = chain(4, 5, (2, 3))
    trellis = Trellis(space, PositionCosts(np.random.default_rng(4).uniform(0.1, 1, (7, 5))), resolution=20)
    costs = trellis.costs_of(all_indices(space))
    budget = float(np.quantile(costs, 0.2))
    drawn = trellis.sample_indices(50_000, budget, 1)
    support = np.unique(drawn, axis=0)
    assert len(support) == trellis.count(budget) < (costs <= budget).sum()
    assert_uniform(drawn, support)


def test_samples_without_a_budget_are_uniform():
    space = chain(3, 5, (2, 3))
    assert_uniform(Trellis(space).sample_indices(50_000, seed=2), all_indices(space))


def test_tight_budgets_in_a_large_space():
    values = np.random.default_rng(7).uniform(0.1, 2, (22, 9))
    trellis = Trellis(chain(22, 9), PositionCosts(values))
    assert trellis.sample(2, trellis.min_cost()) == [trellis.cheapest()] * 2
    slack = trellis.max_cost() - trellis.min_cost()
    for fraction in (1e-12, 1e-6, 1e-3, 0.03, 0.1):
        budget = trellis.min_cost() + fraction * slack
        assert (trellis.costs_of(trellis.sample_indices(2000, budget)) <= budget).all()
        assert 1 <= trellis.count(budget) < trellis.space.size


def test_large_space_follows_the_marginal_distribution():
    """With one cost per option number the number of dear options among 22 has a known distribution."""
    trellis = Trellis(chain(22, 3), PositionCosts(np.tile([0.0, 1.0, 1.0], (22, 1))))
    dear = (trellis.sample_indices(50_000, 6) > 0).sum(axis=1)
    ways = np.array([math.comb(22, count) * 2**count for count in range(7)])
    assert trellis.count(6) == ways.sum()
    assert stats.chisquare(np.bincount(dear, minlength=7)[2:], (50_000 * ways / ways.sum())[2:], sum_check=False).pvalue > 1e-4


def test_seeds_and_generators():
    trellis = Trellis(chain(5, 4), random_costs(chain(5, 4), 0))
    assert trellis.sample(20, 3, seed=1) == trellis.sample(20, 3, seed=1) != trellis.sample(20, 3, seed=2)
    generator = np.random.default_rng(1)
    assert trellis.sample(20, 3, generator) == trellis.sample(20, 3, seed=1) != trellis.sample(20, 3, generator)
    assert trellis.sample(0, 3) == []
    for wrong in (-1, 1.5, True):
        with pytest.raises(InputError):
            trellis.sample(wrong)
        with pytest.raises(InputError):
            trellis.sample(1, seed=wrong)


# Budgets


@many
@given(spaces_with_costs(), st.floats(1e-6, 10))
def test_advice_of_an_infeasible_budget_works(case, short):
    space, model = case
    trellis = Trellis(space, model)
    budget = trellis.min_cost() - short
    with pytest.raises(InfeasibleError, match=r"'random' fits within .* ms: the fastest is .* ms and the slowest") as caught:
        trellis.sample(1, budget)
    advice = float(re.search(r"at least (\S+) ms\.$", str(caught.value))[1])
    assert trellis.feasible(advice)
    assert len(trellis.sample(1, advice)) == 1
    assert trellis.count(budget) == 0
    for action in (trellis.best, trellis.most_probable):
        with pytest.raises(InfeasibleError):
            action({decision.name: np.full(len(decision.options), 1 / len(decision.options))
                    for decision in space.decisions}, budget)


def test_absurd_budgets():
    trellis = Trellis(chain(3, 3), random_costs(chain(3, 3), 0))
    for budget in (math.inf, 1e300, np.float32(1e9), 10**30, None):
        assert trellis.count(budget) == 27
    for budget in (-math.inf, -1e300, 0, -1):
        assert trellis.count(budget) == 0
    for budget in (math.nan, "3", True, [3.0]):
        with pytest.raises(InputError):
            trellis.count(budget)
    with pytest.raises(InputError):
        Trellis(chain(3, 3), resolution=0)


# Restrictions


@many
@given(spaces_with_costs(), st.data())
def test_restriction_is_a_filter(case, data):
    space, model = case
    allowed = {decision.name: data.draw(st.lists(st.sampled_from(sorted(decision.options)), min_size=1, unique=True))
               for decision in space.decisions if data.draw(st.booleans())}
    masks = {name: np.array([option in allowed[name] for option in decision.options])
             for decision in space.decisions if (name := decision.name) in allowed}
    whole = Trellis(space, model)
    rows = possible_indices(space, model)
    kept = np.array([all(options[index] in allowed.get(name, options) for name, options, index in
                         zip([d.name for d in space.decisions], [tuple(d.options) for d in space.decisions], row, strict=True))
                     for row in rows.tolist()])
    if not kept.any():
        with pytest.raises(InputError, match="leave none"):
            whole.restrict(allowed)
        return
    trellis = whole.restrict(allowed)
    costs = whole.costs_of(rows)
    assert (trellis.costs_of(rows) == costs).all()
    assert trellis.min_cost() == costs[kept].min() == trellis.cost(trellis.cheapest())
    assert trellis.max_cost() == costs[kept].max() == trellis.cost(trellis.dearest())
    assert trellis.count() == kept.sum()
    for budget in budgets_around(costs[kept])[::3]:
        within = int((costs[kept] <= budget).sum())
        assert trellis.count(budget) == whole.restrict(masks).count(budget) == within
        if within:
            drawn = trellis.sample_indices(20, budget)
            assert set(map(tuple, drawn.tolist())) <= set(map(tuple, rows[kept & (costs <= budget)].tolist()))
    assert whole.count() == len(rows)


def test_restrictions_add_up_and_are_checked():
    trellis = Trellis(chain(2, 3))
    narrowed = trellis.restrict({"d0": ["o0", "o1"]}).restrict({"d0": ["o1", "o2"], "d1": "o2"})
    assert [dict(one.choices) for one in narrowed.sample(2)] == [{"d0": "o1", "d1": "o2"}] * 2
    assert narrowed.count() == 1
    for wrong in ({"d9": ["o0"]}, {"d0": ["o9"]}, {"d0": []}, {"d0": [True]}, {"d0": np.zeros(3, bool)}):
        with pytest.raises(InputError):
            trellis.restrict(wrong)
    with pytest.raises(InputError, match="leaves none"):
        narrowed.restrict({"d0": ["o0"]})


def test_resampling_is_uniform_over_the_rest():
    space = chain(4, 4, (2, 3))
    trellis = Trellis(space, random_costs(space, 9))
    rows = all_indices(space)
    costs = trellis.costs_of(rows)
    budget = float(np.median(costs))
    start = trellis.cheapest()
    base = space.indices([start])[0]
    generator = np.random.default_rng(0)
    drawn = space.indices([trellis.resample(start, ["d1", "d3"], budget, generator) for _ in range(1500)])
    assert_uniform(drawn, rows[(rows[:, [0, 2]] == base[[0, 2]]).all(axis=1) & (costs <= budget)])
    assert trellis.resample(start, []) == start
    with pytest.raises(InputError):
        trellis.resample(start, ["d9"])
    with pytest.raises(InfeasibleError, match="with these restrictions"):
        trellis.resample(trellis.dearest(), "d0", trellis.min_cost())


def test_a_restriction_that_can_be_kept_always_is():
    values = np.random.default_rng(3).uniform(0.1, 2, (20, 4))
    trellis = Trellis(chain(20, 4), PositionCosts(values))
    generator = np.random.default_rng(4)
    budget = trellis.min_cost() + 0.2 * (trellis.max_cost() - trellis.min_cost())
    parents = trellis.sample(2, budget, generator)
    for _ in range(50):
        crossing = trellis.restrict({name: {parents[0].choices[name], parents[1].choices[name]} for name in parents[0].choices})
        child = crossing.sample(1, budget, generator)[0]
        assert trellis.cost(child) <= budget
        assert all(child.choices[name] in (parents[0].choices[name], parents[1].choices[name]) for name in child.choices)
        exactly = trellis.restrict({name: [option] for name, option in child.choices.items()})
        assert exactly.sample(1, trellis.cost(child)) == [child]
        parents = [child, trellis.resample(child, generator.choice(list(child.choices), 3, replace=False).tolist(), budget)]


# Optima


@many
@given(spaces_with_costs(), st.integers(0, 2**32 - 1), st.sampled_from(["real", "few", "costs", "last resorts"]), st.data())
def test_best_is_the_optimum(case, seed, kind, data):
    space, model = case
    trellis = Trellis(space, model)
    generator = np.random.default_rng(seed)
    rows = possible_indices(space, model)
    costs = trellis.costs_of(rows)
    scores = {decision.name: generator.normal(size=len(decision.options)) for decision in space.decisions}
    if kind == "few":
        scores = {name: row.round() for name, row in scores.items()}
    if kind == "last resorts":
        scores = {name: np.where(row < 0.3, -np.inf, row) for name, row in scores.items()}
    if kind == "costs":
        totals = np.array([sum(model.edge_cost(edge) for edge in walked_edges(space, row)) for row in rows])
        given_scores = lambda step, edge: model.edge_cost(edge)  # noqa: E731
    else:
        table = np.array([[scores[decision.name][index] for decision, index in zip(space.decisions, row, strict=True)]
                          for row in rows])
        resorts = np.isinf(table).sum(axis=1)
        totals = np.where(np.isinf(table), 0, table).sum(axis=1) - 1e3 * resorts
        given_scores = scores
    budget = data.draw(st.sampled_from([budget for budget in budgets_around(costs) if budget >= costs.min()]))
    found = trellis.best(given_scores, budget)
    row = space.indices([found])[0]
    assert trellis.cost(found) <= budget
    total = totals[(rows == row).all(axis=1)][0]
    assert total == pytest.approx(totals[costs <= budget].max(), rel=1e-11, abs=1e-11)


def test_among_paths_with_equally_many_last_resorts_the_other_scores_decide():
    space = chain(2, 3)
    edges = space.steps[0].edges  # both decisions have the same options at the same shape
    model = WorkloadCosts({edge.workload: cost for edge, cost in zip(edges, (1.0, 0.0, 5.0), strict=True)})
    # Within a budget of 1, one of the two must take its last resort, the second option; 10 beats 3, whatever the dear third
    # options, which nobody can afford, would have brought.
    scores = {"d0": [3.0, -np.inf, -50.0], "d1": [10.0, -np.inf, -20.0]}
    assert dict(Trellis(space, model).best(scores, 1.0).choices) == {"d0": "o1", "d1": "o0"}


def test_best_in_a_restricted_space_of_varying_width():
    space = chain(4, 4, (2, 3))
    whole = Trellis(space, random_costs(space, 2))
    trellis = whole.restrict({"d1": ["o1", "o3"], "d2": ["o0", "o2", "o3"]})
    rows = all_indices(space)
    rows = rows[np.isin(rows[:, 1], [1, 3]) & (rows[:, 2] != 1)]
    costs = whole.costs_of(rows)
    tables = np.random.default_rng(5).normal(size=(4, 4))
    totals = tables[np.arange(4), rows].sum(axis=1)
    for budget in np.quantile(costs, [0, 0.01, 0.1, 0.5, 0.9], method="lower"):
        found = trellis.best({f"d{index}": row for index, row in enumerate(tables)}, budget)
        expected = rows[np.where(costs <= budget, totals, -np.inf).argmax()]
        assert (space.indices([found])[0] == expected).all()


def test_best_in_a_large_space_agrees_with_a_dynamic_programme():
    values = np.random.default_rng(0).integers(1, 60, (22, 9))
    scores = np.random.default_rng(1).normal(size=(22, 9))
    trellis = Trellis(chain(22, 9), PositionCosts(values.astype(float)))
    for budget in (164, 170, 300, 600, 900):
        table = np.full(budget + 1, -np.inf)
        table[0] = 0
        for costs, row in zip(values, scores, strict=True):
            longer = np.full(budget + 1, -np.inf)
            for cost, score in zip(costs, row, strict=True):
                longer[cost:] = np.maximum(longer[cost:], table[:budget + 1 - cost] + score)
            table = longer
        found = trellis.best({f"d{index}": row for index, row in enumerate(scores)}, budget)
        total = sum(scores[index, int(option[1:])] for index, option in enumerate(found.choices.values()))
        assert trellis.cost(found) <= budget
        assert total == pytest.approx(table.max(), abs=1e-10)


def test_best_stays_bounded_where_scores_are_the_costs():
    """A subset-sum problem: no bound helps, so the number of labels is limited and the answer is almost the budget."""
    values = np.random.default_rng(2).uniform(0.1, 2, (14, 9))
    trellis = Trellis(chain(14, 9), PositionCosts(values))
    found = trellis.best({f"d{index}": row for index, row in enumerate(values)}, 15.0)
    assert 15 * (1 - 1e-5) < trellis.cost(found) <= 15


@many
@given(spaces_with_costs(), st.integers(0, 2**32 - 1), st.data())
def test_most_probable_path_within_the_budget(case, seed, data):
    space, model = case
    trellis = Trellis(space, model)
    generator = np.random.default_rng(seed)
    tables = {decision.name: generator.dirichlet(np.full(len(decision.options), 0.5)) for decision in space.decisions}
    rows = possible_indices(space, model)
    costs = trellis.costs_of(rows)
    chances = np.array([math.prod(tables[decision.name][index] for decision, index in zip(space.decisions, row, strict=True))
                        for row in rows])
    budget = data.draw(st.sampled_from([budget for budget in budgets_around(costs) if budget >= costs.min()]))
    row = space.indices([trellis.most_probable(tables, budget)])[0]
    assert chances[(rows == row).all(axis=1)][0] == pytest.approx(chances[costs <= budget].max(), rel=1e-9)
    assert costs[(rows == row).all(axis=1)][0] <= budget
    drawn = np.array([drawn_probability(list(tables.values()), rows, row) for row in rows])
    assert drawn.sum() == pytest.approx(1)
    assert trellis.expected_cost(tables) == pytest.approx(float(drawn @ costs), rel=1e-9, abs=1e-9)


def drawn_probability(tables: list[np.ndarray], rows: np.ndarray, row: np.ndarray) -> float:
    """Of drawing a row decision by decision, each among the options that some row continues with."""
    probability = 1.0
    for column, table in enumerate(tables):
        same_so_far = (rows[:, :column] == row[:column]).all(axis=1)
        probability *= table[row[column]] / table[np.unique(rows[same_so_far, column])].sum()
    return probability


def test_probability_zero_is_a_last_resort():
    trellis = Trellis(chain(2, 3), PositionCosts(np.array([[1, 2, 3], [1, 2, 3]], float)))
    tables = {"d0": [0, 0, 1], "d1": [0, 0.1, 0.9]}
    assert str(trellis.most_probable(tables)) == "o2 o2"
    assert str(trellis.most_probable(tables, 5)) == "o2 o1"
    assert str(trellis.most_probable(tables, 4)) in ("o2 o0", "o0 o2", "o1 o1")
    assert str(trellis.most_probable(tables, 2)) == "o0 o0"


def test_expected_cost_under_a_restriction_is_conditional():
    trellis = Trellis(chain(1, 3), PositionCosts(np.array([1.0, 2.0, 4.0])))
    assert trellis.expected_cost({"d0": [0.5, 0.25, 0.25]}) == 2
    assert trellis.restrict({"d0": ["o1", "o2"]}).expected_cost({"d0": [0.5, 0.25, 0.25]}) == 3
    with pytest.raises(InputError, match="probability 0"):
        trellis.restrict({"d0": ["o1"]}).expected_cost({"d0": [1, 0, 0]})


def test_tables_are_checked():
    trellis = Trellis(chain(2, 2))
    good = [0.5, 0.5]
    for action in (trellis.best, trellis.most_probable, trellis.expected_cost):
        for wrong in ({"d0": good}, {"d0": good, "d1": [1.0]}, {"d0": good, "d1": good, "d2": good},
                      {"d0": good, "d1": [math.nan, 1]}, {"d0": good, "d1": [math.inf, 0]}):
            with pytest.raises(InputError):
                action(wrong)
    for wrong in ([0.5, 0.6], [-0.5, 1.5]):
        with pytest.raises(InputError):
            trellis.most_probable({"d0": good, "d1": wrong})
    with pytest.raises(InputError, match="NaN"):
        trellis.best(lambda step, edge: math.nan)


# Views and copies


@many
@given(spaces_with_costs())
def test_graph_has_the_same_paths(case):
    space, model = case
    trellis = Trellis(space, model)
    graph = trellis.graph()
    ends = [node for node in graph if node[0] == len(space.steps)]
    paths = [path for end in ends for path in networkx.all_simple_edge_paths(graph, (0, space.input_shape), end)]
    assert len(paths) == len(possible_indices(space, model))
    from_graph = sorted(sum(graph.edges[edge]["cost"] for edge in path) + model.constant for path in paths)
    assert from_graph == pytest.approx(sorted(trellis.costs_of(possible_indices(space, model))), rel=1e-9, abs=1e-12)
    assert networkx.is_directed_acyclic_graph(graph)
    assert {graph.nodes[node]["layer"] for node in ends} == {None}


def test_restricted_graph_keeps_what_is_allowed():
    graph = Trellis(chain(2, 4, (2, 3))).restrict({"d0": ["o0", "o2"]}).graph()
    assert {node[1].channels for node in graph if node[0] == 1} == {2}
    assert [key for *_, key in graph.out_edges((0, TensorShape(2, 4, 4)), keys=True)] == ["o0", "o2"]


def test_questions_change_nothing_and_copies_answer_alike():
    space = chain(6, 5, (2, 3))
    trellis = Trellis(space, random_costs(space, 8))
    budgets = [2.0, 2.5, 3.0, 2.0, None, 2.5]
    first = [trellis.sample(5, budget, seed=3) for budget in budgets]
    trellis.restrict({"d0": ["o1"]}).count(2.5)
    fresh = [Trellis(space, random_costs(space, 8)).sample(5, budget, seed=3) for budget in budgets]
    sent = ForkingPickler.loads(ForkingPickler.dumps(trellis))
    assert first == fresh == [trellis.sample(5, budget, seed=3) for budget in budgets]
    assert first == [sent.sample(5, budget, seed=3) for budget in budgets]
    assert first[0] == copy.copy(trellis).sample(5, budgets[0], seed=3)
