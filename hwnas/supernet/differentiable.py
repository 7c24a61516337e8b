"""Differentiable search: weights and a distribution over networks are trained in turn, on images of their own.

Three ways to let a gradient reach the distribution, each after its paper:

- `Darts` ("DARTS", Liu et al., arXiv 1806.09055, sec. 2.2 and 2.3): all options are computed and weighed by their
  probabilities; first order, or second order through one step of the weights (eq. 7 and 8).
- `FBNet` (Wu et al., arXiv 1812.03443, sec. 3 and 4.1): the weights are a Gumbel-softmax sample of falling temperature.
- `Proxyless` (Cai et al., arXiv 1812.00332, sec. 3.2 and appendix): binary gates. Weights train on one sampled path; for the
  architecture two options of each decision are sampled, one is active, and the gradient of the gates is passed on to the
  softmax of the two.

Departures: where several states can reach a layer, options are mixed within a state (`Flow.mixture`). Expected latency is that
of the probabilities, not of a Gumbel sample, whose mean is the same only when it is cold. Batch norm uses the statistics of
each batch, and only steps of the weights leave a trace in the running ones.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hwnas.errors import InputError
from hwnas.ir.costs import CostModel
from hwnas.ir.steps import Edge, Space, Step
from hwnas.ir.trellis import Trellis
from hwnas.lower.straight_through import Quantizer
from hwnas.supernet.cell_search import prepare_cell_search
from hwnas.supernet.cells import CellSupernet
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.distribution import ArchitectureParameters
from hwnas.supernet.latency_loss import LatencyLoss, Moment, Target, move_towards
from hwnas.supernet.layered import LayeredSupernet, Mixture, Weighed
from hwnas.supernet.loop import Batch, OuterUpdate, Task
from hwnas.supernet.precision import LossScale
from hwnas.supernet.streams import stream_seed
from hwnas.supernet.supernet import Supernet

_TRAVEL = 10.0  # sets the odds between two options to e^10
_EPSILON = 0.01  # of the finite difference (DARTS, sec. 2.3)
_PULL = 3.0  # times the learning rate: how far the deviation moves a logit; twice that lost the mean where options are few
_NEWTON_STEPS = 3  # one leaves a short run, whose logits move far in each update, some percent beside its target


@dataclass(frozen=True)
class Differentiable:
    """What the three ways share.

    Attributes:
        latency: How latency is weighed.
        learning_rate: Of Adam, for the logits. None divides 10 by the number of updates: Adam moves a logit by at most about
            its learning rate, and the papers' rates for tens of thousands of updates would leave short runs where they began.
        weight_decay: Of Adam.
        share: Of the training images, those kept for the architecture.
        warmup: Share of the epochs that train weights alone first.
    """

    latency: LatencyLoss = field(default_factory=Target)
    learning_rate: float | None = None
    weight_decay: float = 0.0
    share: float = 0.5
    warmup: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values that cannot train.

        Raises:
            InputError: Naming the field, its bounds and the value.
        """
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate must be above 0 and finite, but is {self.learning_rate}: change it.")
        if not 0 < self.share < 1:
            raise InputError(f"share must be above 0 and below 1, but is {self.share}: change it.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup must be at least 0 and below 1, but is {self.warmup}: change it.")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay must be at least 0 and finite, but is {self.weight_decay}: change it.")


@dataclass(frozen=True)
class Darts(Differentiable):
    """Softmax mixture. Adam's weight decay is the paper's.

    Attributes:
        unrolled: Second order: the weights are moved by the step that they would take before the architecture's gradient is
            taken, and how that step depends on the architecture is counted. Four passes over all options in place of one.
    """

    weight_decay: float = 1e-3
    unrolled: bool = False


@dataclass(frozen=True)
class FBNet(Differentiable):
    """Gumbel-softmax mixture. Weight decay, share, warm-up (10 of 90 epochs) and temperatures are the paper's.

    Attributes:
        temperature: At the first step.
        last_temperature: At the last step, falling exponentially; the paper's exp(-0.045) an epoch comes to this in 90 epochs.
    """

    weight_decay: float = 5e-4
    share: float = 0.2
    warmup: float = 1 / 9
    temperature: float = 5.0
    last_temperature: float = 5.0 * math.exp(-0.045 * 90)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.last_temperature <= self.temperature < math.inf:
            raise InputError("Temperatures must be above 0, finite, and not rise, but are "
                             f"{self.temperature} and at last {self.last_temperature}: change them.")

    def temperature_at(self, progress: float) -> float:
        """After a share `progress` of the steps."""
        return self.temperature * (self.last_temperature / self.temperature) ** progress


@dataclass(frozen=True)
class Proxyless(Differentiable):
    """Binary gates. Adam has no momentum, as in the released code, so that cross-entropy moves sampled options alone; what leads
    the latency to a target moves all."""

    share: float = 0.2
    warmup: float = 1 / 9


def differentiable_task(supernet: Supernet, settings: Differentiable, config: LoopConfig, costs: CostModel, target: float,
                        steps_in_all: int) -> Task:
    """Trains weights and architecture together; the distribution joins the supernet as its module `architecture`.

    Args:
        supernet: Of layers or of cells, not trained yet.
        settings: One of the three ways.
        config: How the weights are trained.
        costs: What edges cost.
        target: The expected cost that is wanted, or what one is compared with.
        steps_in_all: Steps of the whole run.

    Raises:
        InputError: The way does not fit the space, or the latency's loss does not fit costs and target.
        InfeasibleError: No network is as cheap as the target.
    """
    if not isinstance(supernet, LayeredSupernet | CellSupernet):
        raise InputError(f"Differentiable search takes a supernet that can mix its options, but that of {supernet.space.name!r} "
                         f"is a {type(supernet).__name__}.")
    if isinstance(supernet, CellSupernet):
        cells = prepare_cell_search(supernet, costs)
        architecture: _Architecture = cells
        space: Space = cells.space
    else:
        architecture = supernet.architecture = ArchitectureParameters(supernet.space, costs)
        space = supernet.space
    settings.latency.check(Trellis(space, costs), target)
    way = _WAYS[type(settings)](supernet, architecture, settings, config, steps_in_all)
    search = _Search(way, settings, costs, target, steps_in_all, config.epochs)
    outer = OuterUpdate(search.optimizer, search.update, settings.share, search.first_epoch)
    return Task(supernet, way.backward, way.describe, outer, loss_scale=way.loss_scale)


class _Flow(Protocol):
    """The meaning of logits, for layers or cells."""

    def mixture(self) -> Any: ...

    def expected_cost(self) -> Tensor: ...

    def cost_variance(self) -> Tensor: ...


class _Architecture(Protocol):
    """Logits of layers or cells."""

    logits: nn.Parameter

    def flow(self, logits: Tensor | None = None) -> _Flow: ...

    def expected_cost(self) -> Tensor: ...

    def figures(self) -> dict[str, float]: ...


class _Update(NamedTuple):
    """What a way finds out for one update of the architecture.

    Attributes:
        cross_entropy: On the architecture's images; a scalar.
        cross_entropy_gradient: With respect to the logits, (options,).
        cost_gradient: Likewise, of the expected cost.
        pairs: Options between which the gradient step shifts probability and no others, (pairs, 2); None for all.
    """

    cross_entropy: Tensor
    cross_entropy_gradient: Tensor
    cost_gradient: Tensor
    pairs: Tensor | None = None


class _Way:
    """How the weights are trained, and how the cross-entropy's gradient reaches the logits."""

    betas = (0.9, 0.999)

    def __init__(self, supernet: LayeredSupernet | CellSupernet, architecture: _Architecture, settings: Any, config: LoopConfig,
                 steps_in_all: int) -> None:
        self.supernet, self.architecture, self.settings = supernet, architecture, settings
        self.mix: Callable[[Tensor, Any], Tensor] = supernet.mix
        self.config, self.steps_in_all = config, steps_in_all
        self.loss_scale = LossScale()

    def backward(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of the weights, as `Task.backward`; the logits get no gradient."""
        raise NotImplementedError

    def step(self, step: int, inner: Batch, outer: Batch, optimizer: torch.optim.SGD, cost: Tensor) -> _Update:
        """The gradients of one update of the architecture, from the batches of `OuterUpdate` and the expected cost."""
        raise NotImplementedError

    def describe(self, step: int) -> str:
        return "all options weighed by their probabilities"

    def figures(self, step: int) -> dict[str, float]:
        return {}

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def rng(self, purpose: str, step: int) -> np.random.Generator:
        return np.random.default_rng(stream_seed(self.config.seed, purpose, step))


class _Search:
    """Moves the architecture parameters."""

    def __init__(self, way: _Way, settings: Differentiable, costs: CostModel, target: float, steps_in_all: int,
                 epochs: int) -> None:
        self.way, self.settings, self.target = way, settings, target
        self.architecture = way.architecture
        self.first_epoch = int(settings.warmup * epochs)
        self.first_step = self.first_epoch * (steps_in_all // epochs)
        self.updates = max(steps_in_all - self.first_step, 1)
        self.learning_rate = settings.learning_rate or _TRAVEL / self.updates
        self.optimizer = torch.optim.Adam([self.architecture.logits], self.learning_rate, way.betas,
                                          weight_decay=settings.weight_decay)
        flow = self.architecture.flow()  # uniform, for a checkpoint is only loaded later
        self.start, self.start_deviation = float(flow.expected_cost().detach()), float(flow.cost_variance().detach().sqrt())
        self.cost_name = "expected_latency_ms" if costs.unit == "ms" else f"expected_{costs.unit}"
        self.deviation_name = "latency_deviation_ms" if costs.unit == "ms" else f"deviation_{costs.unit}"
        self.tracking = [module for module in way.supernet.modules() if isinstance(module, nn.BatchNorm2d | Quantizer)]

    def update(self, step: int, inner: Batch, outer: Batch, optimizer: torch.optim.SGD) -> dict[str, float]:
        """As `OuterUpdate.update`.

        Among the figures is the expected cost before the update, and in the updates in which `Target` leads the cost's standard
        deviation, what that was before it was led: if it stays far above 5 % of the target, that is out of reach.
        """
        logits, latency = self.architecture.logits, self.settings.latency
        cost = self.architecture.expected_cost()
        with _no_running_statistics(self.tracking):
            found = self.way.step(step, inner, outer, optimizer, cost)
        logits.grad = latency.gradient(Moment(found.cross_entropy, cost, found.cross_entropy_gradient, found.cost_gradient,
                                              self.target))
        before = logits.detach().clone()
        self.optimizer.step()
        logits.grad = None
        if found.pairs is not None:
            _keep_mass(logits, before, found.pairs)
        led = self._lead(latency, (step + 1 - self.first_step) / self.updates) if isinstance(latency, Target) else {}
        return {"cross_entropy": float(found.cross_entropy), self.cost_name: float(cost.detach()), **led,
                **self.architecture.figures(), **self.way.figures(step)}

    def _lead(self, latency: Target, progress: float) -> dict[str, float]:
        """Moves the cost's deviation, then its mean, to what is due after a share of the updates.

        Returns:
            The deviation that was found, once it is led: a figure to log.
        """
        logits, furthest = self.architecture.logits, _TRAVEL * self.learning_rate
        figures = {}
        limit = latency.most_deviation(self.start_deviation, self.target, progress)
        if limit < math.inf:
            variance = self.architecture.flow().cost_variance()
            deviation = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()  # at 0 it would have no gradient
            figures[self.deviation_name] = float(deviation.detach())
            (slope,) = torch.autograd.grad(deviation, logits)
            within = deviation.detach().clamp(max=limit)
            move_towards(within, logits, deviation, slope, _PULL * self.learning_rate)
        goal = latency.goal(self.start, self.target, progress)
        for _ in range(_NEWTON_STEPS):
            cost = self.architecture.expected_cost()
            (slope,) = torch.autograd.grad(cost, logits)
            move_towards(goal, logits, cost, slope, furthest)
        return figures


class _Mixed(_Way):
    """All options are computed, weighed by probabilities."""

    def flow(self, step: int, purpose: str) -> _Flow:
        raise NotImplementedError

    def mixed_loss(self, step: int, purpose: str, batch: Batch) -> Tensor:
        images, labels = batch
        return self.loss(self.mix(images, self.flow(step, purpose).mixture()), labels)

    def backward(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            mixture = self.flow(step, "weights").mixture()
        loss = self.loss(self.mix(images, mixture), labels)
        self.loss_scale.backward(loss)
        return loss.detach()

    def step(self, step: int, inner: Batch, outer: Batch, optimizer: torch.optim.SGD, cost: Tensor) -> _Update:
        logits = self.architecture.logits
        loss = self.mixed_loss(step, "architecture", outer)
        return _Update(loss.detach(), *torch.autograd.grad(loss, logits), *torch.autograd.grad(cost, logits))


class _Softmax(_Mixed):
    betas = (0.5, 0.999)  # DARTS, appendix A.1

    def flow(self, step: int, purpose: str) -> _Flow:
        return self.architecture.flow()

    def step(self, step: int, inner: Batch, outer: Batch, optimizer: torch.optim.SGD, cost: Tensor) -> _Update:
        if not self.settings.unrolled:
            return super().step(step, inner, outer, optimizer, cost)
        logits = self.architecture.logits
        seed = stream_seed(self.config.seed, "unrolled dropout", step)  # all passes over a batch drop the same

        def inner_loss() -> Tensor:
            torch.manual_seed(seed)
            return self.mixed_loss(step, "weights", inner)

        loss, gradient = _unrolled(inner_loss, lambda: self.mixed_loss(step, "architecture", outer), logits, optimizer)
        return _Update(loss, gradient, *torch.autograd.grad(cost, logits))


class _Gumbel(_Mixed):
    def flow(self, step: int, purpose: str) -> _Flow:
        logits = self.architecture.logits
        noise = torch.from_numpy(self.rng(f"gumbel noise of {purpose}", step).gumbel(size=len(logits)))
        return self.architecture.flow((logits + noise.to(logits)) / self.temperature(step))

    def temperature(self, step: int) -> float:
        return self.settings.temperature_at(step / self.steps_in_all)

    def figures(self, step: int) -> dict[str, float]:
        return {"temperature": self.temperature(step)}


class _Gates(_Way):
    betas = (0.0, 0.999)

    def __init__(self, supernet: LayeredSupernet | CellSupernet, architecture: _Architecture, settings: Any, config: LoopConfig,
                 steps_in_all: int) -> None:
        super().__init__(supernet, architecture, settings, config, steps_in_all)
        if not isinstance(architecture, ArchitectureParameters):
            raise InputError(f"Binary gates choose between blocks in a row, but {supernet.space.name!r} is a space of cells: "
                             "search it with darts.")
        self.pieces = architecture.pieces
        self.choices: list[dict[int, list[Edge]]] = []  # of every step, state to its edges
        for step, edges in zip(supernet.space.steps, architecture.edges, strict=True):
            found: dict[int, list[Edge]] = {}
            for edge in edges:
                found.setdefault(edge.source, []).append(edge)
            if any(len({each.parts[-1].network.output_shape for each in options}) > 1 for options in found.values()):
                raise InputError(f"Binary gates compare options of one output shape, but those of decision {step.name!r} of "
                                 f"space {supernet.space.name!r} differ: search it with fbnet.")
            self.choices.append(found)

    def backward(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        loss = self.loss(self.supernet(images, self.path(step)), labels)
        self.loss_scale.backward(loss)
        return loss.detach()

    def step(self, step: int, inner: Batch, outer: Batch, optimizer: torch.optim.SGD, cost: Tensor) -> _Update:
        images, labels = outer
        logits = self.architecture.logits
        taken, numbers = self.draw(step)
        pairs = torch.from_numpy(numbers).to(logits.device)
        gates = _Gate.apply(logits[pairs].softmax(1))
        loss = self.loss(self.mix(images, _gated(taken, gates)), labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        return _Update(loss.detach(), gradient, self.cost_gradient(pairs), pairs)

    def cost_gradient(self, pairs: Tensor) -> Tensor:
        """Of the expected cost when each decision has its two options alone: as in the released code, so that latency and
        cross-entropy are weighed alike whatever the share of the pair."""
        logits = self.architecture.logits
        is_sampled = torch.zeros_like(logits, dtype=torch.bool)
        is_sampled[pairs.flatten()] = True
        alone = torch.where(is_sampled, logits, logits.detach() - _FAR)  # where a state allows neither, the others
        return torch.autograd.grad(self.architecture.flow(alone).expected_cost(), logits)[0]

    def path(self, step: int) -> list[int]:
        """The path of a step of the weights: its options are drawn by their probabilities."""
        ranks, _ = self.ranks("paths", step)
        row, state = [], 0
        for stage, choices in zip(self.supernet.space.steps, self.choices, strict=True):
            options = choices[state]
            edge = options[0] if len(options) == 1 else options[ranks[self.numbers(stage, options)].argmax()]
            state = edge.target
            if stage.is_decision:
                row.append(edge.option)
        return row

    def draw(self, step: int) -> "tuple[list[_Taken], NDArray[np.int64]]":
        """Draws two options at each decision on a path, without replacement, and which of them is active.

        Returns:
            What is taken in every step, and the numbers of the active and the other option where there is another, (pairs, 2).
        """
        ranks, rng = self.ranks("gates", step)
        logits = self.architecture.logits.detach().to("cpu", torch.float64).numpy()
        taken: list[_Taken] = []
        pairs, state = [], 0
        for stage, choices in zip(self.supernet.space.steps, self.choices, strict=True):
            options = choices[state]
            if len(options) == 1:
                taken.append(_Taken(options[0], None))
            else:
                numbers = self.numbers(stage, options)
                pair = np.argsort(-ranks[numbers])[:2]
                one, other = logits[numbers[pair]]
                if rng.random() > 1 / (1 + math.exp(min(other - one, 700.0))):
                    pair = pair[::-1]
                pairs.append(numbers[pair])
                taken.append(_Taken(options[pair[0]], options[pair[1]]))
            state = taken[-1].active.target
        return taken, np.array(pairs, np.int64).reshape(-1, 2)

    def ranks(self, purpose: str, step: int) -> tuple[NDArray[np.float64], np.random.Generator]:
        """Logits with Gumbel noise, (options,), whose largest are draws without replacement; and a generator for more."""
        rng = self.rng(f"binary {purpose}", step)
        logits = self.architecture.logits.detach().to("cpu", torch.float64).numpy()
        return logits + rng.gumbel(size=logits.shape), rng

    def numbers(self, stage: Step, options: list[Edge]) -> NDArray[np.int64]:
        """Where the logits of a decision's options are."""
        return self.pieces[stage.name].start + np.array([edge.option for edge in options])

    def describe(self, step: int) -> str:
        (architecture,) = self.supernet.space.architectures(np.array([self.path(step)]))
        return f"path {architecture}"


_FAR = 1e4
_WAYS: dict[type[Differentiable], type[_Way]] = {Darts: _Softmax, FBNet: _Gumbel, Proxyless: _Gates}


class _Taken(NamedTuple):
    """The edges that binary gates compute in a step."""

    active: Edge
    other: Edge | None


class _Gate(torch.autograd.Function):
    """Opens the first gate of each pair; the gradient of the gates becomes that of their probabilities (ProxylessNAS, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).to(probabilities).expand_as(probabilities).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _gated(taken: list[_Taken], gates: Tensor) -> Mixture:
    opened = iter(gates.unbind())
    mixture: list[dict[tuple[int, int], Weighed]] = []
    for active, other in taken:
        key = active.source, active.option
        if other is None:
            mixture.append({key: Weighed(1.0)})
        else:
            of_active, of_other = next(opened).unbind()
            mixture.append({key: Weighed(of_active), (other.source, other.option): Weighed(of_other, True, active.target)})
    return mixture


@torch.no_grad()
def _keep_mass(logits: Tensor, before: Tensor, pairs: Tensor) -> None:
    """Shifts both logits of each pair so that its probability, and with it that of every other option, is as before."""
    logits[pairs] -= (logits[pairs].logsumexp(1) - before[pairs].logsumexp(1))[:, None]


def _unrolled(inner_loss: Callable[[], Tensor], outer_loss: Callable[[], Tensor], logits: Tensor,
              optimizer: torch.optim.SGD) -> tuple[Tensor, Tensor]:
    """Gradient of the outer loss after one step of the weights, how that step depends on the logits included (eq. 7 and 8).

    Clipping of the weights' gradient is not part of the step.

    Returns:
        The outer loss after the step, and its gradient, (options,).
    """
    groups = [(group, parameter) for group in optimizer.param_groups for parameter in group["params"]]
    weights = [parameter for _, parameter in groups]
    before = [weight.detach().clone() for weight in weights]
    try:
        gradients = torch.autograd.grad(inner_loss(), weights, allow_unused=True)
        with torch.no_grad():
            for (group, weight), gradient in zip(groups, gradients, strict=True):
                if gradient is not None:
                    momentum = optimizer.state[weight].get("momentum_buffer") if weight in optimizer.state else None
                    change = gradient.add(weight, alpha=group["weight_decay"])
                    weight.sub_(change if momentum is None else change.add_(momentum, alpha=group["momentum"]), alpha=group["lr"])
        loss = outer_loss()
        direct, *found = torch.autograd.grad(loss, [logits, *weights], allow_unused=True)
        direction = [torch.zeros_like(weight) if one is None or inner is None else one * group["lr"]
                     for (group, weight), one, inner in zip(groups, found, gradients, strict=True)]
        size = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
        length = _EPSILON / size.clamp_min(1e-12)
        (up,), (down,) = (torch.autograd.grad(_moved(weights, before, direction, distance, inner_loss), logits)
                          for distance in (length, -length))
        return loss.detach(), direct - (up - down) / (2 * length)
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, before)


def _moved(weights: list[Tensor], before: list[Tensor], direction: list[Tensor], distance: Tensor,
           loss: Callable[[], Tensor]) -> Tensor:
    """The loss with the weights at `distance` along a direction."""
    with torch.no_grad():
        torch._foreach_copy_(weights, torch._foreach_add(before, torch._foreach_mul(direction, distance)))
    return loss()


@contextmanager
def _no_running_statistics(modules: list[nn.BatchNorm2d | Quantizer]) -> Iterator[None]:
    """Batch norms and quantisers that keep no statistics for a while; in training they compute the same."""
    for module in modules:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in modules:
            module.track_running_stats = True
