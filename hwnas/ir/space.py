"""A search space: layers in order, some fixed, some a decision between options.

The space is checked as a whole when it is made: every option must take every shape that can reach it, so that any
combination of options is a network, the size is a plain product, and nothing can fail later.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Block
from hwnas.ir.blocks import Resolution, block_from_dict
from hwnas.ir.network import Network, build_network
from hwnas.ir.shape import TensorShape, checked_shape
from hwnas.ir.steps import NAME, Edge, Space, Step, without_dead_ends

SCHEMA = "hwnas.space/1"  # 1: 2026-11, first


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

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "block": self.block.to_dict()}


@dataclass(frozen=True)
class Decision:
    """A layer that the search chooses.

    Attributes:
        name: Unique within the space.
        options: Option name to block. A sequence of pairs is taken too, in which a repeated name is noticed.
        after: Option name to those options of the decision before this one that it may follow; options that are not named
            may follow any. So "a skipped block is followed by skipped blocks" makes depth a choice without counting one
            network twice.
        where_fits: Leave an option out where it cannot take the shape that arrives, instead of refusing the space.
    """

    name: str
    options: Mapping[str, Block]
    after: Mapping[str, tuple[str, ...]]
    where_fits: bool

    def __init__(self, name: str, options: Mapping[str, Block] | Iterable[tuple[str, Block]], *,
                 after: Mapping[str, Iterable[str]] | None = None, where_fits: bool = False) -> None:
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
        conditions = _checked_conditions(name, after or {})
        for option in conditions:
            if option not in dict(pairs):
                raise InputError(f"A condition must be on an option of its decision, but {name!r} has no option {option!r}.")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", dict(pairs))
        object.__setattr__(self, "after", conditions)
        object.__setattr__(self, "where_fits", bool(where_fits))

    def __hash__(self) -> int:
        return hash((self.name, frozenset(self.options.items())))  # equality ignores the order

    def allowed_after(self, previous: str) -> tuple[str, ...]:
        """The options that may follow an option of the decision before."""
        return tuple(option for option in self.options if previous in self.after.get(option, (previous,)))

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"name": self.name, "options": {name: block.to_dict() for name, block in self.options.items()}}
        if self.after:
            document["after"] = {option: list(allowed) for option, allowed in self.after.items()}
        if self.where_fits:
            document["where_fits"] = True
        return document


def _checked_conditions(decision: str, after: Any) -> dict[str, tuple[str, ...]]:
    wrong = not isinstance(after, Mapping) or [
        allowed for allowed in after.values() if not isinstance(allowed, list | tuple | set | frozenset | Mapping)]
    if wrong:
        raise InputError(f"The conditions ('after') of decision {decision!r} must map an option to the list of options that it "
                         f"may follow, but are {str(after)[:120]}.")
    return {option: tuple(allowed) for option, allowed in after.items()}


class Conditioned(NamedTuple):
    """A state of a space with conditions: what flows, and which options of the next decision may follow."""

    shape: TensorShape
    allowed: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.shape} ({len(self.allowed)} options follow)"


@dataclass(frozen=True)
class SearchSpace(Space):
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
        object.__setattr__(self, "input_shape", checked_shape(self.input_shape))
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            if not isinstance(layer, Fixed | Decision):
                raise InputError(f"A space's layers must be fixed layers and decisions, but {self.name!r} has {layer!r}.")
        names = [layer.name for layer in self.layers]
        for text in [self.name, *names, *(option for layer in self.decisions for option in layer.options)]:
            if not isinstance(text, str) or not NAME.fullmatch(text):
                raise InputError(f"A name must be letters, digits, '_', '-' or '+', but space {self.name!r} has {text!r}: "
                                 "rename it.")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"Layer names must be unique, but space {self.name!r} has {name!r} twice: rename one.")
        if not self.decisions:
            raise InputError(f"A space needs at least one decision, but {self.name!r} has none.")
        self._check_conditions()
        for layer in self.layers[1:]:
            if any(isinstance(block, Resolution) for block in layer.options.values()):
                raise InputError(f"A resolution is that of the images, so it must be the first layer, but space {self.name!r} "
                                 f"has one at {layer.name!r}: move it to the front.")
        _ = self.steps  # checks every shape

    def _check_conditions(self) -> None:
        before: Decision | None = None
        for decision in self.decisions:
            for option, allowed in decision.after.items():
                unknown = [name for name in allowed if before is None or name not in before.options]
                if unknown or before is None:
                    raise InputError(f"A condition names options of the decision before, but decision {decision.name!r}, option "
                                     f"{option!r}, may follow {', '.join(allowed)}, and "
                                     + (f"{before.name!r} has no {unknown[0]!r}." if before else "there is none before it."))
            before = decision

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """The layers that are chosen, in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Decision))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of input shape and layers (not of name and description)."""
        content = {key: value for key, value in self.to_dict().items() if key in ("input_shape", "layers")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return without_dead_ends(self.name, list(self._all_steps()), "remove it or loosen its conditions")

    def _all_steps(self) -> Iterator[Step]:
        """Follows every shape that can reach a layer through every option that may be chosen there."""
        conditions = {decision.name: following for decision, following in zip(self.decisions, self.decisions[1:], strict=False)
                      if following.after}
        states: tuple[TensorShape | Conditioned, ...] = (self.input_shape,)
        for layer in self.layers:
            found: dict[TensorShape | Conditioned, int] = {}
            edges = []
            for source, state in enumerate(states):
                shape, allowed = state if isinstance(state, Conditioned) else (state, None)
                for index, (option, block) in enumerate(layer.options.items()):
                    if isinstance(layer, Decision) and allowed is not None and option not in allowed:
                        continue
                    output = self._output_shape(layer, option, block, shape)
                    if output is None:
                        continue
                    following = conditions.get(layer.name)
                    onward = allowed if isinstance(layer, Fixed) else following.allowed_after(option) if following else None
                    target = found.setdefault(output if onward is None else Conditioned(output, onward), len(found))
                    edges.append(Edge(source, index, target, block.parts(shape)))
            yield Step(layer.name, isinstance(layer, Decision), tuple(layer.options), states, tuple(found), tuple(edges))
            states = tuple(found)

    def _output_shape(self, layer: Fixed | Decision, option: str, block: Block, shape: TensorShape) -> TensorShape | None:
        try:
            return block.output_shape(shape)
        except InputError as error:
            if isinstance(layer, Decision) and layer.where_fits:
                return None
            where = f"decision {layer.name!r}, option {option!r}" if isinstance(layer, Decision) else f"layer {layer.name!r}"
            raise InputError(f"Space {self.name!r}, {where}, cannot take the shape {shape} that reaches it: "
                             f"{str(error).split(': ', 1)[-1]}.") from None

    def blocks(self, architecture: Architecture) -> list[tuple[str, Block]]:
        """Layer name and block, from input to output."""
        choices = self.check(architecture).choices
        return [(layer.name, layer.options[choices[layer.name]] if isinstance(layer, Decision) else layer.block)
                for layer in self.layers]

    def network(self, architecture: Architecture) -> Network:
        """The standalone network of an architecture; node names start with the layer's name.

        Where the resolution is searched, the network takes images of the one that was chosen.
        """
        blocks = self.blocks(architecture)
        shape = self.input_shape
        if isinstance(blocks[0][1], Resolution):
            shape = blocks.pop(0)[1].output_shape(shape)
        return build_network(shape, blocks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, which `space_from_dict` reads back."""
        return {"schema": SCHEMA, "name": self.name, "input_shape": list(self.input_shape),
                "layers": [layer.to_dict() for layer in self.layers], "description": self.description}


def search_space_from_dict(document: Mapping[str, Any]) -> SearchSpace:
    """Reads the form that `SearchSpace.to_dict` writes.

    Raises:
        InputError: The document is not a space of layers, or the space is not valid.
    """
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
    unknown = set(document) - ({"name", "block"} if "block" in document else {"name", "options", "after", "where_fits"})
    if unknown:
        raise InputError(f"A layer has a name and a block, or options with 'after' and 'where_fits', but {document['name']!r} "
                         f"has {min(map(str, unknown))!r}: correct it.")
    if "block" in document:
        return Fixed(document["name"], _block_from_dict(document["block"], f"Layer {document['name']!r}"))
    if not isinstance(document["options"], Mapping):
        raise InputError(f"The options of decision {document['name']!r} must be a mapping from name to block.")
    after = _checked_conditions(document["name"], document.get("after", {}))
    where_fits = document.get("where_fits", False)
    if not isinstance(where_fits, bool):
        raise InputError(f"where_fits is true or false, but that of decision {document['name']!r} is {where_fits!r}.")
    options = [(str(option), _block_from_dict(block, f"Decision {document['name']!r}, option {str(option)!r}"))
               for option, block in document["options"].items()]
    return Decision(document["name"], options, after={str(option): tuple(map(str, allowed)) for option, allowed in after.items()},
                    where_fits=where_fits)


def _block_from_dict(document: Any, where: str) -> Block:
    try:
        return block_from_dict(document)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
