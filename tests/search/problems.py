"""Search problems whose answer is known: costs and scores that are sums over decisions."""

import zlib
from dataclasses import dataclass
from itertools import product

import numpy as np

from hwnas.ir.blocks import ConvBlock
from hwnas.ir.space import Decision, SearchSpace
from hwnas.ir.trellis import Trellis


@dataclass(frozen=True)
class HashedCost:
    """An arbitrary cost between 0.1 and 1.1 for every workload, the same in every process."""

    seed: int = 0
    unit = "ms"
    constant = 0.25

    def edge_cost(self, edge):
        return 0.1 + np.random.default_rng([self.seed, zlib.crc32(edge.workload.encode())]).random()


def make_space(decisions, options):
    """Decisions that differ in width, so that each option's cost depends on the decision and on the one before it."""
    return SearchSpace("problem", (2, 5, 5), tuple(
        Decision(f"d{index}", {f"o{kernel}": ConvBlock(2 + index, 2 * kernel + 1) for kernel in range(options)})
        for index in range(decisions)))


@dataclass(frozen=True)
class AdditiveScore:
    """A sum of one random term for every decision and option."""

    space: SearchSpace
    seed: int = 0

    @property
    def terms(self):
        return np.random.default_rng(self.seed).standard_normal((len(self.space.decisions), 16))

    def __call__(self, architectures):
        rows = self.space.indices(architectures)
        return self.terms[np.arange(rows.shape[1]), rows].sum(axis=1).tolist()


def brute_force(trellis, score, max_cost):
    """Best score and number of networks within the budget, from all networks of the space."""
    rows = np.array(list(product(*(range(len(decision.options)) for decision in trellis.space.decisions))))
    within = trellis.costs_of(rows) <= max_cost
    scores = score.terms[np.arange(rows.shape[1]), rows[within]].sum(axis=1)
    return scores.max(), int(within.sum())


def make_problem(decisions, options, seed=0, tightness=0.4):
    """A trellis, a score, and a budget that lies this far from the cheapest to the dearest network."""
    space = make_space(decisions, options)
    trellis = Trellis(space, HashedCost(seed))
    budget = trellis.min_cost() + tightness * (trellis.max_cost() - trellis.min_cost())
    return trellis, AdditiveScore(space, seed), budget
