"""Ways to weigh latency, against finite differences of the losses that they state, and constrained minima known otherwise."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, special

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Stem
from hwnas.ir.costs import MacsCost
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.supernet.distribution import ArchitectureParameters
from hwnas.supernet.latency_loss import Additive, Moment, Multiplicative, Target, move_towards
from tests.supernet.samples import tiny_space
from tests.supernet.test_distribution import PairwiseCost, conditional_space

TARGET = 2.0


def architecture_at(seed: int = 0) -> ArchitectureParameters:
    architecture = ArchitectureParameters(conditional_space(), PairwiseCost()).double()
    with torch.no_grad():
        architecture.logits.copy_(torch.from_numpy(np.random.default_rng(seed).normal(0, 1, len(architecture.logits))))
    return architecture


def accuracy_loss(logits: torch.Tensor) -> torch.Tensor:
    """Stands in for a cross-entropy."""
    return 1.5 + (logits * torch.linspace(-1, 1, len(logits), dtype=logits.dtype)).tanh().sum() / 10


def moment(architecture: ArchitectureParameters, target: float = TARGET) -> Moment:
    logits = architecture.logits
    loss, cost = accuracy_loss(logits), architecture.expected_cost()
    return Moment(loss.detach(), cost.detach(), *torch.autograd.grad(loss, logits), *torch.autograd.grad(cost, logits), target)


STATED = {
    Multiplicative(): lambda loss, cost: loss * 0.2 * math.log(1000 * cost) ** 0.6,
    Multiplicative(1.0, 2.0, 10.0): lambda loss, cost: loss * math.log(10 * cost) ** 2,
    Additive(): lambda loss, cost: loss + 0.2 * cost / TARGET,
    Additive(3.0): lambda loss, cost: loss + 3 * cost / TARGET,
}


@pytest.mark.parametrize("latency", STATED, ids=repr)
def test_gradient_of_the_stated_loss_against_finite_differences(latency):
    architecture = architecture_at()
    gradient = latency.gradient(moment(architecture))
    for index in range(len(gradient)):
        values = []
        for sign in (1, -1):
            logits = architecture.logits.detach().clone()
            logits[index] += sign * 1e-5
            values.append(STATED[latency](float(accuracy_loss(logits)), float(architecture.flow(logits).expected_cost())))
        assert float(gradient[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_target_leaves_out_what_changes_the_cost():
    architecture = architecture_at()
    of_moment = moment(architecture)
    gradient = Target().gradient(of_moment)
    along = gradient @ of_moment.cost_gradient
    assert abs(float(along)) < 1e-12
    rest = of_moment.cross_entropy_gradient - gradient  # nothing else is left out
    cosine = rest @ of_moment.cost_gradient / rest.norm() / of_moment.cost_gradient.norm()
    assert abs(float(cosine)) == pytest.approx(1)


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_target_is_the_same_in_any_unit_and_single_precision(unit):
    of_moment = moment(architecture_at())
    scaled = Moment(of_moment.cross_entropy, of_moment.cost, of_moment.cross_entropy_gradient.float(),
                    (of_moment.cost_gradient * unit).float(), TARGET * unit)
    torch.testing.assert_close(Target().gradient(scaled), Target().gradient(of_moment).float(), rtol=1e-4, atol=1e-6)


def test_a_cost_that_nothing_changes_leaves_the_gradient():
    of_moment = moment(architecture_at())
    flat = Moment(of_moment.cross_entropy, of_moment.cost, of_moment.cross_entropy_gradient,
                  torch.zeros_like(of_moment.cost_gradient), TARGET)
    torch.testing.assert_close(Target().gradient(flat), of_moment.cross_entropy_gradient)


def test_target_finds_the_constrained_minimum():
    """Mean loss plus negative entropy under a mean cost: the minimum is a Boltzmann distribution, its multiplier a root."""
    block = {"k3": MBConv(8, 3, 2), "k5": MBConv(8, 5, 2), "conv": ConvBlock(8), "skip": Identity()}
    space = SearchSpace("plain", TensorShape(3, 8, 8), (Fixed("stem", Stem(8)), Decision("one", block), Decision("two", block),
                                                       Decision("three", block), Fixed("head", Head(4))))
    architecture = ArchitectureParameters(space, PairwiseCost()).double()
    logits, pieces = architecture.logits, list(architecture.pieces.values())
    losses = torch.from_numpy(np.random.default_rng(2).normal(0, 1, len(logits)))
    prices = np.array([PairwiseCost().edge_cost(edge) for step in space.steps if step.is_decision for edge in step.edges])
    fixed = PairwiseCost().constant + sum(PairwiseCost().edge_cost(step.edges[0]) for step in space.steps if not step.is_decision)

    def boltzmann(multiplier: float) -> np.ndarray:
        return np.concatenate([special.softmax(-(losses.numpy() + multiplier * prices)[piece]) for piece in pieces])

    goal = 1.8
    expected = boltzmann(optimize.brentq(lambda multiplier: boltzmann(multiplier) @ prices + fixed - goal, -200, 200))
    for _ in range(300):
        probabilities = torch.cat([logits[piece].softmax(0) for piece in pieces])
        loss = probabilities @ (losses + probabilities.log())
        cost = architecture.expected_cost()
        gradient = Target().gradient(Moment(loss, cost, *torch.autograd.grad(loss, logits), *torch.autograd.grad(cost, logits),
                                            goal))
        with torch.no_grad():
            logits -= gradient
        cost = architecture.expected_cost()
        move_towards(goal, logits, cost, *torch.autograd.grad(cost, logits), furthest=0.5)
    np.testing.assert_allclose(np.concatenate(list(architecture.probabilities().values())), expected, atol=1e-5)


@pytest.mark.parametrize("goal", [1.4, 1.7, 2.1])
def test_newton_steps_reach_the_goal_from_either_side(goal):
    architecture = architecture_at()
    for _ in range(60):
        cost = architecture.expected_cost()
        move_towards(goal, architecture.logits, cost, *torch.autograd.grad(cost, architecture.logits), furthest=0.3)
    assert float(architecture.expected_cost().detach()) == pytest.approx(goal, rel=1e-4)


def test_no_logit_moves_further_than_allowed():
    architecture = architecture_at()
    before = architecture.logits.detach().clone()
    cost = architecture.expected_cost()
    move_towards(1e9, architecture.logits, cost, *torch.autograd.grad(cost, architecture.logits), furthest=0.3)
    assert float((architecture.logits.detach() - before).abs().max()) == pytest.approx(0.3)


def test_the_goal_moves_evenly_to_the_target():
    assert [Target(0.5).goal(10.0, 4.0, progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [10.0, 7.0, 4.0, 4.0]
    assert Target(0.0).goal(10.0, 4.0, 0.01) == 4.0


def test_the_deviation_falls_evenly_once_the_target_is_reached():
    assert [Target(0.5).most_deviation(1.1, 2.0, progress) for progress in (0.0, 0.5, 0.75, 1.0)] == pytest.approx(
        [math.inf, math.inf, 0.6, 0.1])
    assert Target(0.5).most_deviation(0.05, 2.0, 1.0) == pytest.approx(0.1)  # never below 5 % of the target


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Multiplicative(alpha=0.0), "alpha must be above 0"),
    (lambda: Multiplicative(beta=-1.0), "beta must be at least 0"),
    (lambda: Multiplicative(per_unit=math.inf), "per_unit must be above 0 and finite"),
    (lambda: Additive(math.nan), "weight must be at least 0"),
    (lambda: Target(1.0), "approach must be at least 0 and below 1"),
])
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_targets_out_of_reach_are_refused():
    trellis = Trellis(tiny_space(), MacsCost())
    for latency in (Multiplicative(), Additive(), Target()):
        with pytest.raises(InfeasibleError, match="cheapest"):
            latency.check(trellis, trellis.min_cost() * 0.9)
        with pytest.raises(InputError, match="above 0 and finite"):
            latency.check(trellis, math.nan)
        latency.check(trellis, trellis.min_cost() * 1.1)
    with pytest.raises(InputError, match="between"):
        Target().check(trellis, trellis.max_cost())
    Additive().check(trellis, trellis.max_cost() * 2)


def test_a_latency_without_positive_logarithm_is_refused():
    trellis = Trellis(tiny_space(), PairwiseCost())
    with pytest.raises(InputError, match="raise per_unit"):
        Multiplicative(per_unit=0.5).check(trellis, 2.0)
