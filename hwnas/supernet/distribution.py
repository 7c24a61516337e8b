"""A distribution over the networks of a space, learned by gradient: one logit for each option of each decision.

A state of the trellis shares the probability out among the options that it allows, by a softmax of their logits. So what the
paths through a state weigh, and what the mean network costs, follow from one pass over the trellis: exact where a cost depends
on earlier choices, and where these or a cost of infinity (a block that a device refuses) exclude options. The pass works on
logarithms, so no probability vanishes however sharp the distribution.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.costs import CostModel
from hwnas.ir.steps import Edge, Space
from hwnas.ir.trellis import Trellis
from hwnas.supernet.layered import Mixture, Weighed

Probabilities = Mapping[str, NDArray[np.float64]]
"""Decision name to one probability for each of its options."""


class ArchitectureParameters(nn.Module):
    """The logits, and the trellis that gives them their meaning. Its state is the logits alone.

    Attributes:
        space: The space.
        trellis: With the costs.
        logits: Of all options, one decision after the other, (options,); zero at the start, which is uniform.
        pieces: Where each decision's logits are.
        edges: For every step, those of finite cost that can be reached and lead to the end.
    """

    # States and edges are counted through all steps. A fixed layer and what is no option have logits too: 0 and minus infinity,
    # in this order after those of the options.
    options: Tensor  # logits of each state's options, (states with a step after them, most options)
    places: Tensor  # of the edges in `options` flattened, (edges,)
    sources: Tensor  # (edges,)
    targets: Tensor  # (edges,)
    costs: Tensor  # (edges,)

    def __init__(self, space: Space, costs: CostModel | None = None) -> None:
        """Compiles the trellis.

        Args:
            space: The space.
            costs: What edges cost; None for nothing. Edges of infinite cost are no edges.

        Raises:
            InputError: A cost is not a number of at least zero.
            InfeasibleError: Every path has an edge of infinite cost.
        """
        super().__init__()
        self.space = space
        self.trellis = Trellis(space, costs)  # checks the costs
        self.pieces, end = {}, 0
        for decision in space.decisions:
            self.pieces[decision.name] = slice(end, end := end + len(decision.options))
        self.logits = nn.Parameter(torch.zeros(end))
        self.edges = _live_edges(space, costs)
        self._counts = [len(edges) for edges in self.edges]
        self._free = parameter_free(space)
        self._constant = float(costs.constant) if costs else 0.0
        for name, tensor in self._compiled(costs).items():
            self.register_buffer(name, tensor, persistent=False)
        into = Counter(self.targets.tolist())
        self._is_alone = [into[target] == 1 for target in self.targets.tolist()]

    def _compiled(self, costs: CostModel | None) -> dict[str, Tensor]:
        fixed, none = len(self.logits), len(self.logits) + 1
        most = max(len(step.options) for step in self.space.steps)
        options: list[list[int]] = []
        places, sources, targets = [], [], []
        tensors = {}
        for position, (step, edges) in enumerate(zip(self.space.steps, self.edges, strict=True)):
            first, onward = len(options), len(options) + len(step.inputs)
            options += [[none] * most for _ in step.inputs]
            into: list[list[int]] = [[] for _ in step.outputs]
            for number, edge in enumerate(edges):
                source = first + edge.source
                options[source][edge.option] = self.pieces[step.name].start + edge.option if step.is_decision else fixed
                places.append(source * most + edge.option)
                sources.append(source)
                targets.append(onward + edge.target)
                into[edge.target].append(number)
            if len(into) > 1:
                width = max(map(len, into))
                tensors[f"incoming{position}"] = torch.tensor([each + [len(edges)] * (width - len(each)) for each in into])
        of_edges = [float(costs.edge_cost(edge)) if costs else 0.0 for edges in self.edges for edge in edges]
        return tensors | {"options": torch.tensor(options), "places": torch.tensor(places), "sources": torch.tensor(sources),
                          "targets": torch.tensor(targets), "costs": torch.tensor(of_edges)}

    def flow(self, logits: Tensor | None = None) -> "Flow":
        """Follows the probability through the trellis.

        Args:
            logits: In place of the parameters, (options,).
        """
        logits = self.logits if logits is None else logits
        certain, never = logits.new_zeros(1), logits.new_full((1,), -math.inf)
        chosen = torch.cat([logits, certain, never])[self.options].log_softmax(1).flatten()[self.places]
        passed = [certain]  # logarithm of the probability of each state, step by step
        first = 0
        of_steps = zip(chosen.split(self._counts), self.sources.split(self._counts), strict=True)
        for position, (part, sources) in enumerate(of_steps):
            incoming, states = self._buffers.get(f"incoming{position}"), passed[-1]
            if incoming is None:  # all paths meet
                passed.append(certain)
            else:
                taken = states[sources - first] + part
                passed.append(torch.cat([taken, never])[incoming].logsumexp(1))
            first += len(states)
        states = torch.cat(passed)
        return Flow(self, states[self.sources] + chosen, states)

    def _sums(self, position: int, of_edges: Tensor) -> Tensor:
        """Over the edges into each state after a step, (states,)."""
        incoming = self._buffers.get(f"incoming{position}")
        if incoming is None:  # all paths meet
            return of_edges.sum().reshape(1)
        return torch.cat([of_edges, of_edges.new_zeros(1)])[incoming].sum(1)

    def expected_cost(self) -> Tensor:
        """Cost of the mean network, in the cost model's unit; a scalar. Equals `Trellis.expected_cost`."""
        return self.flow().expected_cost()

    def probabilities(self) -> dict[str, NDArray[np.float64]]:
        """Of the options of each decision, as the trellis takes them."""
        logits = self.logits.detach().to("cpu", torch.float64)
        return {name: logits[piece].softmax(0).numpy() for name, piece in self.pieces.items()}

    def most_probable(self, max_cost: float | None = None) -> Architecture:
        """The most probable network within a hard budget; exact.

        Raises:
            InfeasibleError: No network fits.
        """
        return self.trellis.most_probable(self.probabilities(), max_cost)

    def figures(self) -> dict[str, float]:
        """What tells how far the search is: mean entropy of a decision in nats, and `collapse`."""
        probabilities = self.probabilities()
        entropy = np.mean([-(row * np.log(np.maximum(row, 1e-300))).sum() for row in probabilities.values()])
        return {"entropy": float(entropy), "collapse": _collapse(probabilities, self._free)}


class Flow(NamedTuple):
    """What share of the networks takes each edge and passes each state.

    Attributes:
        architecture: The trellis.
        taken: Logarithm of the probability of each live edge, (edges,).
        passed: Logarithm of the probability of each state, (states,).
    """

    architecture: ArchitectureParameters
    taken: Tensor
    passed: Tensor

    def expected_cost(self) -> Tensor:
        return self.architecture._constant + (self.taken.exp() * self.architecture.costs).sum()  # no product in half precision

    def cost_variance(self) -> Tensor:
        """Of the cost over the networks, in the square of its unit; a scalar."""
        architecture = self.architecture
        of_edges = (self._weights(), architecture.sources, architecture.targets, architecture.costs)
        mean = variance = self.passed.new_zeros(1)  # of the cost so far, given that a state is passed
        first = 0
        of_steps = zip(*(each.split(architecture._counts) for each in of_edges), strict=True)
        for position, (weights, sources, targets, costs) in enumerate(of_steps):
            onward = first + len(mean)
            arriving, spread = mean[sources - first] + costs, variance[sources - first]
            mean = architecture._sums(position, weights * arriving)
            variance = architecture._sums(position, weights * (spread + (arriving - mean[targets - onward]) ** 2))
            first = onward
        ends = self.passed[first:].exp()
        return (ends * (variance + (mean - (ends * mean).sum()) ** 2)).sum()

    def _weights(self) -> Tensor:
        """Of the edges into each state, given that it is passed, (edges,)."""
        return (self.taken - self.passed[self.architecture.targets]).exp()

    def mixture(self) -> Mixture:
        """What `LayeredSupernet.mix` computes: in each state the mean of what arrives there, given that the state is passed.

        Weights into a state sum to one, so a choice between states takes effect where their paths meet again: blocks
        normalise, and would not notice a state that is merely scaled.
        """
        architecture = self.architecture
        weights = zip(self._weights().unbind(), architecture._is_alone, strict=True)
        return [{(edge.source, edge.option): Weighed(1.0 if is_alone else weight)
                 for edge, (weight, is_alone) in zip(edges, weights, strict=False)} for edges in architecture.edges]


def _live_edges(space: Space, costs: CostModel | None) -> list[list[Edge]]:
    """The edges of finite cost that can be reached and lead to the end, for every step."""
    alive = set(range(len(space.steps[-1].outputs)))
    onward = []
    for step in reversed(space.steps):
        onward.append([edge for edge in step.edges
                       if edge.target in alive and (costs is None or math.isfinite(costs.edge_cost(edge)))])
        alive = {edge.source for edge in onward[-1]}
    live, reached = [], {0}
    for edges in reversed(onward):
        live.append([edge for edge in edges if edge.source in reached])
        reached = {edge.target for edge in live[-1]}
    return live


def parameter_free(space: Space) -> dict[str, NDArray[np.bool_]]:
    """Which options have nothing to learn (skips, pools), for every decision that offers some, but not only such options."""
    free = {}
    for step in space.steps:
        learns = {edge.option for edge in step.edges if any(part.network.parameters for part in edge.parts)}
        if step.is_decision and 0 < len(learns) < len(step.options):
            free[step.name] = np.array([option not in learns for option in range(len(step.options))])
    return free


def collapse(space: Space, probabilities: Probabilities) -> float:
    """Share of decisions whose most probable option has nothing to learn, among those that offer such an option.

    Differentiable search tends to drown in skips, since they let gradients through from the first step on, before the other
    options have learned anything ("Understanding and Robustifying Differentiable Architecture Search", Zela et al.,
    arXiv 1909.09656). 0 where no decision offers one.
    """
    return _collapse(probabilities, parameter_free(space))


def _collapse(probabilities: Probabilities, free: Mapping[str, NDArray[np.bool_]]) -> float:
    return float(np.mean([mask[probabilities[name].argmax()] for name, mask in free.items()])) if free else 0.0


def probabilities_to_dict(space: Space, probabilities: Probabilities) -> dict[str, dict[str, float]]:
    """JSON-able form, readable by a person: decision to option to probability."""
    return {decision.name: dict(zip(decision.options, map(float, probabilities[decision.name]), strict=True))
            for decision in space.decisions}


def probabilities_from_dict(space: Space, document: Any) -> dict[str, NDArray[np.float64]]:
    """Reads the form that `probabilities_to_dict` writes.

    Raises:
        InputError: It is not of this space, or not probabilities.
    """
    if not isinstance(document, Mapping) or set(document) != {decision.name for decision in space.decisions}:
        raise InputError(f"Architecture parameters must have the decisions of space {space.name!r} and no others, but are "
                         f"{str(document)[:120]!r}: take those that were trained for it.")
    found = {}
    for decision in space.decisions:
        row = document[decision.name]
        if not isinstance(row, Mapping) or set(row) != set(decision.options):
            raise InputError(f"Architecture parameters must give each option of decision {decision.name!r} a probability "
                             f"({', '.join(decision.options)}), but are {str(row)[:120]!r}.")
        values = [row[option] for option in decision.options]
        if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 1e-3:
            raise InputError(f"The probabilities of decision {decision.name!r} must be 0 to 1 and sum to 1, but are {values}.")
        found[decision.name] = np.array(values, np.float64) / sum(values)
    return found
