"""Differentiable search of cells: DARTS (Liu et al., arXiv 1806.09055, sec. 2.2 to 2.4), with an expected cost.

Every edge of a cell, from a state to one after it, has a logit for each operation, and one for `none`; a state is the sum over
its edges of the operations weighed by a softmax. A state of the cell that is derived keeps two edges with an operation each.
What that costs on average needs a distribution over these joint picks: here the probability of a pick is in proportion to the
product of its two weights. Then the most probable cell is the one that the paper derives (sec. 2.4), the most probable one
within a budget is what a constraint makes of that rule, and both, like the expected cost, are exact on a trellis with one
decision for each state (`JointSpace`).

As in the authors' released code, batch norms of the cells do not learn a scale, which would undo the weights, and the output of
a pool is normalised; the derived network's are as usual. Their logits start at random numbers around 0.001, ours at 0.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import block_network
from hwnas.ir.cells import CellDecision, CellKind, CellSpace, Pick, Term
from hwnas.ir.costs import CostModel
from hwnas.ir.genotype import INPUTS
from hwnas.ir.network import Network
from hwnas.ir.trellis import Trellis
from hwnas.supernet.cells import CellMixture, CellSupernet, WeighedTerm

NONE = "none"
"""The operation that leaves an edge out of the search's sum; no derived cell has it."""

Weights = Mapping[str, NDArray[np.float64]]
"""Kind of cell to (edges, 1 + operations): for each edge, ordered by state, then source, the weight of `none` and of each of
the skeleton's operations. `hwnas.spaces.darts.derive` takes the same."""


@dataclass(frozen=True)
class JointSpace:
    """A space of cells with one decision for each state, whose options name all that the state sums.

    Attributes:
        original: A space whose states may have several decisions each.
        flat: The same networks.
        choices: Decision of `flat` to option to the choices in `original` that mean the same.
    """

    original: CellSpace
    flat: CellSpace
    choices: Mapping[str, Mapping[str, Mapping[str, str]]]

    def in_original(self, architecture: Architecture) -> Architecture:
        """The same network as an architecture of the original space."""
        found = [self.choices[decision][option] for decision, option in self.flat.check(architecture).choices.items()]
        return self.original.architecture({name: option for choices in found for name, option in choices.items()})


def build_joint_space(space: CellSpace) -> JointSpace:
    """Makes one decision of those that each state has.

    Raises:
        InputError: A state reads sources that were picked for another state before it.
    """
    kinds, choices = {}, {}
    for kind_name, kind in space.kinds.items():
        decisions = []
        for state, group in itertools.groupby(kind.decisions, lambda decision: decision.state):
            name = f"{kind_name}_{state}"
            options, choices[name] = _joint_options(tuple(group))
            decisions.append(CellDecision(name, state, options))
        kinds[kind_name] = CellKind(tuple(decisions), kind.concat)
    return JointSpace(space, CellSpace(space.name, space.skeleton, kinds, space.description), choices)


def _joint_options(decisions: tuple[CellDecision, ...]) -> tuple[dict[str, Pick], dict[str, dict[str, str]]]:
    """All that the decisions of a state make together: option to pick, and option to the choices that it stands for."""
    options: dict[str, Pick] = {}
    choices: dict[str, dict[str, str]] = {}
    for combination in itertools.product(*(decision.options.items() for decision in decisions)):
        sources: list[int] = []
        terms: list[Term] = []
        for (_, pick), decision in zip(combination, decisions, strict=True):
            sources += pick.sources
            for operation, source in pick.terms:
                if source is None and not sources:
                    raise InputError(f"A state is searched on its own, but decision {decision.name!r} reads sources that were "
                                     "picked for a state before it: pick them among the state's own decisions.")
                terms.append((operation, sources.pop(0) if source is None else source))
        if (pick := Pick(tuple(terms))) not in options.values():
            name = "+".join(option for option, _ in combination)
            options[name] = pick
            choices[name] = {decision.name: option for decision, (option, _) in zip(decisions, combination, strict=True)}
    return options, choices


class CellArchitectureParameters(nn.Module):
    """The logits of a space of cells. The state is the logits alone.

    Attributes:
        space: The space with one decision for each state: what `Trellis(space, costs)` gives the range of costs of.
        joint: How that relates to the supernet's space.
        costs: What the edges of `space` cost.
        operations: `none`, and the skeleton's.
        edges: Kind of cell to the pairs of a state and one before it, which it reads.
        logits: Kind by kind, then edge by edge, of each operation, (edges x operations,); zero at the start.
    """

    def __init__(self, space: CellSpace, costs: CostModel | None = None) -> None:
        """Compiles the space.

        Args:
            space: Every state sums two operations, any of the skeleton's, on any two different states before it.
            costs: What edges cost; None for nothing. Picks of infinite cost are never taken.

        Raises:
            InputError: A state has other options, a kind of cell no fixed output, or a cost is not a number of at least zero.
            InfeasibleError: Nothing has a finite cost.
        """
        super().__init__()
        self.joint = build_joint_space(space)
        self.space, self.costs = self.joint.flat, costs
        self.operations = (NONE, *space.skeleton.operations)
        if NONE in space.skeleton.operations:
            raise InputError(f"{NONE!r} is what an edge without an operation has, but {space.name!r} has an operation of that "
                             "name: rename it.")
        for name in self.space.kinds:
            self._check(name)
        Trellis(self.space, costs)  # checks the costs
        self.edges = {name: [(decision.state, source) for decision in kind.decisions for source in range(decision.state)]
                      for name, kind in self.space.kinds.items()}
        rows: dict[tuple[str, int, int | None], int] = {}
        for name, edges in self.edges.items():
            rows |= {(name, *edge): row for row, edge in enumerate(edges, len(rows))}
        self.logits = nn.Parameter(torch.zeros(len(rows) * len(self.operations)))
        self.states = nn.ModuleList()
        steps = iter(self.space.steps)
        for name, kind in self.space.kinds.items():
            for decision, step in zip(kind.decisions, steps, strict=False):
                terms = [[rows[name, decision.state, source] * len(self.operations) + self.operations.index(operation)
                          for operation, source in pick.terms] for pick in decision.options.values()]
                self.states.append(_State(terms, [costs.edge_cost(edge) if costs else 0.0 for edge in step.edges]))
        (around,) = self.space.steps[-1].edges
        self.constant = float(costs.constant) + float(costs.edge_cost(around)) if costs else 0.0
        networks = _networks(space)
        self._free = frozenset(name for name, network in networks.items() if not network.parameters)
        self._normalised = frozenset(name for name in self._free if networks[name].nodes)

    def _check(self, name: str) -> None:
        kind = self.space.kinds[name]
        if kind.concat is None:
            raise InputError(f"Cells are searched where their output is fixed, but kind {name!r} of {self.space.name!r} passes "
                             "on what it does not read: name the states of its output.")
        for decision in kind.decisions:
            terms = [(operation, source) for source in range(decision.state) for operation in self.operations[1:]]
            wanted = Counter(frozenset(pair) for pair in itertools.combinations(terms, 2) if pair[0][1] != pair[1][1])
            if Counter(frozenset(pick.terms) for pick in decision.options.values()) != wanted:
                raise InputError(f"Cells are searched where every state sums any two operations on any two different states "
                                 f"before it, but state {decision.state} of kind {name!r} of {self.space.name!r} does not.")

    def flow(self, logits: Tensor | None = None) -> "CellFlow":
        """What the logits mean.

        Args:
            logits: In place of the parameters, (edges x operations,).
        """
        logits = self.logits if logits is None else logits
        return CellFlow(self, logits.view(-1, len(self.operations)).log_softmax(1))

    def expected_cost(self) -> Tensor:
        """Cost of the mean network, in the cost model's unit; a scalar."""
        return self.flow().expected_cost()

    def weights(self) -> Weights:
        """Of the operations of each edge, after the softmax."""
        rows = self._exact().log_weights.exp().split([len(edges) for edges in self.edges.values()])
        return {name: each.cpu().numpy() for name, each in zip(self.edges, rows, strict=True)}

    def probabilities(self) -> dict[str, NDArray[np.float64]]:
        """Of the options of each decision of `space`, as its trellis takes them."""
        picks = self._exact().picks()
        return {decision.name: each.exp().cpu().numpy() for decision, each in zip(self.space.decisions, picks, strict=True)}

    def _exact(self) -> "CellFlow":
        return self.flow(self.logits.detach().to(torch.float64))

    def most_probable(self, max_cost: float | None = None) -> Architecture:
        """The most probable network within a hard budget, as one of the supernet's space; DARTS's derivation without one.

        Raises:
            InfeasibleError: No network fits.
        """
        return self.joint.in_original(Trellis(self.space, self.costs).most_probable(self.probabilities(), max_cost))

    def figures(self) -> dict[str, float]:
        """What tells how far the search is: mean entropy of an edge in nats, and `collapse`, the share of the operations in the
        most probable cells that have nothing to learn."""
        rows = np.concatenate(list(self.weights().values()))
        entropy = -(rows * np.log(np.maximum(rows, 1e-300))).sum(1).mean()
        best = [list(decision.options.values())[int(row.argmax())]
                for decision, row in zip(self.space.decisions, self.probabilities().values(), strict=True)]
        return {"entropy": float(entropy),
                "collapse": float(np.mean([operation in self._free for pick in best for operation, _ in pick.terms]))}

    def term(self, operation: str, weight: Tensor) -> WeighedTerm:
        """An operation in the search's sum."""
        return WeighedTerm(weight, is_normalised=operation in self._normalised)


class CellFlow(NamedTuple):
    """The meaning of logits.

    Attributes:
        architecture: Whose logits.
        log_weights: Logarithm of the weight of each operation on each edge, (edges, operations).
    """

    architecture: CellArchitectureParameters
    log_weights: Tensor

    def mixture(self) -> CellMixture:
        """What `CellSupernet.mix` computes: every operation on every edge, by its weight; `none` adds nothing."""
        architecture = self.architecture
        rows = iter(self.log_weights.exp().unbind())
        mixture: dict[str, list[dict[Term, WeighedTerm]]] = {}
        for kind, edges in architecture.edges.items():
            states: dict[int, dict[Term, WeighedTerm]] = {}
            for state, source in edges:
                _, *weights = next(rows).unbind()
                states.setdefault(state, {}).update({
                    (operation, source): architecture.term(operation, weight)
                    for operation, weight in zip(architecture.operations[1:], weights, strict=True)})
            mixture[kind] = list(states.values())
        return mixture

    def picks(self) -> list[Tensor]:
        """Logarithm of the probability of each option of each state, (options,) each."""
        return [state(self.log_weights) for state in self.architecture.states]

    def expected_cost(self) -> Tensor:
        """Mean cost of a network whose states are picked independently, in the cost model's unit; a scalar."""
        costs = [(picks.exp() * state.get_buffer("cost").to(picks)).sum()  # no product in half precision
                 for state, picks in zip(self.architecture.states, self.picks(), strict=True)]
        return self.architecture.constant + torch.stack(costs).sum()

    def cost_variance(self) -> Tensor:
        """Of the cost over these networks, in the square of its unit; a scalar."""
        variances = []
        for state, picks in zip(self.architecture.states, self.picks(), strict=True):
            probabilities, cost = picks.exp(), state.get_buffer("cost").to(picks)
            variances.append((probabilities * (cost - (probabilities * cost).sum()) ** 2).sum())
        return torch.stack(variances).sum()


class _State(nn.Module):
    """The options of a state as tensors."""

    terms: Tensor  # which weights, (options, terms)
    refused: Tensor  # which are never taken, (options,); they have the cost 0

    def __init__(self, terms: list[list[int]], costs: list[float]) -> None:
        super().__init__()
        cost = torch.tensor(costs, dtype=torch.float64)
        self.register_buffer("terms", torch.tensor(terms), persistent=False)
        self.register_buffer("cost", cost.nan_to_num(posinf=0.0), persistent=False)
        self.register_buffer("refused", cost.isinf(), persistent=False)

    def forward(self, log_weights: Tensor) -> Tensor:
        """Logarithms of the weights, (edges, operations), to those of the options' probabilities, (options,)."""
        return log_weights.flatten()[self.terms].sum(1).masked_fill(self.refused, -math.inf).log_softmax(0)


def _networks(space: CellSpace) -> dict[str, Network]:
    """Every operation as the first cell has it on a state of its own."""
    (site, *_), _ = space.skeleton.sites({name: kind.concat or () for name, kind in space.kinds.items()})
    return {name: block_network(space.skeleton.operation(site.cell, name, INPUTS), site.inner)
            for name in space.skeleton.operations}


def prepare_cell_search(supernet: CellSupernet, costs: CostModel | None = None) -> CellArchitectureParameters:
    """Gives a supernet architecture parameters, as its module `architecture`; its cells' batch norms no longer learn a scale.

    Raises:
        InputError: As `CellArchitectureParameters`.
        InfeasibleError: Likewise.
    """
    architecture = CellArchitectureParameters(supernet.space, costs)
    for name, module in supernet.named_modules():
        if isinstance(module, _BatchNorm) and "/" in name.split(".")[0]:  # a cell's, not the stem's
            nn.init.ones_(module.weight).requires_grad_(False)
            nn.init.zeros_(module.bias).requires_grad_(False)
    supernet.architecture = architecture
    return architecture
