"""A genotype: which operations make up one cell, and how they are wired. Plain data, as search finds it and papers print it.

What states 0 and 1 are, which operation a name means, and which of them take a stride belongs to the skeleton that repeats the
cell: NASNet's 0 is the cell before, DARTS's the one before that.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from hwnas.errors import InputError
from hwnas.ir.block import Block
from hwnas.ir.layers import Add, Concat
from hwnas.ir.network import NetworkBuilder, Value

INPUTS = 2
"""States that a cell starts from: its two inputs."""


@dataclass(frozen=True)
class Genotype:
    """One cell; lists, as JSON has them, become tuples.

    Attributes:
        nodes: The states that the cell adds, counted from 2; each is the sum of its (operation, source state) pairs.
        concat: The states whose concatenation is the cell's output, in this order.
    """

    nodes: tuple[tuple[tuple[str, int], ...], ...]
    concat: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses what is no cell.

        Raises:
            InputError: Naming the state and the value.
        """
        nodes = tuple(_checked_node(number, node) for number, node in enumerate(_items("nodes", self.nodes), INPUTS))
        concat = _items("concat", self.concat)
        for state in concat:
            if not _is_state(state, INPUTS + len(nodes)):
                raise InputError(f"A cell concatenates states that it has, 0 to {INPUTS + len(nodes) - 1}, but concat names "
                                 f"{state!r}: choose one of these.")
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "concat", concat)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: `nodes` and `concat`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Any) -> Self:
        """Reads `to_dict`'s form.

        Raises:
            InputError: Not a mapping of `nodes` and `concat`, or no cell.
        """
        if not isinstance(document, Mapping) or set(document) != {"nodes", "concat"}:
            raise InputError(f"A genotype is a mapping of 'nodes' and 'concat' alone, but is {str(document)[:120]}.")
        return cls(**document)


def build_cell(net: NetworkBuilder, genotype: Genotype, inputs: tuple[Value, Value],
               operation: Callable[[str, int], Block]) -> Value:
    """Appends one cell to a network.

    Args:
        net: Where the layers go; those of an operation are named `state{n}_{side}_{operation}/...`.
        genotype: The cell.
        inputs: States 0 and 1.
        operation: Makes the block of an operation from its name and the state that it reads.

    Returns:
        The cell's output.

    Raises:
        InputError: An unknown operation, or states that are summed or concatenated without fitting each other.
    """
    states = list(inputs)
    for number, node in enumerate(genotype.nodes, INPUTS):
        terms = [operation(name, source).build(net.scoped(f"state{number}_{side}_{name}"), states[source])
                 for side, (name, source) in enumerate(node, 1)]
        states.append(net.add(f"state{number}", Add(), *terms) if len(terms) > 1 else terms[0])
    kept = [states[state] for state in genotype.concat]
    return net.add("concat", Concat(), *kept) if len(kept) > 1 else kept[0]


def _checked_node(number: int, node: Any) -> tuple[tuple[str, int], ...]:
    terms = _items(f"state {number}", node)
    for term in terms:
        is_pair = isinstance(term, list | tuple) and len(term) == 2 and isinstance(term[0], str) and term[0]
        if not is_pair or not _is_state(term[1], number):
            raise InputError(f"State {number} of a cell sums pairs of an operation's name and a state before it, 0 to "
                             f"{number - 1}, but has {term!r}: correct this pair.")
    return tuple((name, source) for name, source in terms)


def _items(what: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"A genotype's {what} must be a list of at least one item, but is {value!r}: fill it.")
    return tuple(value)


def _is_state(value: Any, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count
