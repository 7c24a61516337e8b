"""A search space: layers in order, some fixed, some a decision between options.

The space is checked as a whole when it is made: every option must take every shape that can reach it, so that any
combination of options is a network, the size is a plain product, and nothing can fail later.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.blocks import Block, block_from_dict
from hwnas.ir.network import Network, build_network
from hwnas.ir.shape import TensorShape

SCHEMA = "hwnas.space/1"  # 1: 2026-11, first
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")


@dataclass(frozen=True)
class Fixed:
    """A layer that every network of the space has."""

    name: str
    block: Block

    def __post_init__(self) -> None:
        if not isinstance(self.block, Block):
            raise InputError(f"A fixed layer must be a block, but {self.name!r} is {self.block!r}.")

    @property
    def options(self) -> Mapping[str, Block]:
        return {self.block.kind: self.block}


@dataclass(frozen=True)
class Decision:
    """A layer that the search chooses.

    Attributes:
        name: Unique within the space.
        options: Option name to block. A sequence of pairs is taken too, in which a repeated name is noticed.
    """

    name: str
    options: Mapping[str, Block]

    def __init__(self, name: str, options: Mapping[str, Block] | Iterable[tuple[str, Block]]) -> None:
        try:
            pairs = [(option, block) for option, block in (options.items() if isinstance(options, Mapping) else options)]
        except (TypeError, ValueError):
            raise InputError(f"Options must map names to blocks, but those of decision {name!r} are {options!r}.") from None
        if not pairs:
            raise InputError(f"A decision needs at least one option, but {name!r} has none: add one or make it fixed.")
        seen: dict[Block, str] = {}
        for option, block in pairs:
            if [other for other, _ in pairs].count(option) > 1:
                raise InputError(f"Option names must be unique, but decision {name!r} has {option!r} twice: rename one.")
            if not isinstance(block, Block):
                raise InputError(f"An option must be a block, but {option!r} of decision {name!r} is {block!r}.")
            if block in seen:
                raise InputError(f"Options must differ, but {seen[block]!r} and {option!r} of decision {name!r} are the same "
                                 f"block, {block.signature}: remove one.")
            seen[block] = option
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", dict(pairs))

    def __hash__(self) -> int:
        return hash((self.name, frozenset(self.options.items())))  # equality ignores the order


@dataclass(frozen=True)
class Edge:
    """One option taken at one input shape: an edge of the trellis.

    Attributes:
        source: Index of the input shape among the step's `inputs`.
        option: Index of the option among the step's `options`.
        target: Index of the output shape among the next step's inputs (the step's `outputs`).
        block: What the option is.
        input_shape: What it gets.
    """

    source: int
    option: int
    target: int
    block: Block
    input_shape: TensorShape

    @property
    def workload(self) -> str:
        """What is measured for this edge: block and input shape in one readable line. Equal work has equal text."""
        return f"{self.block.signature} @ {self.input_shape}"


@dataclass(frozen=True)
class Step:
    """One layer of the trellis.

    Attributes:
        name: The layer's name.
        is_decision: False for a fixed layer, which has one option.
        options: Option names.
        inputs: The shapes that can reach this layer.
        outputs: The shapes that can leave it.
        edges: One for every input and option, ordered by input, then option.
    """

    name: str
    is_decision: bool
    options: tuple[str, ...]
    inputs: tuple[TensorShape, ...]
    outputs: tuple[TensorShape, ...]
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class SearchSpace:
    """A layered space of networks.

    Attributes:
        name: Shown to people and stored in files.
        input_shape: Channels, height, width of one image.
        layers: Fixed layers and decisions, from input to output.
        description: One line for listings.

    Raises:
        InputError: An empty or duplicate name, no decision, or an option that cannot take a shape that reaches it.
    """

    name: str
    input_shape: TensorShape
    layers: tuple[Fixed | Decision, ...]
    description: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", _checked_shape(self.input_shape))
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            if not isinstance(layer, Fixed | Decision):
                raise InputError(f"A space's layers must be fixed layers and decisions, but {self.name!r} has {layer!r}.")
        names = [layer.name for layer in self.layers]
        for text in [self.name, *names, *(option for layer in self.decisions for option in layer.options)]:
            if not isinstance(text, str) or not _NAME.fullmatch(text):
                raise InputError(f"A name must be letters, digits, '_', '-' or '+', but space {self.name!r} has {text!r}: "
                                 "rename it.")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"Layer names must be unique, but space {self.name!r} has {name!r} twice: rename one.")
        if not self.decisions:
            raise InputError(f"A space needs at least one decision, but {self.name!r} has none.")
        _ = self.steps  # checks every shape

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """The layers that are chosen, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Decision))

    @cached_property
    def size(self) -> int:
        """Exact number of networks."""
        return math.prod(len(decision.options) for decision in self.decisions)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of input shape and layers (not of name and description)."""
        content = {key: value for key, value in self.to_dict().items() if key in ("input_shape", "layers")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The trellis: for every layer the shapes that reach it and one edge for every shape and option."""
        steps = []
        inputs: tuple[TensorShape, ...] = (self.input_shape,)
        for layer in self.layers:
            found: dict[TensorShape, int] = {}
            edges = []
            for source, shape in enumerate(inputs):
                for index, (option, block) in enumerate(layer.options.items()):
                    output = self._output_shape(layer, option, block, shape)
                    target = found.setdefault(output, len(found))
                    edges.append(Edge(source, index, target, block, shape))
            steps.append(Step(layer.name, isinstance(layer, Decision), tuple(layer.options), inputs, tuple(found),
                              tuple(edges)))
            inputs = tuple(found)
        return tuple(steps)

    def _output_shape(self, layer: Fixed | Decision, option: str, block: Block, shape: TensorShape) -> TensorShape:
        try:
            return block_network(block, shape).output_shape
        except InputError as error:
            where = f"decision {layer.name!r}, option {option!r}" if isinstance(layer, Decision) else f"layer {layer.name!r}"
            raise InputError(f"Space {self.name!r}, {where}, cannot take the shape {shape} that reaches it: "
                             f"{str(error).split(': ', 1)[-1]}.") from None

    def architecture(self, choices: Mapping[str, str]) -> Architecture:
        """Makes a checked architecture from decision name to option name.

        Raises:
            InputError: A decision is missing or unknown, or an option does not exist.
        """
        return self.check(Architecture(self.name, self.hash, choices))

    def check(self, architecture: Architecture) -> Architecture:
        """Returns the architecture with its choices in the space's order, if it belongs to this space.

        Raises:
            InputError: It is of another space, or names a decision or option that this space does not have.
        """
        if architecture.space_hash != self.hash:
            raise InputError(f"An architecture must be of the space it is used with, but it is of {architecture.space!r} "
                             f"({architecture.space_hash[:12]}) and the space is {self.name!r} ({self.hash[:12]}): use the "
                             "space that it was made for.")
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
        return Architecture(self.name, self.hash, {name: architecture.choices[name] for name in known})

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

    def blocks(self, architecture: Architecture) -> list[tuple[str, Block]]:
        """Layer name and block, from input to output."""
        choices = self.check(architecture).choices
        return [(layer.name, layer.options[choices[layer.name]] if isinstance(layer, Decision) else layer.block)
                for layer in self.layers]

    def network(self, architecture: Architecture) -> Network:
        """The standalone network of an architecture; node names start with the layer's name."""
        return build_network(self.input_shape, self.blocks(architecture))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, which `space_from_dict` reads back."""
        layers = [{"name": layer.name, "options": {name: block.to_dict() for name, block in layer.options.items()}}
                  if isinstance(layer, Decision) else {"name": layer.name, "block": layer.block.to_dict()}
                  for layer in self.layers]
        return {"schema": SCHEMA, "name": self.name, "input_shape": list(self.input_shape), "layers": layers,
                "description": self.description}


def block_network(block: Block, shape: TensorShape) -> Network:
    """One block as a network of its own: what is measured for a latency table."""
    return build_network(shape, [("block", block)])


def space_from_dict(document: Any) -> SearchSpace:
    """Reads the form that `SearchSpace.to_dict` writes.

    Raises:
        InputError: The document is not a space, or the space is not valid.
    """
    if not isinstance(document, Mapping) or document.get("schema", SCHEMA) != SCHEMA:
        found = f"has schema {document['schema']!r}" if isinstance(document, Mapping) else f"is {str(document)[:80]!r}"
        raise InputError(f"A space must be a mapping of schema {SCHEMA!r}, but this one {found}.")
    missing = [key for key in ("name", "input_shape", "layers") if key not in document]
    if missing or not isinstance(document["layers"], Sequence):
        raise InputError(f"A space needs name, input_shape and a list of layers; {(missing or ['layers'])[0]!r} is missing "
                         "or malformed.")
    layers = tuple(_layer_from_dict(layer) for layer in document["layers"])
    return SearchSpace(document["name"], document["input_shape"], layers, str(document.get("description", "")))


def _layer_from_dict(document: Any) -> Fixed | Decision:
    if not isinstance(document, Mapping) or not isinstance(document.get("name"), str) or (
            ("block" in document) == ("options" in document)):
        raise InputError(f"A layer is a name with either a block or options, but is {str(document)[:120]!r}.")
    if "block" in document:
        return Fixed(document["name"], _block_from_dict(document["block"], f"Layer {document['name']!r}"))
    if not isinstance(document["options"], Mapping):
        raise InputError(f"The options of decision {document['name']!r} must be a mapping from name to block.")
    return Decision(document["name"], [
        (str(option), _block_from_dict(block, f"Decision {document['name']!r}, option {str(option)!r}"))
        for option, block in document["options"].items()])


def _block_from_dict(document: Any, where: str) -> Block:
    try:
        return block_from_dict(document)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _checked_shape(shape: Any) -> TensorShape:
    if not isinstance(shape, Sequence) or len(shape) != 3 or not all(
            isinstance(size, int) and not isinstance(size, bool) and 1 <= size < 1 << 16 for size in shape):
        raise InputError(f"An input shape is three whole numbers of at least 1 (channels, height, width), but is {shape!r}.")
    return TensorShape(*shape)
