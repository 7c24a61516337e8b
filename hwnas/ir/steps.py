"""What every search space is to the trellis: steps of edges, each edge an option and the work it adds.

`SearchSpace` (layers in order) and `CellSpace` (cells that repeat) say how their steps come about; everything that counts,
draws, predicts or searches sees the steps alone.
"""

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Block, Part
from hwnas.ir.network import Network
from hwnas.ir.shape import TensorShape

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
"""What spaces, decisions and options may be called: names travel as file names, ONNX nodes and keys of weights."""


class Choice(Protocol):
    """A decision as far as a path is concerned: its name and the names of its options, in order."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> Collection[str]: ...


@dataclass(frozen=True)
class Edge:
    """One option taken in one state: an edge of the trellis.

    Attributes:
        source: Index of the state among the step's `inputs`.
        option: Index of the option among the step's `options`.
        target: Index of the state among the next step's inputs (the step's `outputs`).
        parts: The blocks that it adds to the network, each at its input shape: one for a plain block, several for a
            sequence or a decision that cells repeat.
    """

    source: int
    option: int
    target: int
    parts: tuple[Part, ...]

    @property
    def block(self) -> Block:
        """The block of an edge that has one part."""
        (part,) = self.parts
        return part.block

    @property
    def input_shape(self) -> TensorShape:
        """What the block of an edge that has one part gets."""
        (part,) = self.parts
        return part.input_shape

    @property
    def workload(self) -> str:
        """What is measured for an edge that has one part."""
        (part,) = self.parts
        return part.workload


@dataclass(frozen=True)
class Step:
    """One layer of the trellis.

    Attributes:
        name: The layer's name.
        is_decision: False for a fixed layer, which has one option.
        options: Option names.
        inputs: The states that can reach this layer: the tensor shape, and whatever else decides what may follow.
        outputs: The states that can leave it.
        edges: Ordered by input, then option; none for an option that a state does not allow. All lead to the end.
    """

    name: str
    is_decision: bool
    options: tuple[str, ...]
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]
    edges: tuple[Edge, ...]

    @cached_property
    def is_full(self) -> bool:
        """Whether every state allows every option."""
        return len(self.edges) == len(self.inputs) * len(self.options)

    @cached_property
    def reached_by_shapes(self) -> int:
        """How many different shapes reach the layer."""
        return len({edge.parts[0].input_shape for edge in self.edges if edge.parts})

    @cached_property
    def numbers(self) -> NDArray[np.intp]:
        """Index of the edge for every state and option, -1 where there is none; (inputs, options)."""
        numbers = np.full((len(self.inputs), len(self.options)), -1, np.intp)
        for number, edge in enumerate(self.edges):
            numbers[edge.source, edge.option] = number
        return numbers

    @cached_property
    def targets(self) -> NDArray[np.intp]:
        """State that the edge of every state and option leads to, -1 where there is none; (inputs, options)."""
        targets = np.append([edge.target for edge in self.edges], -1).astype(np.intp)
        return targets[self.numbers]

    def edge(self, source: int, option: int) -> Edge | None:
        """The edge of a state and an option, if the state allows it."""
        number = int(self.numbers[source, option])
        return self.edges[number] if number >= 0 else None


class Space:
    """A set of networks, each a path through `steps`; made by a subclass, which is a frozen dataclass.

    Attributes:
        name: Shown to people and stored in files.
        input_shape: Channels, height, width of one image.
        description: One line for listings.
    """

    name: str
    input_shape: TensorShape
    description: str

    @property
    def decisions(self) -> tuple[Choice, ...]:
        """What is chosen, in the order of the steps."""
        raise NotImplementedError

    @property
    def steps(self) -> tuple[Step, ...]:
        """The trellis: for every layer the states that reach it, and one edge for every option that a state allows."""
        raise NotImplementedError

    @property
    def hash(self) -> str:
        """SHA-256 of what makes the networks (not of name and description)."""
        raise NotImplementedError

    def network(self, architecture: Architecture) -> Network:
        """The standalone network of an architecture."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, from which the space can be made again."""
        raise NotImplementedError

    @cached_property
    def size(self) -> int:
        """Exact number of networks: paths from the input to the end."""
        ways = Counter({0: 1})
        for step in self.steps:
            onward: Counter[int] = Counter()
            for edge in step.edges:
                onward[edge.target] += ways[edge.source]
            ways = onward
        return ways.total()

    @cached_property
    def classes(self) -> int:
        """Width of what every network gives: the number of classes of a classifier."""
        return self.network(self.any_architecture).output_shape.channels

    @cached_property
    def any_architecture(self) -> Architecture:
        """One network of the space, for questions that all of them answer alike."""
        row, state = [], 0
        for step in self.steps:
            edge = next(edge for edge in step.edges if edge.source == state)
            state = edge.target
            if step.is_decision:
                row.append(edge.option)
        return self.architectures(np.array([row]))[0]

    def architecture(self, choices: Mapping[str, str]) -> Architecture:
        """Makes a checked architecture from decision name to option name.

        Raises:
            InputError: A decision is missing or unknown, an option does not exist, or may not follow the ones before it.
        """
        return self.check(Architecture(self.name, self.hash, choices))

    def check(self, architecture: Architecture) -> Architecture:
        """Returns the architecture with its choices in the space's order, if it belongs to this space.

        Raises:
            InputError: It is of another space, names a decision or option that this space does not have, or combines options
                that exclude each other.
        """
        if architecture.space_hash != self.hash:
            raise InputError(f"An architecture must be of the space it is used with, but it is of {architecture.space!r} "
                             f"({architecture.space_hash[:12]!r}) and the space is {self.name!r} ({self.hash[:12]!r}): use "
                             "the space that it was made for.")
        known = {decision.name: decision for decision in self.decisions}
        for name, option in architecture.choices.items():
            if name not in known:
                raise InputError(f"An architecture names this space's decisions, but {self.name!r} has no decision {name!r}.")
            if option not in known[name].options:
                raise InputError(f"Decision {name!r} has the options {', '.join(known[name].options)}, but the architecture "
                                 f"chooses {option!r}.")
        missing = [name for name in known if name not in architecture.choices]
        if missing:
            raise InputError(f"An architecture chooses an option for every decision, but has none for {missing[0]!r}.")
        checked = Architecture(self.name, self.hash, {name: architecture.choices[name] for name in known})
        if not self._is_full:
            self._path(checked)
        return checked

    def path(self, architecture: Architecture) -> list[Edge]:
        """The edges of an architecture, one for every step.

        Raises:
            InputError: As `check`.
        """
        return self._path(self.check(architecture))

    def architectures(self, indices: NDArray[np.integer[Any]]) -> list[Architecture]:
        """Turns option indices of shape (N, decisions) into architectures."""
        names = [decision.name for decision in self.decisions]
        options = [tuple(decision.options) for decision in self.decisions]
        return [Architecture(self.name, self.hash, {name: choice[index] for name, choice, index
                                                    in zip(names, options, row, strict=True)})
                for row in np.asarray(indices).tolist()]

    def indices(self, architectures: Iterable[Architecture]) -> NDArray[np.int64]:
        """Option indices of shape (N, decisions).

        Raises:
            InputError: An architecture is not of this space.
        """
        positions = [{option: index for index, option in enumerate(decision.options)} for decision in self.decisions]
        rows = [[position[option] for position, option in zip(positions, self.check(one).choices.values(), strict=True)]
                for one in architectures]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(positions))

    def passed(self, indices: NDArray[np.int64]) -> Iterator[tuple[Step, NDArray[np.intp]]]:
        """Walks the trellis with networks of shape (N, decisions) at once: every step, and which of its edges each passes."""
        states = np.zeros(len(indices), dtype=np.intp)
        decision = 0
        for step in self.steps:
            chosen = indices[:, decision] if step.is_decision else np.zeros(len(indices), dtype=np.int64)
            decision += step.is_decision
            yield step, step.numbers[states, chosen]
            states = step.targets[states, chosen]

    @cached_property
    def measured_parts(self) -> dict[str, Part]:
        """Every distinct block that takes time, by workload, in the space's order: what a latency table measures."""
        return {part.workload: part for step in self.steps for edge in step.edges for part in edge.parts
                if not part.block.is_free}

    @cached_property
    def _is_full(self) -> bool:
        return all(step.is_full for step in self.steps)

    def _path(self, architecture: Architecture) -> list[Edge]:
        edges: list[Edge] = []
        state = 0
        for step in self.steps:
            option = architecture.choices[step.name] if step.is_decision else step.options[0]
            edge = step.edge(state, step.options.index(option))
            if edge is None:
                allowed = [step.options[edge.option] for edge in step.edges if edge.source == state]
                raise InputError(f"Decision {step.name!r} of space {self.name!r} may only choose {', '.join(allowed)} after the "
                                 f"decisions before it, but the architecture chooses {option!r}.")
            edges.append(edge)
            state = edge.target
        return edges


def without_dead_ends(space: str, steps: list[Step], remedy: str) -> tuple[Step, ...]:
    """The steps without the edges from which no way leads to the end, and without the states that nothing reaches then.

    Args:
        space: Its name.
        steps: From the input on.
        remedy: What to do about an option that no way takes.

    Raises:
        InputError: No way is left, or an option that no way takes.
    """
    if all(step.is_full for step in steps):
        return tuple(steps)
    alive = [set(range(len(steps[-1].outputs)))]  # states from which the end can be reached
    for step in reversed(steps):
        alive.append({edge.source for edge in step.edges if edge.target in alive[-1]})
    alive.reverse()
    if not alive[0]:
        raise InputError(f"A space needs at least one network, but in {space!r} no combination of options is allowed.")
    kept, reached = [], {0: 0}  # state as it was to its number now
    for step, onward in zip(steps, alive[1:], strict=True):
        edges = [edge for edge in step.edges if edge.source in reached and edge.target in onward]
        unused = set(range(len(step.options))) - {edge.option for edge in edges}
        if unused:
            raise InputError(f"Every option must be possible in some network, but {step.options[min(unused)]!r} of decision "
                             f"{step.name!r} of space {space!r} never is: {remedy}.")
        numbers: dict[int, int] = {}
        edges = [Edge(reached[edge.source], edge.option, numbers.setdefault(edge.target, len(numbers)), edge.parts)
                 for edge in edges]
        kept.append(Step(step.name, step.is_decision, step.options, tuple(step.inputs[state] for state in reached),
                         tuple(step.outputs[state] for state in numbers), tuple(edges)))
        reached = numbers
    return tuple(kept)
