"""Search of cells: joint picks against every network of a small space, DARTS's derivation, and gradients by differences."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.costs import MacsCost
from hwnas.ir.trellis import Trellis
from hwnas.spaces.darts import SEARCH_OPERATIONS, build_darts_cpu, derive
from hwnas.supernet import build_supernet
from hwnas.supernet.cell_search import CellArchitectureParameters, build_joint_space, prepare_cell_search
from hwnas.supernet.differentiable import Darts, FBNet, differentiable_task
from tests.supernet.cell_spaces import darts_like, nasnet_like, one_shot_like
from tests.supernet.samples import CONFIG


@dataclass(frozen=True)
class Prices:
    """Costs whose every part counts: unlike MACs, none is 0, and the constant is below."""

    unit: str = "ms"
    constant: float = -3.0
    refused: str = ""

    def edge_cost(self, edge):
        if self.refused and any(part.name.endswith(self.refused) for part in edge.parts):
            return math.inf
        return sum(1 + part.network.macs / 1e4 for part in edge.parts)


@pytest.fixture(scope="module")
def tiny():
    return CellArchitectureParameters(darts_like("max_pool", "conv"), Prices())


def randomise(architecture, seed, scale=1.5):
    with torch.no_grad():
        architecture.logits.copy_(torch.randn(architecture.logits.shape, generator=torch.Generator().manual_seed(seed)) * scale)


def every_network(architecture):
    """All networks of a small space, with the probability and cost of each, multiplied and added up by hand."""
    space, weights = architecture.joint.original, architecture.weights()
    joint = {}
    for kind, edges in architecture.edges.items():
        for state in (2, 3):
            products = {}
            for first, second in itertools.combinations([edge for edge in edges if edge[0] == state], 2):
                for one, other in itertools.product(architecture.operations[1:], repeat=2):
                    rows = [weights[kind][edges.index(edge)][architecture.operations.index(operation)]
                            for edge, operation in ((first, one), (second, other))]
                    products[((one, first[1]), (other, second[1]))] = rows[0] * rows[1]
            joint[kind, state] = {terms: each / sum(products.values()) for terms, each in products.items()}
    trellis = Trellis(space, architecture.costs)
    rows = np.array(list(itertools.product(*(range(len(decision.options)) for decision in space.decisions))))
    for one, cost in zip(space.architectures(rows), trellis.costs_of(rows), strict=True):
        yield one, math.prod(joint[name, state][terms] for name, kind in space.kinds.items()
                             for state, terms in enumerate(kind.genotype(one.choices).nodes, 2)), cost


# One decision for each state


@pytest.mark.parametrize("build", [darts_like, one_shot_like, nasnet_like])
def test_a_joint_space_has_the_same_networks_at_the_same_cost(build):
    space = build()
    joint = build_joint_space(space)
    assert joint.flat.size == space.size
    assert len(joint.flat.decisions) == sum(len(kind.possible_terms) for kind in space.kinds.values())
    trellis = Trellis(joint.flat, MacsCost())
    plain = Trellis(space, MacsCost())
    assert (trellis.min_cost(), trellis.max_cost()) == (plain.min_cost(), plain.max_cost())
    for architecture in trellis.sample(20, seed=0):
        network = space.network(joint.in_original(architecture))
        assert network == joint.flat.network(architecture) and trellis.cost(architecture) == network.macs


# What logits mean


def test_the_expected_cost_is_the_mean_over_all_networks(tiny):
    randomise(tiny, 1)
    found = list(every_network(tiny))
    expected = float(tiny.expected_cost().detach())
    assert sum(probability for _, probability, _ in found) == pytest.approx(1)
    assert expected == pytest.approx(sum(each * cost for _, each, cost in found), rel=1e-5)
    variance = sum(each * (cost - expected) ** 2 for _, each, cost in found)
    assert float(tiny.flow().cost_variance().detach()) == pytest.approx(variance, rel=1e-4)
    assert expected == pytest.approx(Trellis(tiny.space, tiny.costs).expected_cost(tiny.probabilities()), rel=1e-5)


def test_the_expected_cost_is_exact_where_products_are_in_half_precision(tiny):
    randomise(tiny, 2)
    exact = tiny.expected_cost()
    with torch.autocast("cpu", torch.bfloat16):
        cost = tiny.expected_cost()
        (gradient,) = torch.autograd.grad(cost, tiny.logits)
    assert cost == exact and torch.equal(gradient, *torch.autograd.grad(exact, tiny.logits))


def test_the_gradient_of_the_expected_cost_is_that_of_differences(tiny):
    randomise(tiny, 3)
    logits = tiny.logits.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda each: tiny.flow(each).expected_cost(), logits)
    assert not torch.autograd.grad(tiny.flow(logits).expected_cost(), logits)[0].allclose(torch.zeros_like(logits))


def test_the_most_probable_network_within_a_budget_is_the_best_of_all_that_fit(tiny):
    randomise(tiny, 5)
    found = list(every_network(tiny))
    costs = sorted(cost for _, _, cost in found)
    for budget in (*np.quantile(costs, [0.0, 0.05, 0.3, 0.6]), math.inf):
        _, probability, _ = max((each for each in found if each[2] <= budget + 1e-9), key=lambda each: each[1])
        best = tiny.most_probable(None if math.isinf(budget) else budget + 1e-9)
        assert next(each for one, each, _ in found if one == best) == pytest.approx(probability)
    with pytest.raises(InfeasibleError):
        tiny.most_probable(costs[0] - 0.5)


def test_refused_picks_are_never_taken_and_cost_nothing():
    architecture = CellArchitectureParameters(darts_like(), Prices(refused="max_pool"))
    randomise(architecture, 1)
    with torch.no_grad():
        architecture.logits.view(-1, 4)[:, 1] += 5  # however much they are wanted
    assert np.isfinite(float(architecture.expected_cost().detach()))
    genotypes = architecture.joint.original.genotypes(architecture.most_probable())
    assert all(operation != "max_pool" for each in genotypes.values() for node in each.nodes for operation, _ in node)
    assert torch.isfinite(torch.autograd.grad(architecture.expected_cost(), architecture.logits)[0]).all()


@pytest.fixture(scope="module")
def darts():
    return CellArchitectureParameters(build_darts_cpu())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1 << 32))
def test_without_a_budget_the_most_probable_cells_are_those_that_darts_derives(darts, seed):
    assert darts.operations == SEARCH_OPERATIONS
    randomise(darts, seed % (1 << 31))
    assert darts.most_probable() == derive(darts.joint.original, darts.weights())


def test_figures_of_the_uniform_distribution_and_of_skips_everywhere():
    tiny = CellArchitectureParameters(darts_like())
    with torch.no_grad():
        tiny.logits.zero_()
    assert tiny.figures()["entropy"] == pytest.approx(math.log(4))
    for operation, collapse in (("skip", 1.0), ("max_pool", 1.0), ("conv", 0.0)):
        with torch.no_grad():
            tiny.logits.zero_()
            tiny.logits.view(-1, 4)[:, tiny.operations.index(operation)] = 20
        figures = tiny.figures()
        assert figures["collapse"] == collapse and figures["entropy"] < 1e-5


# The search network


def test_the_mixture_weighs_every_operation_and_normalises_pools():
    supernet = build_supernet(darts_like())
    architecture = prepare_cell_search(supernet)
    randomise(architecture, 0)
    weights, mixture = architecture.weights(), architecture.flow().mixture()
    for kind, edges in architecture.edges.items():
        for (state, source), row in zip(edges, weights[kind], strict=True):
            for operation, weight in zip(architecture.operations[1:], row[1:], strict=True):
                how = mixture[kind][state - 2][operation, source]
                assert float(how.weight.detach()) == pytest.approx(weight, rel=1e-5)
                assert how.is_normalised == (operation == "max_pool") and not how.is_frozen
        assert [set(terms) for terms in mixture[kind]] == list(map(set, supernet.space.kinds[kind].possible_terms))
    loss = supernet.mix(torch.randn(4, 3, 16, 16), mixture).square().mean()
    loss.backward()
    assert (architecture.logits.grad != 0).all()


def test_only_the_stem_scales_after_its_batch_norm():
    supernet = build_supernet(darts_like())
    prepare_cell_search(supernet)
    names = {name for name, parameter in supernet.named_parameters()
             if name.split(".")[-2].endswith("bn") and parameter.requires_grad}
    assert names == {"stem.block/bn.weight", "stem.block/bn.bias"}
    assert [name for name in supernet.state_dict() if name.startswith("architecture")] == ["architecture.logits"]


@pytest.mark.parametrize("method", [Darts(learning_rate=0.05), Darts(learning_rate=0.05, unrolled=True),
                                    FBNet(learning_rate=0.05, warmup=0.0)])
def test_a_search_brings_the_expected_cost_to_its_target(method):
    space = darts_like("skip", "conv")
    supernet = build_supernet(space, seed=1)
    trellis = Trellis(space, Prices())
    target = 0.75 * trellis.min_cost() + 0.25 * trellis.max_cost()
    task = differentiable_task(supernet, method, CONFIG, Prices(), target, 20)
    assert task.outer
    elsewhere = set(task.outer.optimizer.param_groups[0]["params"])
    weights = [each for each in supernet.parameters() if each.requires_grad and each not in elsewhere]
    sgd = torch.optim.SGD([{"params": weights, "weight_decay": 0.0}], 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        batches = [(torch.randn(4, 3, 16, 16, generator=generator), torch.arange(4)) for _ in range(2)]
        task.outer.update(step, *batches, sgd)
        supernet.zero_grad(set_to_none=True)
        task.backward(step, *batches[0])
        assert supernet.architecture.logits.grad is None
        sgd.step()
    assert float(supernet.architecture.expected_cost().detach()) == pytest.approx(target, rel=0.02)
    assert trellis.cost(supernet.architecture.most_probable(target)) <= target


# What is refused


@pytest.mark.parametrize("build", [one_shot_like, nasnet_like])
def test_cells_of_other_rules_are_refused(build):
    with pytest.raises(InputError, match="Cells are searched where"):
        CellArchitectureParameters(build())
