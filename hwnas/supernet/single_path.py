"""Training with a few paths in each step: Single Path One-Shot, strict fairness, the sandwich rule.

A step's gradient is the sum of its paths' gradients on the same batch, after which the weights move once:

- Single Path One-Shot (Guo et al., arXiv 1904.00420, sec. 3.2) has one path.
- FairNAS (Chu et al., arXiv 1907.01845, algorithm 1) accumulates over its paths. Each option takes part in one of them, so it
  learns at the rate of a single-path step, while layers that every network has get the sum over all paths, as if their
  learning rate were that many times as large: what is stable with one path may need a lower rate, or gradient clipping, with
  many.
- The sandwich rule (Yu and Huang, Universally Slimmable Networks, arXiv 1903.05134, and their released code) sums as well.
  With in-place distillation (same paper) the largest network learns from the labels, the others from its outputs alone: those
  of the same forward pass, without label smoothing.

BigNAS (Yu et al., arXiv 2003.11142) regularises the largest network alone. With distillation that holds here for dropout and
label smoothing, but not for weight decay, which is the optimiser's. Batch norm's running statistics see every path.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.errors import InputError
from hwnas.ir.costs import CostModel
from hwnas.ir.steps import Space
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.distill import soft_loss
from hwnas.supernet.loop import Task
from hwnas.supernet.paths import PathSampler, fair_paths, paths_within, sandwich_paths, uniform_paths
from hwnas.supernet.precision import LossScale
from hwnas.supernet.supernet import Supernet


@dataclass(frozen=True)
class SinglePath:
    """One uniformly drawn path in a step.

    Attributes:
        max_cost: Draw among the networks within this budget, in the unit of the costs; None for all networks.
    """

    max_cost: float | None = None


@dataclass(frozen=True)
class Fair:
    """Strict fairness: paths that train every option once in a step."""


@dataclass(frozen=True)
class Sandwich:
    """The largest network, the smallest, and some between.

    Attributes:
        random_paths: How many between.
        distill: The others learn from the largest network instead of the labels.
    """

    random_paths: int = 2
    distill: bool = True

    def __post_init__(self) -> None:
        """Refuses a number that is none.

        Raises:
            InputError: It is below 0.
        """
        if self.random_paths < 0:
            raise InputError(f"random_paths must be at least 0, but is {self.random_paths}: change it.")


def spos_task(supernet: Supernet, settings: SinglePath, config: LoopConfig, costs: CostModel | None = None,
              space: Space | None = None) -> Task:
    """Single Path One-Shot.

    Args:
        supernet: What to train.
        settings: Which paths.
        config: Its seed draws them.
        costs: What the budget is counted in; only needed with one.
        space: Whose edges the costs are of; None for the supernet's own.

    Raises:
        InputError: There is a budget but no costs.
        InfeasibleError: No network fits the budget; names the achievable range.
    """
    if settings.max_cost is None:
        paths = uniform_paths(supernet.space, config.seed)
    elif costs is None:
        raise InputError(f"Paths within a budget ({settings.max_cost:g}) need costs to compare with it, but there are none: give "
                         "a latency table, or leave the budget out.")
    else:
        paths = paths_within(space or supernet.space, costs, settings.max_cost, config.seed)
    return single_path_task(supernet, paths, config.label_smoothing)


def fairnas_task(supernet: Supernet, settings: Fair, config: LoopConfig) -> Task:
    """Strict fairness.

    Raises:
        InputError: Options of the space exclude each other.
    """
    return single_path_task(supernet, fair_paths(supernet.space, config.seed), config.label_smoothing)


def sandwich_task(supernet: Supernet, settings: Sandwich, config: LoopConfig) -> Task:
    """The sandwich rule."""
    paths = sandwich_paths(supernet.space, config.seed, settings.random_paths)
    return single_path_task(supernet, paths, config.label_smoothing, settings.distill)


def single_path_task(supernet: Supernet, paths: PathSampler, label_smoothing: float, distill: bool = False) -> Task:
    """The loss of a step: the sum of its paths' losses. One path's activations are held at a time.

    Args:
        supernet: What to train.
        paths: Which paths, any function of the step.
        label_smoothing: Share of the target spread over all classes.
        distill: Only a step's first path learns from the labels, the others from what it gives, without dropout.
    """
    dropouts = [module for module in supernet.modules() if isinstance(module, nn.Dropout)]
    scale = LossScale()
    latest: dict[int, list[Tensor]] = {}  # the losses of the step under way, only for `describe`

    def backward(step: int, images: Tensor, labels: Tensor) -> Tensor:
        latest.clear()
        losses: list[Tensor] = []
        latest[step] = losses
        teacher_logits: Tensor | None = None
        for row in paths(step):
            if teacher_logits is None:
                logits = supernet(images, row)
                loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
                teacher_logits = logits.detach() if distill else None
            else:
                with _switched_off(dropouts):
                    loss = soft_loss(supernet(images, row), teacher_logits)
            scale.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def describe(step: int) -> str:
        rows = paths(step)
        failed = [row for row, loss in enumerate(latest.get(step, ())) if not loss.isfinite()]
        named = supernet.space.architectures(rows[failed[:1]] if failed else rows)
        return f"{'path' if len(named) == 1 else 'paths'} {', '.join(map(str, named))}"

    return Task(supernet, backward, describe, loss_scale=scale)


@contextmanager
def _switched_off(modules: list[nn.Dropout]) -> Iterator[None]:
    """Modules in evaluation mode, and afterwards as they were."""
    before = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training
