"""Evolutionary search under a budget: Algorithm 1 of "Single Path One-Shot NAS with Uniform Sampling" (arXiv 1904.00420).

Departs from it in how the constraint is kept. The paper proposes children blindly and throws away those that break the
budget. Here a child is drawn uniformly from the part of the trellis that its parents allow and the budget admits, so
that no child is thrown away and a tight budget costs nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.trellis import Trellis
from hwnas.search.journal import Journal
from hwnas.search.novelty import all_within, finite_budget, novel
from hwnas.search.result import Candidate, Evaluate, Progress, SearchResult
from hwnas.search.scorer import Scorer


@dataclass(frozen=True)
class EvolutionConfig:
    """Constants of the search; the defaults are those of the paper's released code.

    Attributes:
        population: Candidates scored in each generation.
        generations: Rounds of scoring; `population * generations` evaluations in all.
        parents: How many of the best may have children (the paper's k).
        crossover: Children of two parents in each generation (n).
        mutation: Children of one parent in each generation (m). Random architectures fill the rest.
        mutation_probability: Chance of each decision to be drawn anew.
        seed: The search is a function of it.

    Raises:
        InputError: A value is out of range.
    """

    population: int = 50
    generations: int = 20
    parents: int = 10
    crossover: int = 25
    mutation: int = 25
    mutation_probability: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("population", 1), ("generations", 1), ("parents", 1), ("crossover", 0), ("mutation", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise InputError(f"Evolution needs {name} to be a whole number of at least {low}, but it is {value!r}.")
        if not 0 < self.mutation_probability <= 1:
            raise InputError("Evolution needs mutation_probability to be above 0 and at most 1, but it is "
                             f"{self.mutation_probability!r}.")
        if self.crossover + self.mutation > self.population:
            raise InputError(f"Children must fit in the population, but {self.crossover} of crossover and {self.mutation} of "
                             f"mutation exceed {self.population}: raise population.")

    @property
    def evaluations(self) -> int:
        """How many candidates are scored at most."""
        return self.population * self.generations


def search_evolution(trellis: Trellis, evaluate: Evaluate, max_cost: float | None, config: EvolutionConfig | None = None,
                     journal: Journal | None = None, progress: Progress | None = None) -> SearchResult:
    """Searches the networks within a budget.

    When no more of them exist than the search would score anyway, all are scored and the result is exact.

    Args:
        trellis: The space and its costs.
        evaluate: Scores architectures; higher is better.
        max_cost: The budget in the trellis's unit; None for none.
        config: Constants; None for the paper's.
        journal: Where scores are kept, so that an interrupted search resumes.
        progress: Called after each evaluation.

    Raises:
        InfeasibleError: No network is within the budget.
        VerificationError: The evaluator gave something else than one finite number.
    """
    config = config or EvolutionConfig()
    rng = np.random.default_rng(config.seed)
    everything = all_within(trellis, max_cost, config.evaluations)
    planned = config.evaluations if everything is None else len(everything)
    search = {"method": "evolution", "seed": config.seed, "config": asdict(config), "max_cost": finite_budget(max_cost)}
    score = Scorer(trellis, evaluate, search, planned, journal, progress)
    if everything is not None:
        score(everything, generation=0)
        return score.result(exhaustive=True)

    breed = Breeding(trellis, max_cost, config.mutation_probability, rng)
    seen: set[Architecture] = set()
    top: list[Candidate] = []
    for generation in range(config.generations):
        parents = [candidate.architecture for candidate in top]
        population = novel(partial(breed.crossover, parents), config.crossover, seen)
        population += novel(partial(breed.mutation, parents), config.mutation, seen)
        population += novel(breed.random, config.population - len(population), seen)
        top = sorted(top + score(population, generation), key=lambda candidate: candidate.rank)[:config.parents]
    return score.result()


class Breeding:
    """Draws architectures within a budget: from the whole space, from two parents, or near one."""

    def __init__(self, trellis: Trellis, max_cost: float | None, mutation_probability: float, rng: np.random.Generator) -> None:
        self._trellis = trellis
        self._max_cost = max_cost
        self._mutation_probability = mutation_probability
        self._rng = rng

    def random(self, count: int) -> list[Architecture]:
        """Uniform among all."""
        return self._trellis.sample(count, self._max_cost, self._rng)

    def crossover(self, parents: Sequence[Architecture], count: int) -> list[Architecture]:
        """Each child takes each decision from one of two parents: uniform among the combinations within the budget."""
        return [self._child(*self._pick(parents, 2)) for _ in range(count)] if parents else []

    def mutation(self, parents: Sequence[Architecture], count: int) -> list[Architecture]:
        """Each child is a parent of which some decisions are drawn anew: uniform among those within the budget."""
        return [self._mutant(*self._pick(parents, 1)) for _ in range(count)] if parents else []

    def _pick(self, parents: Sequence[Architecture], count: int) -> list[Architecture]:
        chosen = self._rng.choice(len(parents), size=min(count, len(parents)), replace=False)
        return [parents[index] for index in chosen]

    def _child(self, *parents: Architecture) -> Architecture:
        allowed = {name: {parent.choices[name] for parent in parents} for name in parents[0].choices}
        return self._trellis.restrict(allowed).sample(1, self._max_cost, self._rng)[0]

    def _mutant(self, parent: Architecture) -> Architecture:
        mutated = [name for name in parent.choices if self._rng.random() < self._mutation_probability]
        return self._trellis.resample(parent, mutated, self._max_cost, self._rng)
