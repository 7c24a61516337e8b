"""Every way to train a supernet, by the name that users give it: its settings, and the task that it makes of a supernet."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hwnas.errors import InputError
from hwnas.ir.costs import CostModel
from hwnas.ir.steps import Space
from hwnas.supernet.cells import CellSupernet
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.differentiable import Darts, Differentiable, FBNet, Proxyless, differentiable_task
from hwnas.supernet.layered import LayeredSupernet
from hwnas.supernet.loop import Task
from hwnas.supernet.one_shot import OneShot, one_shot_task
from hwnas.supernet.single_path import Fair, Sandwich, SinglePath, fairnas_task, sandwich_task, spos_task
from hwnas.supernet.supernet import Supernet

Settings = SinglePath | Fair | Sandwich | OneShot | Differentiable


@dataclass(frozen=True)
class Budget:
    """What networks should cost.

    Attributes:
        costs: A latency table, or a count of MACs or parameters.
        limit: In the unit of the costs.
        space: Whose edges the costs are of, where its states say more than the supernet's; the same decisions and networks.
    """

    costs: CostModel
    limit: float
    space: Space | None = None

    def identity(self, space: Space) -> dict[str, Any]:
        """What makes two budgets the same: the limit and the cost of every edge, JSON-able."""
        edges = [[self.costs.edge_cost(edge) for edge in step.edges] for step in (self.space or space).steps]
        content = json.dumps([self.costs.constant, edges]).encode()
        return {"unit": self.costs.unit, "limit": self.limit, "costs_sha256": hashlib.sha256(content).hexdigest()}


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        settings: The class of its settings.
        task: From supernet, settings, loop, budget and the steps of the whole run to what the loop trains.
        needs_budget: The budget is part of the method; for the others it says which paths are drawn, or nothing.
        takes_budget: A budget means something to it.
    """

    settings: type[Settings]
    task: Callable[[Supernet, Any, LoopConfig, Budget | None, int], Task]
    needs_budget: bool = False
    takes_budget: bool = False


def _spos(supernet: Supernet, settings: SinglePath, config: LoopConfig, budget: Budget | None, steps: int) -> Task:
    if budget is None:
        return spos_task(supernet, settings, config)
    return spos_task(supernet, dataclasses.replace(settings, max_cost=budget.limit), config, budget.costs, budget.space)


def _differentiable(supernet: Supernet, settings: Differentiable, config: LoopConfig, budget: Budget | None, steps: int) -> Task:
    assert budget is not None and isinstance(supernet, LayeredSupernet | CellSupernet)  # `make_task` checks; there are no others
    return differentiable_task(supernet, settings, config, budget.costs, budget.limit, steps)


METHODS: dict[str, Method] = {
    "spos": Method(SinglePath, _spos, takes_budget=True),
    "fairnas": Method(Fair, lambda supernet, settings, config, _, steps: fairnas_task(supernet, settings, config)),
    "sandwich": Method(Sandwich, lambda supernet, settings, config, _, steps: sandwich_task(supernet, settings, config)),
    "one-shot": Method(OneShot, lambda supernet, settings, config, _, steps: one_shot_task(supernet, settings, config, steps)),
    "darts": Method(Darts, _differentiable, needs_budget=True, takes_budget=True),
    "fbnet": Method(FBNet, _differentiable, needs_budget=True, takes_budget=True),
    "proxyless": Method(Proxyless, _differentiable, needs_budget=True, takes_budget=True),
}


def is_differentiable(name: str) -> bool:
    """Whether a method leaves architecture parameters."""
    return issubclass(METHODS[name].settings, Differentiable)


def make_settings(name: str, values: Mapping[str, Any]) -> Settings:
    """The settings of a method, its defaults where nothing is said.

    Raises:
        InputError: There is no such method, it has no such setting, or a value is out of range.
    """
    kind = find_method(name).settings
    known = {field.name for field in dataclasses.fields(kind)} - {"max_cost"}  # that comes from the budget
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"The training method {name!r} has "
                         f"{'the settings ' + ', '.join(sorted(known)) if known else 'no settings'}, but {unknown[0]} is given: "
                         "leave it out, or choose the method that it belongs to.")
    return kind(**values)


def find_method(name: str) -> Method:
    """Looks a method up.

    Raises:
        InputError: There is no such method.
    """
    if name not in METHODS:
        raise InputError(f"The training method must be one of {', '.join(METHODS)}, but is {name!r}.")
    return METHODS[name]


def make_task(name: str, supernet: Supernet, settings: Settings, config: LoopConfig, budget: Budget | None, steps: int) -> Task:
    """What the loop trains.

    Args:
        name: The method.
        supernet: Not trained yet; a differentiable method gives it architecture parameters.
        settings: Of the method.
        config: Of the loop.
        budget: What networks should cost: needed by differentiable methods, possible for `spos`.
        steps: Of the whole run.

    Raises:
        InputError: Method, settings, budget and space do not fit together.
        InfeasibleError: No network fits the budget; names the achievable range.
    """
    method = find_method(name)
    if not isinstance(settings, method.settings):
        raise InputError(f"The training method {name!r} takes {method.settings.__name__}, but got {type(settings).__name__}.")
    if method.needs_budget and budget is None:
        raise InputError(f"The training method {name!r} searches for networks of a given cost, so it needs one: give a latency "
                         "table with a latency in ms, or a number of MACs or parameters.")
    if budget is not None and not method.takes_budget:
        raise InputError(f"The training method {name!r} knows no budget: leave it out here, and give it to the search.")
    return method.task(supernet, settings, config, budget, steps)


def settings_to_dict(settings: Any) -> Any:
    """JSON-able form that tells settings of one class from those of another."""
    if not dataclasses.is_dataclass(settings):
        return settings
    return {"kind": type(settings).__name__,
            **{field.name: settings_to_dict(getattr(settings, field.name)) for field in dataclasses.fields(settings)}}
