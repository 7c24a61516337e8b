"""Blocks: what a search space chooses between. Each expands into primitive layers and knows nothing of its neighbours.

A new block is one frozen dataclass, here or in a file of its family, and one line in `BLOCKS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from hwnas.errors import InputError
from hwnas.ir.block import Block, Part, check_inner, conv_bn_act, squeeze_excite
from hwnas.ir.cell_operations import (
    CellHead,
    DilatedOperation,
    FactorizedConvolution,
    FactorizedReduction,
    PoolOperation,
    PreactivatedConv,
    SeparableOperation,
    UnpaddedStem,
)
from hwnas.ir.layers import Add, ChannelShuffle, ChannelSlice, Concat, Dropout, GlobalAveragePool, Linear, Pool, Resize
from hwnas.ir.mobile_blocks import FBNetBlock, MnasNetLayer, PooledHead
from hwnas.ir.network import INPUT, NetworkBuilder, Value
from hwnas.ir.quantized import HalfPrecision, Quantized
from hwnas.ir.residual_blocks import BasicBlock, Bottleneck
from hwnas.ir.shape import TensorShape


@dataclass(frozen=True)
class Identity(Block):
    """Passes its input on: the option that makes depth searchable."""

    kind = "identity"
    is_free = True

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        return x


@dataclass(frozen=True)
class Resolution(Block):
    """Images of another resolution: the option that makes the input size searchable. Stands first, and only there.

    In a supernet the images are resized; a standalone network takes images of this size, so no device spends time on it.
    """

    kind = "resolution"
    is_free = True
    is_outermost = True
    size: int

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        if x.name != INPUT:
            raise InputError("a resolution is that of the images, so it must be the first layer, but a layer comes before it")
        return x if x.shape[1:] == (self.size, self.size) else net.add("resize", Resize(self.size, self.size), x)


@dataclass(frozen=True)
class Sequence(Block):
    """Blocks one after the other as one option: a stage that is chosen as a whole. Measured and trained block by block."""

    kind = "sequence"
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        blocks = tuple(self.blocks) if isinstance(self.blocks, list | tuple) else ()
        if not blocks or not all(isinstance(block, Block) for block in blocks):
            raise InputError(f"{self.kind}: blocks must be one block or more, but are {self.blocks!r}")
        check_inner(self, *blocks)
        object.__setattr__(self, "blocks", blocks)

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        for number, block in enumerate(self.blocks, 1):
            x = block.build(net.scoped(str(number)), x)
        return x

    def output_shape(self, shape: TensorShape) -> TensorShape:
        for block in self.blocks:
            shape = block.output_shape(shape)
        return shape

    def parts(self, shape: TensorShape) -> tuple[Part, ...]:
        parts = []
        for number, block in enumerate(self.blocks, 1):
            parts.append(Part(str(number), block, shape))
            shape = block.output_shape(shape)
        return tuple(parts)

    @property
    def signature(self) -> str:
        return f"{self.kind}({', '.join(block.signature for block in self.blocks)})"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "blocks": [block.to_dict() for block in self.blocks]}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        if set(fields) != {"blocks"} or not isinstance(fields["blocks"], list | tuple):
            raise InputError(f"A sequence has a list of blocks, but is {str(dict(fields))[:120]}.")
        return cls(tuple(block_from_dict(block) for block in fields["blocks"]))


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


BLOCKS: dict[str, type[Block]] = {block.kind: block for block in (
    Identity, Resolution, Sequence, ConvBlock, Stem, Head, SeparableConv, MBConv, ShuffleUnit,
    SeparableOperation, DilatedOperation, PoolOperation, FactorizedConvolution, PreactivatedConv, FactorizedReduction,
    UnpaddedStem, CellHead,
    BasicBlock, Bottleneck, FBNetBlock, MnasNetLayer, PooledHead, Quantized, HalfPrecision)}


def block_from_dict(document: Any) -> Block:
    """Makes a block from its JSON or YAML form.

    Raises:
        InputError: Not a mapping with a known `kind`, or fields that this kind does not have.
    """
    if not isinstance(document, Mapping) or document.get("kind") not in tuple(BLOCKS):
        raise InputError(f"A block must be a mapping with a 'kind' among {', '.join(BLOCKS)}, but is {document!r:.200}; a "
                         "kind of your own is known once its file has run: put --load FILE.py before the verb.")
    fields = {key: block_from_dict(value) if isinstance(value, Mapping) else value
              for key, value in document.items() if key != "kind"}
    return BLOCKS[document["kind"]].from_fields(fields)
