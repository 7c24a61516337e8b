import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import InfeasibleError, InputError, VerificationError
from hwnas.ir.architecture import load_architecture
from hwnas.ir.trellis import Trellis
from hwnas.search.evolution import Breeding, EvolutionConfig, search_evolution
from hwnas.search.journal import Journal
from hwnas.search.novelty import all_within
from hwnas.search.random import search_random
from hwnas.search.result import save_result
from tests.search.problems import AdditiveScore, brute_force, make_problem, make_space

SMALL = EvolutionConfig(population=20, generations=10, parents=5, crossover=8, mutation=8)


def outcome(result):
    return result.method, result.best, result.history, result.feasible_range, result.exhaustive


@pytest.mark.parametrize("tightness", [0.0, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_set_that_fits_in_the_evaluations_is_searched_whole(tightness, seed):
    trellis, score, budget = make_problem(4, 3, seed, tightness)
    best, count = brute_force(trellis, score, budget)
    for result in (search_evolution(trellis, score, budget, SMALL), search_random(trellis, score, budget, 81)):
        assert result.exhaustive and result.evaluations == count
        assert result.best.score == pytest.approx(best)
        assert all(candidate.cost <= budget for candidate in result.history)


def test_everything_is_every_network_that_fits_in_a_large_space_too():
    """Where counting rounds, so that it leaves some out."""
    trellis, _, _ = make_problem(8, 4)
    costs = np.sort(trellis.costs_of(np.indices((4,) * 8).reshape(8, -1).T))
    budget = float(costs[899])
    assert len(set(all_within(trellis, budget, 2000))) == (costs <= budget).sum() > trellis.count(budget)
    assert all_within(trellis, budget, 899) is None


@pytest.mark.parametrize("tightness", [0.35, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_evolution_finds_the_optimum_from_a_fraction_of_the_space(tightness, seed):
    trellis, score, budget = make_problem(6, 4, seed, tightness)
    best, count = brute_force(trellis, score, budget)
    result = search_evolution(trellis, score, budget, SMALL)
    assert not result.exhaustive and result.evaluations == 200 < count
    assert result.best.score == pytest.approx(best)


def test_evolution_beats_random_search():
    """Twelve decisions of five options, 400 evaluations each, four problems."""
    gains = []
    for seed in range(4):
        trellis, score, budget = make_problem(12, 5, seed)
        config = EvolutionConfig(population=40, generations=10, crossover=20, mutation=20, seed=seed)
        evolved = search_evolution(trellis, score, budget, config)
        drawn = search_random(trellis, score, budget, 400, seed)
        assert evolved.evaluations == drawn.evaluations == 400
        gains.append(evolved.best.score - drawn.best.score)
    assert np.mean(gains) > 2 and min(gains) > 0, gains


@settings(max_examples=40, deadline=None)
@given(decisions=st.integers(1, 6), options=st.integers(1, 4), tightness=st.floats(0, 1), problem=st.integers(0, 99),
       seed=st.integers(0, 99), method=st.sampled_from(["evolution", "random"]))
def test_a_search_keeps_the_budget_repeats_nothing_and_is_a_function_of_its_seed(decisions, options, tightness, problem, seed,
                                                                                 method):
    trellis, score, budget = make_problem(decisions, options, problem, tightness)
    config = EvolutionConfig(population=8, generations=4, parents=3, crossover=3, mutation=3, seed=seed)

    def search():
        if method == "evolution":
            return search_evolution(trellis, score, budget, config)
        return search_random(trellis, score, budget, 32, seed)

    result = search()
    architectures = [candidate.architecture for candidate in result.history]
    assert len(set(architectures)) == len(architectures) <= 32
    for candidate in result.history:
        assert candidate.cost == trellis.cost(candidate.architecture) <= budget
        assert candidate.score == score([candidate.architecture])[0]
    assert result.best.score == max(candidate.score for candidate in result.history)
    assert result.feasible_range == (trellis.min_cost(), trellis.max_cost())
    assert outcome(search()) == outcome(result)


def test_another_seed_searches_elsewhere():
    trellis, score, budget = make_problem(8, 4)
    configs = [EvolutionConfig(10, 3, 3, 4, 4, seed=seed) for seed in range(3)]
    histories = {search_evolution(trellis, score, budget, config).history for config in configs}
    assert len(histories) == 3


def test_a_search_needs_neither_costs_nor_a_budget():
    space = make_space(5, 4)
    score = AdditiveScore(space)
    optimum = score.terms[:5, :4].max(axis=1).sum()
    for max_cost in (None, float("inf")):
        assert search_evolution(Trellis(space), score, max_cost, SMALL).best.score == pytest.approx(optimum)
    assert search_random(Trellis(space), score, None, 50).evaluations == 50


def test_one_feasible_path_is_found():
    trellis, score, _ = make_problem(10, 4)
    for result in (search_evolution(trellis, score, trellis.min_cost()), search_random(trellis, score, trellis.min_cost(), 10)):
        assert result.exhaustive and result.evaluations == 1
        assert result.best.cost == trellis.min_cost()


@pytest.mark.timeout(60)
def test_an_infeasible_budget_is_an_answer(tmp_path):
    """And no journal is begun; a rejection loop would never end."""
    trellis, score, _ = make_problem(20, 4)
    journal = Journal(tmp_path / "history.jsonl")
    for search in (lambda: search_evolution(trellis, score, trellis.min_cost() * 0.99, journal=journal),
                   lambda: search_random(trellis, score, trellis.min_cost() * 0.99, 1000, journal=journal)):
        with pytest.raises(InfeasibleError, match="the fastest is"):
            search()
    assert not list(tmp_path.iterdir())


def test_random_search_is_uniform():
    trellis, score, budget = make_problem(5, 3, tightness=0.3)
    count = trellis.count(budget)
    draws = np.zeros(count)
    position = {architecture: index for index, architecture in
                enumerate(all_within(trellis, budget, count))}
    for seed in range(400):
        for candidate in search_random(trellis, score, budget, 5, seed).history:
            draws[position[candidate.architecture]] += 1
    expected = 400 * 5 / count
    assert ((draws - expected) ** 2 / expected).sum() < count + 5 * np.sqrt(2 * count)  # chi-squared, five sigma


def test_children_of_two_parents_have_their_options():
    trellis, _, budget = make_problem(8, 4)
    rng = np.random.default_rng(0)
    breed = Breeding(trellis, budget, 0.1, rng)
    parents = trellis.sample(2, budget, rng)
    children = breed.crossover(parents, 200)
    for child in children:
        assert all(option in {parent.choices[name] for parent in parents} for name, option in child.choices.items())
        assert trellis.cost(child) <= budget
    assert len(set(children)) > 20


def test_mutation_changes_as_many_decisions_as_it_should():
    trellis, _, _ = make_problem(20, 4)
    breed = Breeding(trellis, None, 0.1, np.random.default_rng(0))
    (parent,) = trellis.sample(1, None, 5)
    changed = [sum(child.choices[name] != option for name, option in parent.choices.items())
               for child in breed.mutation([parent], 1000)]
    assert np.mean(changed) == pytest.approx(20 * 0.1 * 3 / 4, abs=0.2)  # a fresh draw is the old option once in four


def test_progress_is_reported():
    trellis, score, budget = make_problem(8, 4)
    seen = []
    result = search_evolution(trellis, score, budget, SMALL, progress=lambda *arguments: seen.append(arguments))
    assert [done for done, _, _ in seen] == list(range(1, 201))
    assert {total for _, total, _ in seen} == {200} and seen[-1][2] == result.best


@pytest.mark.parametrize("scores", [[float("nan")], [float("inf")], [float("-inf")], [], [1.0, 2.0]])
def test_a_score_that_is_none_is_refused(scores):
    trellis, _, budget = make_problem(8, 4)
    with pytest.raises(VerificationError, match=r"one finite score.*o[0-3] o[0-3]"):
        search_evolution(trellis, lambda architectures: scores, budget)


@pytest.mark.parametrize("change", [{"population": 0}, {"generations": 0}, {"parents": 0}, {"crossover": -1}, {"mutation": 26},
                                    {"mutation_probability": 0.0}, {"mutation_probability": 1.1}, {"seed": -1},
                                    {"population": 2.5}, {"mutation_probability": float("nan")}])
def test_constants_out_of_range_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        EvolutionConfig(**change)


def test_a_random_search_of_nothing_is_refused():
    trellis, score, budget = make_problem(3, 3)
    with pytest.raises(InputError, match="samples"):
        search_random(trellis, score, budget, 0)


def test_the_result_is_saved(tmp_path):
    trellis, score, budget = make_problem(8, 4)
    result = search_evolution(trellis, score, budget, SMALL)
    path = save_result(result, tmp_path / "out", {"max_latency_ms": budget})
    document = json.loads(path.read_text())
    assert document["method"] == "evolution" and document["constraints"] == {"max_latency_ms": budget}
    assert document["feasible_range_ms"] == [trellis.min_cost(), trellis.max_cost()]
    assert document["evaluations"] == 200 and document["seconds"] == result.seconds > 0
    assert document["best"]["score"] == result.best.score and document["best"]["cost"] == result.best.cost
    assert load_architecture(tmp_path / "out" / "best.json") == result.best.architecture
    assert document["best"]["choices"] == result.best.architecture.choices
