"""Blocks: what a search space chooses between. Each expands into primitive layers and knows nothing of its neighbours.

A block does not store its input width: it takes the width that reaches it, so the same option can follow options of
different widths. A new block is one frozen dataclass here and one line in `BLOCKS`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args, get_type_hints

from hwnas.errors import InputError
from hwnas.ir.layers import (
    ACTIVATIONS,
    Activation,
    Add,
    BatchNorm,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Conv,
    Dropout,
    GlobalAveragePool,
    Linear,
    Multiply,
    Pool,
)
from hwnas.ir.network import NetworkBuilder, Value


@dataclass(frozen=True)
class Block:
    """A candidate block: hashable, JSON-able, independent of what surrounds it."""

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Refuses values that no block of this kind can have.

        Raises:
            InputError: Naming the kind, the field and the value.
        """
        hints = get_type_hints(type(self))
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


def block_from_dict(document: Any) -> Block:
    """Makes a block from its JSON or YAML form.

    Raises:
        InputError: Not a mapping with a known `kind`, or fields that this kind does not have.
    """
    if not isinstance(document, Mapping) or document.get("kind") not in tuple(BLOCKS):
        raise InputError(f"A block must be a mapping with a 'kind' among {', '.join(BLOCKS)}, but is {document!r}.")
    return BLOCKS[document["kind"]].from_fields({key: value for key, value in document.items() if key != "kind"})


@dataclass(frozen=True)
class Identity(Block):
    """Passes its input on: the option that makes depth searchable."""

    kind = "identity"

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        return x


@dataclass(frozen=True)
class ConvBlock(Block):
    """Plain convolution, batch norm, activation."""

    kind = "conv"
    out_channels: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    activation: str | None = "relu"

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        return conv_bn_act(net, "", x, self.out_channels, self.kernel, self.stride, self.groups, self.activation)


@dataclass(frozen=True)
class Stem(Block):
    """First layer of a network: convolution, batch norm, activation, and a stride-2 max pool where `pool` is set."""

    kind = "stem"
    out_channels: int
    kernel: int = 3
    stride: int = 2
    activation: str | None = "relu"
    pool: bool = False

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        x = conv_bn_act(net, "", x, self.out_channels, self.kernel, self.stride, 1, self.activation)
        return net.add("pool", Pool("max", 3, 2, 1), x) if self.pool else x


@dataclass(frozen=True)
class Head(Block):
    """Last layers: optional 1x1 convolution, global average pool, dropout, classifier."""

    kind = "head"
    classes: int
    channels: int | None = None
    activation: str | None = "relu"
    dropout: float = 0.0
    bias: bool = True

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        if self.channels is not None:
            x = conv_bn_act(net, "", x, self.channels, 1, 1, 1, self.activation)
        x = net.add("global_pool", GlobalAveragePool(), x)
        if self.dropout:
            x = net.add("dropout", Dropout(self.dropout), x)
        return net.add("classifier", Linear(self.classes, self.bias), x)


@dataclass(frozen=True)
class SeparableConv(Block):
    """Depthwise then pointwise convolution, each with batch norm and activation (MobileNetV1, arXiv 1704.04861)."""

    kind = "separable_conv"
    out_channels: int
    kernel: int = 3
    stride: int = 1
    activation: str | None = "relu"

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        x = conv_bn_act(net, "depthwise_", x, x.channels, self.kernel, self.stride, x.channels, self.activation)
        return conv_bn_act(net, "pointwise_", x, self.out_channels, 1, 1, 1, self.activation)


@dataclass(frozen=True)
class MBConv(Block):
    """Inverted residual with a linear bottleneck (MobileNetV2, arXiv 1801.04381, sec. 3.3).

    Attributes:
        out_channels: Output width.
        kernel: Depthwise kernel size.
        expansion: Hidden width over input width; no expansion convolution at 1.
        stride: Of the depthwise convolution.
        se_ratio: Squeeze-and-excitation width over the block's *input* width (MnasNet, arXiv 1807.11626); 0 for none.
        activation: After expansion and depthwise convolution; the projection is linear.
        residual: None adds the input where shapes allow; True demands it; False never adds.
    """

    kind = "mbconv"
    out_channels: int
    kernel: int = 3
    expansion: float = 6
    stride: int = 1
    se_ratio: float = 0.0
    activation: str | None = "relu6"
    residual: bool | None = None

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        hidden = round(x.channels * self.expansion)
        y = x
        if self.expansion != 1:
            y = conv_bn_act(net, "expand_", y, hidden, 1, 1, 1, self.activation)
        y = conv_bn_act(net, "depthwise_", y, hidden, self.kernel, self.stride, hidden, self.activation)
        if self.se_ratio:
            y = squeeze_excite(net, y, max(1, int(x.channels * self.se_ratio)))
        y = conv_bn_act(net, "project_", y, self.out_channels, 1, 1, 1, None)
        if self.residual or (self.residual is None and y.shape == x.shape):
            y = net.add("add", Add(), x, y)
        return y


@dataclass(frozen=True)
class ShuffleUnit(Block):
    """The choice block of Single Path One-Shot (arXiv 1904.00420, sec. 3.4): ShuffleNetV2's unit or its Xception variant.

    Follows the authors' released blocks: at stride 1 the input is split by channel *parity*, even channels pass, odd ones
    enter the main branch; at stride 2 both branches see the whole input, the projection keeps the input width and the main
    branch makes up the rest. Output: passed (or projected) channels first.

    Attributes:
        out_channels: Output width.
        kernel: Of the main branch's and the projection's depthwise convolutions.
        stride: 1 or 2.
        mid_channels: Width inside the main branch; None for half of `out_channels`.
        xception: Three depthwise convolutions (always 3x3 in the paper) in place of one.
        activation: After every pointwise convolution; none follows a depthwise one.
    """

    kind = "shuffle_unit"
    out_channels: int
    kernel: int = 3
    stride: int = 1
    mid_channels: int | None = None
    xception: bool = False
    activation: str | None = "relu"

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        mid = self.out_channels // 2 if self.mid_channels is None else self.mid_channels
        if self.stride == 1:
            if x.channels != self.out_channels or x.channels % 2:
                raise InputError(f"a shuffle unit of stride 1 keeps an even width, but gets {x.channels} channels for "
                                 f"{self.out_channels}")
            half = x.channels // 2
            shuffled = net.add("shuffle", ChannelShuffle(half), x)
            passed = net.add("passed", ChannelSlice(0, half), shuffled)
            y = net.add("entering", ChannelSlice(half, x.channels), shuffled)
        else:
            if self.out_channels <= x.channels:
                raise InputError(f"a shuffle unit of stride {self.stride} must widen its input, but goes from {x.channels} "
                                 f"to {self.out_channels} channels")
            passed = self._depthwise(net, "projection_depthwise_", x, self.stride)
            passed = conv_bn_act(net, "projection_pointwise_", passed, x.channels, 1, 1, 1, self.activation)
            y = x
        main_channels = self.out_channels - passed.channels
        if self.xception:
            y = self._depthwise(net, "depthwise1_", y, self.stride)
            y = conv_bn_act(net, "pointwise1_", y, mid, 1, 1, 1, self.activation)
            y = self._depthwise(net, "depthwise2_", y)
            y = conv_bn_act(net, "pointwise2_", y, mid, 1, 1, 1, self.activation)
            y = self._depthwise(net, "depthwise3_", y)
            y = conv_bn_act(net, "pointwise3_", y, main_channels, 1, 1, 1, self.activation)
        else:
            y = conv_bn_act(net, "pointwise1_", y, mid, 1, 1, 1, self.activation)
            y = self._depthwise(net, "depthwise_", y, self.stride)
            y = conv_bn_act(net, "pointwise2_", y, main_channels, 1, 1, 1, self.activation)
        return net.add("concat", Concat(), passed, y)

    def _depthwise(self, net: NetworkBuilder, name: str, x: Value, stride: int = 1) -> Value:
        return conv_bn_act(net, name, x, x.channels, self.kernel, stride, x.channels, None)


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


def _type_names(types: tuple[Any, ...]) -> str:
    names = {int: "a whole number", float: "a number", str: "a name", bool: "true or false", type(None): "empty"}
    return " or ".join(names[kind] for kind in types)


BLOCKS: dict[str, type[Block]] = {block.kind: block for block in (
    Identity, ConvBlock, Stem, Head, SeparableConv, MBConv, ShuffleUnit)}
