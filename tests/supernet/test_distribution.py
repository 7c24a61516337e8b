"""The distribution over the trellis, against the trellis itself, enumeration, finite differences and sampling."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Stem
from hwnas.ir.costs import MacsCost
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.steps import Edge
from hwnas.ir.trellis import Trellis
from hwnas.spaces import SPACES
from hwnas.supernet.distribution import (
    ArchitectureParameters,
    collapse,
    probabilities_from_dict,
    probabilities_to_dict,
)
from hwnas.supernet.layered import Weighed
from tests.supernet.samples import tiny_space


@dataclass(frozen=True)
class PairwiseCost:
    """A cost that depends on option and state, with a constant; some edges cannot be taken."""

    refused: frozenset[str] = frozenset()
    unit: str = "ms"
    constant: float = 0.25

    def edge_cost(self, edge: Edge) -> float:
        if any(part.workload in self.refused for part in edge.parts):
            return math.inf
        return 0.1 + 0.013 * sum(part.input_shape.channels for part in edge.parts) * (1 + edge.option)


def conditional_space() -> SearchSpace:
    """Widths, conditions, and an option that only fits some shapes."""
    blocks = {"k3": MBConv(12, 3, 2), "k5": MBConv(12, 5, 2)}
    return SearchSpace("conditional", TensorShape(3, 16, 16), (
        Fixed("stem", Stem(8)),
        Decision("width", {"narrow": ConvBlock(8, 3), "wide": ConvBlock(12, 3), "point": ConvBlock(12, 1)}),
        Decision("first", blocks | {"skip": Identity()}),
        Decision("second", blocks | {"skip": Identity()}, after={"k3": ("k3", "k5"), "k5": ("k3", "k5")}),
        Fixed("head", Head(4)),
    ))


def random_parameters(space, costs, seed=0, scale=2.0) -> ArchitectureParameters:
    architecture = ArchitectureParameters(space, costs).double()
    with torch.no_grad():
        architecture.logits.copy_(torch.from_numpy(np.random.default_rng(seed).normal(0, scale, len(architecture.logits))))
    return architecture


def weight_of(how: Weighed) -> float:
    return float(torch.as_tensor(how.weight).detach())


SPACES_AND_COSTS = {
    "tiny": (tiny_space, PairwiseCost()),
    "conditional": (conditional_space, PairwiseCost()),
    "ofa-cpu": (SPACES["ofa-cpu"], PairwiseCost()),
    "spos-blocks-channels-cpu": (SPACES["spos-blocks-channels-cpu"], MacsCost()),
    "plain-conv-cpu": (SPACES["plain-conv-cpu"], MacsCost()),
    "fbnet": (SPACES["fbnet"], MacsCost()),
    "darts-cpu": (SPACES["darts-cpu"], MacsCost()),
}


@pytest.mark.parametrize("name", SPACES_AND_COSTS)
def test_expected_cost_is_that_of_the_trellis(name):
    build, costs = SPACES_AND_COSTS[name]
    space = build()
    trellis = Trellis(space, costs)
    for seed in range(3):
        architecture = random_parameters(space, costs, seed)
        expected = trellis.expected_cost(architecture.probabilities())
        assert float(architecture.expected_cost().detach()) == pytest.approx(expected, rel=1e-6)  # costs are single precision


def enumerated(space, architecture, costs):
    """Probability and cost of every network, option by option."""
    probabilities = architecture.probabilities()
    counts = [range(len(decision.options)) for decision in space.decisions]
    for row in itertools.product(*counts):
        choices, state, probability, cost = iter(row), 0, 1.0, costs.constant
        for step in space.steps:
            option = next(choices) if step.is_decision else 0
            allowed = [edge for edge in architecture.edges[space.steps.index(step)] if edge.source == state]
            edge = next((edge for edge in allowed if edge.option == option), None)
            if edge is None:
                break
            if step.is_decision:
                weights = probabilities[step.name]
                probability *= weights[option] / sum(weights[each.option] for each in allowed)
            cost += costs.edge_cost(edge)
            state = edge.target
        else:
            yield probability, cost


@pytest.mark.parametrize("is_refused", [
    lambda edge: False, lambda edge: (edge.source, edge.option) == (0, 1), lambda edge: edge.source == 0,
], ids=["nothing", "an option", "all that a state leads to"])
def test_expected_cost_is_the_mean_over_all_networks(is_refused):
    space = conditional_space()
    refused = frozenset(part.workload for edge in space.steps[2].edges if is_refused(edge) for part in edge.parts)
    costs = PairwiseCost(refused)
    architecture = random_parameters(space, costs)
    networks = list(enumerated(space, architecture, costs))
    assert sum(probability for probability, _ in networks) == pytest.approx(1, abs=1e-12)
    mean = sum(probability * cost for probability, cost in networks)
    assert float(architecture.expected_cost().detach()) == pytest.approx(mean, rel=1e-6)
    variance = sum(probability * (cost - mean) ** 2 for probability, cost in networks)
    assert float(architecture.flow().cost_variance().detach()) == pytest.approx(variance, rel=1e-6)
    assert torch.autograd.gradcheck(lambda logits: architecture.flow(logits).cost_variance(), architecture.logits)
    assert Trellis(space, costs).expected_cost(architecture.probabilities()) == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("name", SPACES_AND_COSTS)
def test_gradient_of_the_expected_cost_against_finite_differences(name):
    build, costs = SPACES_AND_COSTS[name]
    architecture = random_parameters(build(), costs)
    (gradient,) = torch.autograd.grad(architecture.expected_cost(), architecture.logits)
    chosen = np.random.default_rng(1).choice(len(gradient), min(len(gradient), 20), replace=False)
    for index in chosen.tolist():
        ends = []
        for sign in (1, -1):
            moved = architecture.logits.detach().clone()
            moved[index] += sign * 1e-4
            ends.append(float(architecture.flow(moved).expected_cost()))
        assert float(gradient[index]) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4, abs=1e-7 * abs(ends[0]))


def test_edges_that_lead_nowhere_take_no_part():
    """A state whose every way on is refused is not entered, and nothing becomes NaN."""
    space = conditional_space()
    refused = frozenset(edge.workload for edge in space.steps[2].edges if edge.input_shape.channels == 8)
    costs = PairwiseCost(refused)
    architecture = random_parameters(space, costs)
    assert {edge.option for edge in architecture.edges[1]} == {1, 2}  # not the narrow one
    (gradient,) = torch.autograd.grad(architecture.expected_cost(), architecture.logits)
    assert gradient.isfinite().all() and gradient[0] == 0
    assert Trellis(space, costs).expected_cost(architecture.probabilities()) == pytest.approx(
        float(architecture.expected_cost().detach()), rel=1e-6)


def test_a_space_of_which_nothing_is_left_is_refused():
    space = conditional_space()
    costs = PairwiseCost(frozenset(edge.workload for edge in space.steps[1].edges))
    with pytest.raises(InfeasibleError, match="width"):
        ArchitectureParameters(space, costs)


def test_weights_into_a_state_sum_to_one():
    space = SPACES["ofa-cpu"]()
    architecture = random_parameters(space, None)
    for step, weighed in zip(space.steps, architecture.flow().mixture(), strict=True):
        sums = np.zeros(len(step.outputs))
        for edge in step.edges:
            sums[edge.target] += weight_of(weighed[edge.source, edge.option])
        np.testing.assert_allclose(sums, 1)


def test_weights_are_the_chances_of_having_come_that_way():
    """Bayes' rule, on sampled paths."""
    space = conditional_space()
    architecture = random_parameters(space, None, scale=1.0)
    mixture = architecture.flow().mixture()
    paths = np.array([row for row, _ in paths_and_chances(space, architecture)])
    chances = np.array([chance for _, chance in paths_and_chances(space, architecture)])
    for position, step in enumerate(space.steps):
        for edge in step.edges:
            through = chances[paths[:, position] == edge.target].sum()
            along = sum(chance for row, chance in paths_and_chances(space, architecture, edges=True)
                        if row[position] == (edge.source, edge.option))
            assert weight_of(mixture[position][edge.source, edge.option]) == pytest.approx(along / through)


def paths_and_chances(space, architecture, edges=False):
    probabilities = architecture.probabilities()
    found = [([], 0, 1.0)]
    for step in space.steps:
        onward = []
        for row, state, chance in found:
            allowed = [edge for edge in step.edges if edge.source == state]
            weights = probabilities[step.name] if step.is_decision else np.ones(1)
            total = sum(weights[edge.option] for edge in allowed)
            onward += [([*row, (edge.source, edge.option) if edges else edge.target], edge.target,
                        chance * weights[edge.option] / total) for edge in allowed]
        found = onward
    return [(row, chance) for row, _, chance in found]


def test_a_sharp_distribution_stays_finite():
    space = tiny_space()
    architecture = ArchitectureParameters(space, MacsCost())
    with torch.no_grad():
        architecture.logits.copy_(torch.linspace(-500, 500, len(architecture.logits)))
    flow = architecture.flow()
    weights = [weight_of(how) for step in flow.mixture() for how in step.values()]
    assert all(map(math.isfinite, weights))
    (gradient,) = torch.autograd.grad(flow.expected_cost(), architecture.logits)
    assert gradient.isfinite().all()


def test_only_the_logits_are_state():
    architecture = ArchitectureParameters(tiny_space(), MacsCost())
    assert list(architecture.state_dict()) == ["logits"]
    assert [name for name, _ in architecture.named_parameters()] == ["logits"]


def test_figures():
    space = tiny_space()
    architecture = ArchitectureParameters(space)
    sizes = [len(decision.options) for decision in space.decisions]
    assert architecture.figures()["entropy"] == pytest.approx(np.mean(np.log(sizes)))
    with torch.no_grad():
        architecture.logits[architecture.pieces["depth"].start] = 5.0  # skip
    assert architecture.figures()["collapse"] == 1.0
    assert collapse(space, architecture.probabilities()) == 1.0


def test_collapse_counts_decisions_that_offer_something_without_parameters():
    space = conditional_space()
    probabilities = {"width": [1, 0, 0], "first": [0, 0, 1], "second": [0.6, 0.1, 0.3]}
    assert collapse(space, {name: np.array(row) for name, row in probabilities.items()}) == 0.5
    no_skips = SearchSpace("plain", TensorShape(3, 16, 16), (Decision("only", {"a": ConvBlock(8), "b": ConvBlock(8, 1)}),
                                                            Fixed("head", Head(4))))
    assert collapse(no_skips, {"only": np.array([0.5, 0.5])}) == 0.0


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_most_probable_network_within_the_budget_by_enumeration(share):
    space, costs = conditional_space(), PairwiseCost()
    trellis = Trellis(space, costs)
    probabilities = random_parameters(space, costs, 5).probabilities()
    budget = trellis.min_cost() + share * (trellis.max_cost() - trellis.min_cost())
    found = Trellis(space, costs).most_probable(probabilities, budget)

    def chance(architecture):
        return math.prod(probabilities[decision.name][list(decision.options).index(architecture.choices[decision.name])]
                         for decision in space.decisions)

    networks = space.architectures(np.unique(trellis.sample_indices(3000, budget, seed=1), axis=0))
    assert trellis.cost(found) <= budget
    assert chance(found) == pytest.approx(max(map(chance, networks)))
    with pytest.raises(InfeasibleError):
        Trellis(space, costs).most_probable(probabilities, trellis.min_cost() * 0.9)


def test_probabilities_travel_as_json():
    space = tiny_space()
    probabilities = random_parameters(space, None).probabilities()
    document = probabilities_to_dict(space, probabilities)
    assert list(document["width"]) == ["narrow", "wide", "plain"]
    for name, row in probabilities_from_dict(space, document).items():
        np.testing.assert_allclose(row, probabilities[name])


@pytest.mark.parametrize(("change", "message"), [
    (lambda document: document.pop("width"), "the decisions of space"),
    (lambda document: document["width"].pop("wide"), "each option of decision 'width'"),
    (lambda document: document["width"].update(wide=2.0), "0 to 1 and sum to 1"),
    (lambda document: document["width"].update(wide="much"), "0 to 1 and sum to 1"),
    (lambda document: document["width"].update(wide=float("nan")), "0 to 1 and sum to 1"),
])
def test_documents_of_something_else_are_refused(change, message):
    space = tiny_space()
    document = probabilities_to_dict(space, ArchitectureParameters(space).probabilities())
    change(document)
    with pytest.raises(InputError, match=message):
        probabilities_from_dict(space, document)
