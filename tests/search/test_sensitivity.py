"""The search of a front against every network scored, on scores that add up and on scores that do not quite."""

import itertools
import math

import numpy as np
import pytest

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Stem
from hwnas.ir.costs import MacsCost
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.search.journal import Journal
from hwnas.search.result import Candidate
from hwnas.search.sensitivity import FrontConfig, fit_effects, pareto_front, search_front

SPACE = SearchSpace("small", (3, 16, 16), (Fixed("stem", Stem(8)), *(
    Decision(f"d{index}", {"small": ConvBlock(8, 1), "middle": ConvBlock(8, 3), "large": MBConv(8, 3, 6)})
    for index in range(5)), Fixed("head", Head(5))))
TRELLIS = Trellis(SPACE, MacsCost())


def every(space=SPACE):
    names = [decision.name for decision in space.decisions]
    return [space.architecture(dict(zip(names, options, strict=True)))
            for options in itertools.product(*(decision.options for decision in space.decisions))]


def references(space=SPACE):
    return [space.architecture({decision.name: list(decision.options)[position] for decision in space.decisions})
            for position in (0, -1)]


def scorer(seed, curvature=0.0):
    """A penalty for each choice, and a product of neighbours' penalties beside the sum."""
    penalties = np.random.default_rng(seed).uniform(0, 1, (len(SPACE.decisions), 3)) * [1.5, 1, 0.3]
    asked = []

    def score(architectures):
        asked.extend(architectures)
        rows = SPACE.indices(architectures)
        each = np.take_along_axis(penalties[None], rows[:, :, None], 2)[:, :, 0]
        return (-each.sum(1) - curvature * (each[:, 1:] * each[:, :-1]).sum(1)).tolist()
    return score, asked


def candidates(score):
    found = every()
    return [Candidate(one, value, cost, 0) for one, value, cost in zip(
        found, score(found), TRELLIS.costs_of(SPACE.indices(found)).tolist(), strict=True)]


def best_within(front, budget):
    return max(one.score for one in front if one.cost <= budget)


@pytest.mark.parametrize("seed", range(5))
def test_where_effects_add_up_every_budget_s_best_is_found(seed):
    score, asked = scorer(seed)
    truth = pareto_front(candidates(score))
    asked.clear()
    result = search_front(TRELLIS, score, references(), FrontConfig(budgets=25))
    assert len(asked) == len(set(asked)) == result.evaluations < 80 < SPACE.size
    for budget in np.linspace(TRELLIS.min_cost(), TRELLIS.max_cost(), 25):
        assert best_within(result.history, budget) == pytest.approx(best_within(truth, budget))


@pytest.mark.parametrize("seed", range(5))
def test_where_they_do_not_quite_the_front_is_near(seed):
    score, _ = scorer(seed, curvature=0.3)
    truth = candidates(score)
    result = search_front(TRELLIS, score, references(), FrontConfig(budgets=15, rounds=4))
    reach = max(one.score for one in truth) - min(one.score for one in truth)
    losses = [best_within(truth, budget) - best_within(result.history, budget)
              for budget in np.linspace(TRELLIS.min_cost(), TRELLIS.max_cost(), 15)]
    assert max(losses) < 0.05 * reach


def test_a_small_space_is_scored_whole():
    space = SearchSpace("tiny", (3, 16, 16), (*(Decision(f"d{index}", {"a": ConvBlock(8, 1), "b": ConvBlock(8, 3)})
                                                for index in range(2)), Fixed("head", Head(5))))
    trellis = Trellis(space, MacsCost())
    result = search_front(trellis, lambda some: [float(trellis.cost(one) % 97) for one in some], references(space))
    assert result.exhaustive and result.evaluations == 4


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    found = [Candidate(one, float(score), float(cost), 0)
             for one, score, cost in zip(every(), rng.integers(0, 30, 243), rng.integers(0, 30, 243), strict=True)]
    front = pareto_front(found)
    assert len({(one.score, one.cost) for one in front}) == len(front)
    for one in found:
        beaten = any(other.score >= one.score and other.cost <= one.cost and (other.score, other.cost) != (one.score, one.cost)
                     for other in found)
        assert beaten == ((one.score, one.cost) not in {(other.score, other.cost) for other in front})


def test_effects_are_the_differences_that_made_the_scores():
    score, _ = scorer(3)
    effects = fit_effects(TRELLIS, candidates(score))
    penalties = np.random.default_rng(3).uniform(0, 1, (5, 3)) * [1.5, 1, 0.3]
    for row, decision in zip(penalties, SPACE.decisions, strict=True):
        found = effects[decision.name]
        np.testing.assert_allclose(found - found[0], row[0] - row, atol=0.01)


def test_options_that_may_not_follow_are_not_proposed():
    decision = Decision("b", {"conv": ConvBlock(8, 3), "skip": Identity()}, after={"conv": ["conv"]})
    space = SearchSpace("depth", (3, 16, 16), (
        Fixed("stem", Stem(8)), Decision("a", {"conv": ConvBlock(8, 3), "skip": Identity()}), decision, Fixed("head", Head(5))))
    result = search_front(Trellis(space, MacsCost()), lambda some: [float(one.choices["a"] == "conv") for one in some],
                          [space.architecture({"a": "conv", "b": "conv"})])
    assert {str(one.architecture) for one in result.history} <= {"conv conv", "conv skip", "skip skip"}


def test_options_that_a_device_refuses_are_not_proposed():
    class Refusing(MacsCost):
        def edge_cost(self, edge):
            return math.inf if edge.block.kind == "mbconv" else super().edge_cost(edge)

    score, asked = scorer(0)
    result = search_front(Trellis(SPACE, Refusing()), score, references()[:1])
    assert result.evaluations == len(asked) > 6
    assert all("large" not in one.choices.values() for one in asked)


def test_an_interrupted_search_goes_on(tmp_path):
    score, asked = scorer(1)
    whole = search_front(TRELLIS, score, references(), journal=Journal(tmp_path / "history.jsonl"))
    count = len(asked)
    again = search_front(TRELLIS, score, references(), journal=Journal(tmp_path / "history.jsonl"))
    assert len(asked) == count and again.history == whole.history


def test_mistakes():
    score, _ = scorer(0)
    with pytest.raises(InputError, match="at least one architecture"):
        search_front(TRELLIS, score, [])
    with pytest.raises(InputError, match="must be of the space"):
        search_front(TRELLIS, score, references(SearchSpace("other", (3, 8, 8), SPACE.layers)))
    for name in ("budgets", "rounds"):
        with pytest.raises(InputError, match=name):
            FrontConfig(**{name: 0})
