"""How latency joins the cross-entropy in the loss of the architecture parameters.

`Multiplicative` is FBNet's (Wu et al., arXiv 1812.03443, eq. 2), `Additive` ProxylessNAS's (Cai et al., arXiv 1812.00332,
sec. 3.3.1). Both trade accuracy for latency at a rate that is given beforehand; which latency that ends at is found by trying.
`Target` is given the latency: it minimises the cross-entropy among the distributions that have it.

Each needs the cross-entropy, the expected cost and the gradients of both only. Latency is any cost here, in any unit.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.trellis import Trellis


@dataclass(frozen=True)
class Moment:
    """What the architecture's gradient is made of.

    Attributes:
        cross_entropy: On images kept for the architecture; a scalar.
        cost: Expected cost; a scalar.
        cross_entropy_gradient: With respect to the logits, (options,).
        cost_gradient: Likewise.
        target: The cost that is wanted.
    """

    cross_entropy: Tensor
    cost: Tensor
    cross_entropy_gradient: Tensor
    cost_gradient: Tensor
    target: float


@dataclass(frozen=True)
class LatencyLoss:
    """A way to weigh latency against accuracy."""

    def gradient(self, moment: Moment) -> Tensor:
        """Of the joint loss with respect to the logits, (options,)."""
        raise NotImplementedError

    def check(self, trellis: Trellis, target: float) -> None:
        """Refuses what cannot work.

        Raises:
            InputError: The target is not a cost, or this loss does not fit the costs.
            InfeasibleError: No network is as cheap as the target.
        """
        if not 0 < target < math.inf:
            raise InputError(f"A target must be above 0 and finite, but is {target}.")
        if target < trellis.min_cost():
            raise InfeasibleError(f"A target must be {trellis.min_cost():.4g} {trellis.unit} or more, the cost of the cheapest "
                                  f"network of space {trellis.space.name!r}, but is {target:g}: raise it.")


class _Smooth(LatencyLoss):
    """A loss that is a function of cross-entropy and expected cost."""

    def loss(self, cross_entropy: Tensor, cost: Tensor, target: float) -> Tensor:
        raise NotImplementedError

    def gradient(self, moment: Moment) -> Tensor:
        cross_entropy, cost = (each.detach().requires_grad_() for each in (moment.cross_entropy, moment.cost))
        with torch.enable_grad():
            by_cross_entropy, by_cost = torch.autograd.grad(self.loss(cross_entropy, cost, moment.target), (cross_entropy, cost))
        return by_cross_entropy * moment.cross_entropy_gradient + by_cost * moment.cost_gradient


@dataclass(frozen=True)
class Multiplicative(_Smooth):
    """CE * alpha * log(LAT)^beta.

    The loss depends on the unit of LAT: a percent of latency weighs as much as beta / log(LAT) percent of cross-entropy, in
    milliseconds more than in microseconds. And the logarithm must be positive, which that of a network of less than one
    millisecond is not. So LAT is in microseconds where the costs are milliseconds.

    Attributes:
        alpha: The paper's 0.2; a constant factor, which Adam does not notice.
        beta: The paper's 0.6; more draws to faster networks.
        per_unit: What one unit of cost counts in LAT.
    """

    alpha: float = 0.2
    beta: float = 0.6
    per_unit: float = 1000.0

    def __post_init__(self) -> None:
        _check_positive(self, "alpha", "per_unit")
        _check_not_negative(self, "beta")

    def loss(self, cross_entropy: Tensor, cost: Tensor, target: float) -> Tensor:
        return cross_entropy * self.alpha * (cost * self.per_unit).log() ** self.beta

    def check(self, trellis: Trellis, target: float) -> None:
        super().check(trellis, target)
        if trellis.min_cost() * self.per_unit <= 1:
            raise InputError(f"The logarithm of a latency must be positive, but the cheapest network of space "
                             f"{trellis.space.name!r} costs {trellis.min_cost():.4g} {trellis.unit}, each counted as "
                             f"{self.per_unit:g}: raise per_unit.")


@dataclass(frozen=True)
class Additive(_Smooth):
    """CE + weight * E[LAT] / target.

    Attributes:
        weight: The paper's lambda_2, on a latency relative to the target, as in the released code, so that it has no unit.
    """

    weight: float = 0.2

    def __post_init__(self) -> None:
        _check_not_negative(self, "weight")

    def loss(self, cross_entropy: Tensor, cost: Tensor, target: float) -> Tensor:
        return cross_entropy + self.weight * cost / target


@dataclass(frozen=True)
class Target(LatencyLoss):
    """Least CE where E[LAT] = target.

    Gradient projection (Rosen, "The Gradient Projection Method for Nonlinear Programming", 1960/61): the part of the
    gradient along that of the expected latency is left out, and after each update a Newton step leads back to the latency that
    is wanted. Where an augmented Lagrangian learns its multiplier from the violations that it allows, this has the
    multiplier that fits best at every step (least squares), and the same points of rest. So there is no penalty to tune, no
    multiplier to swing or to save. It is an equality: a latency below the target is raised too, and the budget is used.

    That the mean is the target says little about the most probable network, which may be far below where many improbable ones
    are above. So in the rest of the updates the networks are drawn together too: the standard deviation of their latency, where
    it is larger, is led evenly towards 5 % of the target.

    Attributes:
        approach: Share of the updates in which the latency moves evenly from that of the uniform distribution to the target.
    """

    approach: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.approach < 1:
            raise InputError(f"approach must be at least 0 and below 1, but is {self.approach}: change it.")

    def gradient(self, moment: Moment) -> Tensor:
        gradient, slope = moment.cross_entropy_gradient, moment.cost_gradient
        slope = slope / slope.abs().max().clamp_min(_TINY)  # costs may be in units whose squares overflow or vanish
        return gradient - (gradient * slope).sum() / (slope * slope).sum().clamp_min(_TINY) * slope

    def goal(self, start: float, target: float, progress: float) -> float:
        """The expected cost after a share `progress` of the updates."""
        return target if progress >= self.approach else start + (target - start) * progress / self.approach

    def most_deviation(self, start: float, target: float, progress: float) -> float:
        """What the cost's standard deviation should not exceed after a share `progress` of the updates; `start` is the uniform
        distribution's."""
        if progress <= self.approach:
            return math.inf
        spread = _SPREAD * target
        start = max(start, spread)
        return start + (spread - start) * (progress - self.approach) / (1 - self.approach)

    def check(self, trellis: Trellis, target: float) -> None:
        super().check(trellis, target)
        if not trellis.min_cost() < target < trellis.max_cost():
            raise InputError(f"An expected cost can reach a target between {trellis.min_cost():.4g} and {trellis.max_cost():.4g} "
                             f"{trellis.unit}, the cheapest and the dearest network of space {trellis.space.name!r}, but the "
                             f"target is {target:g}: change it, or weigh latency with a rate.")


def move_towards(goal: float | Tensor, logits: Tensor, cost: Tensor, slope: Tensor, furthest: float) -> None:
    """One Newton step of the logits along the gradient of the expected cost, or of its deviation, in place.

    Args:
        goal: What is wanted.
        logits: (options,).
        cost: What the logits as they are have; a scalar.
        slope: Its gradient, (options,).
        furthest: How much a logit may move: where the distribution is so sharp that the cost hardly changes, a Newton step
            would go astray.
    """
    largest = slope.abs().max().clamp_min(_TINY)
    slope = slope / largest
    step = (goal - cost) / largest / (slope * slope).sum().clamp_min(_TINY)
    with torch.no_grad():
        logits.add_(step.clamp(-furthest, furthest) * slope)


_TINY = 1e-30
_SPREAD = 0.05


def _check_positive(settings: LatencyLoss, *names: str) -> None:
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise InputError(f"{name} must be above 0 and finite, but is {getattr(settings, name)}: change it.")


def _check_not_negative(settings: LatencyLoss, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:
            raise InputError(f"{name} must be at least 0 and finite, but is {getattr(settings, name)}: change it.")
