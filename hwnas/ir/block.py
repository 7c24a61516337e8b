"""What a block is: a named group of primitive layers that a search space chooses between, and the groups that recur in them.

A block does not store its input width: it takes the width that reaches it, so the same option can follow options of
different widths.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar, Self, get_args, get_type_hints

from hwnas.errors import InputError
from hwnas.ir.layers import ACTIVATIONS, Activation, BatchNorm, Conv, GlobalAveragePool, Multiply
from hwnas.ir.network import Network, NetworkBuilder, Value, build_network
from hwnas.ir.shape import TensorShape


@dataclass(frozen=True)
class Block:
    """A candidate block: hashable, JSON-able, independent of what surrounds it."""

    kind: ClassVar[str] = ""
    is_free: ClassVar[bool] = False
    """Takes no time on a device: nothing to measure."""
    is_outermost: ClassVar[bool] = False
    """Stands for a layer of its own, never inside of another block."""

    def __post_init__(self) -> None:
        """Refuses values that no block of this kind can have.

        Raises:
            InputError: Naming the kind, the field and the value.
        """
        hints = _type_hints(type(self))  # type: ignore[arg-type]  # a class hashes as an object does
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            types = get_args(hints[field.name]) or (hints[field.name],)
            accepted = (*types, int) if float in types else types
            if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in types):
                raise InputError(f"{self.kind}: {field.name} must be {_type_names(types)}, but is {value!r}")
            if field.name == "activation" and value not in (*ACTIVATIONS, None):
                raise InputError(f"{self.kind}: activation must be one of {', '.join(ACTIVATIONS)}, but is {value!r}")
            if isinstance(value, int | float) and not isinstance(value, bool):
                low = 0 if field.name in ("dropout", "se_ratio") else 1
                high = 1 if field.name == "dropout" else 1 << 20
                if not low <= value < high:
                    raise InputError(f"{self.kind}: {field.name} must be at least {low} and below {high}, but is {value}")
                if float in types:  # 6 and 6.0 are one block, so they must have one signature
                    object.__setattr__(self, field.name, float(value))
            if field.name == "kernel" and value % 2 == 0:
                raise InputError(f"{self.kind}: kernel must be odd, so that padding keeps the resolution, but is {value}")

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        """Appends this block's layers to a network.

        Args:
            net: Where the layers go.
            x: The block's input.

        Returns:
            The block's output.

        Raises:
            InputError: The block cannot take the shape of `x`.
        """
        raise NotImplementedError

    def output_shape(self, shape: TensorShape) -> TensorShape:
        """What the block makes of an input.

        Raises:
            InputError: The block cannot take the shape.
        """
        return block_network(self, shape).output_shape

    def parts(self, shape: TensorShape) -> "tuple[Part, ...]":
        """The block as the pieces that are measured and trained on their own: itself, unless it is made of blocks.

        Args:
            shape: The block's input.
        """
        return (Part("", self, shape),)

    @property
    def signature(self) -> str:
        """Every field in one line: `mbconv(out_channels=24, kernel=3, ...)`. Equal blocks have equal signatures."""
        fields = ", ".join(f"{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self))
        return f"{self.kind}({fields})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: `kind` and every field."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [name for name in fields if name not in known]
        if unknown:
            raise InputError(f"A {cls.kind} block has the fields {', '.join(known) or '(none)'}, but not {unknown[0]!r}.")
        missing = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in fields]
        if missing:
            raise InputError(f"A {cls.kind} block needs {missing[0]!r}: add it.")
        return cls(**fields)


@dataclass(frozen=True)
class Part:
    """A block at one input shape: what a latency table measures and a supernet keeps weights for.

    Attributes:
        name: Where it stands in what it is part of; empty for a whole option.
        block: The block.
        input_shape: What it gets.
    """

    name: str
    block: Block
    input_shape: TensorShape

    @property
    def workload(self) -> str:
        """Block and input shape in one readable line. Equal work has equal text."""
        return f"{self.block.signature} @ {self.input_shape}"

    @property
    def network(self) -> Network:
        """The block as a network of its own."""
        return block_network(self.block, self.input_shape)


@lru_cache(maxsize=1 << 14)  # a space asks for the same block at the same shape again and again
def block_network(block: Block, shape: TensorShape) -> Network:
    """One block as a network of its own: what is measured for a latency table."""
    return build_network(shape, [("block", block)])


def conv_bn_act(net: NetworkBuilder, prefix: str, x: Value, out_channels: int, kernel: int, stride: int, groups: int,
                activation: str | None) -> Value:
    """Convolution with resolution-keeping padding (at stride 1), batch norm, and an activation unless None."""
    x = net.add(f"{prefix}conv", Conv(out_channels, (kernel, kernel), stride, (kernel // 2,) * 2, 1, groups), x)
    x = net.add(f"{prefix}bn", BatchNorm(), x)
    return net.add(f"{prefix}act", Activation(activation), x) if activation else x


def squeeze_excite(net: NetworkBuilder, x: Value, reduced_channels: int) -> Value:
    """Channel gate (Hu et al., arXiv 1709.01507): pool, 1x1 convolution, ReLU, 1x1 convolution, sigmoid, multiply."""
    gate = net.add("se_pool", GlobalAveragePool(), x)
    gate = net.add("se_reduce", Conv(reduced_channels, bias=True), gate)
    gate = net.add("se_reduce_act", Activation("relu"), gate)
    gate = net.add("se_expand", Conv(x.channels, bias=True), gate)
    gate = net.add("se_gate", Activation("sigmoid"), gate)
    return net.add("se_scale", Multiply(), x, gate)


def check_inner(outer: Block, *blocks: Block) -> None:
    """Refuses blocks that cannot be part of another.

    Raises:
        InputError: Naming both kinds.
    """
    for block in blocks:
        if block.is_outermost:
            raise InputError(f"{outer.kind}: a {block.kind} is a layer of its own, so it cannot be part of another block")


@cache
def _type_hints(block: type) -> dict[str, Any]:
    return get_type_hints(block)  # slow, and asked for every block that is made


def _type_names(types: tuple[Any, ...]) -> str:
    names = {int: "a whole number", float: "a number", str: "a name", bool: "true or false", type(None): "empty"}
    return " or ".join(names[kind] for kind in types)
