"""Networks that the tests of both lowerings run: one per primitive layer, one per kind of block, and random chains."""

import dataclasses
from collections.abc import Callable

from hypothesis import strategies as st

from hwnas.ir.block import Block
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Resolution, SeparableConv, Sequence, ShuffleUnit, Stem
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
    Pad,
    Pool,
    Quantize,
    Resize,
    Round,
)
from hwnas.ir.mobile_blocks import FBNetBlock, MnasNetLayer, PooledHead
from hwnas.ir.network import Network, NetworkBuilder, Value, build_network
from hwnas.ir.quantized import HalfPrecision, Quantized
from hwnas.ir.residual_blocks import BasicBlock, Bottleneck
from hwnas.ir.shape import TensorShape


def network_of(build: Callable[[NetworkBuilder, Value], Value], shape: tuple[int, int, int] = (6, 9, 8)) -> Network:
    builder = NetworkBuilder(TensorShape(*shape))
    return builder.build(build(builder, builder.input))


def _two_readers(net: NetworkBuilder, x: Value) -> Value:
    """A batch norm that cannot be folded, because the convolution's output is read elsewhere too."""
    conv = net.add("conv", Conv(6, bias=True), x)
    return net.add("add", Add(), net.add("bn", BatchNorm(), conv), conv)


def _beside_its_input(net: NetworkBuilder, x: Value) -> Value:
    """An activation that must not overwrite what it reads."""
    conv = net.add("conv", Conv(6), x)
    return net.add("add", Add(), net.add("act", Activation("relu"), conv), conv)


def _two_slices(bounds: tuple[int, int, int, int], *, shuffle_groups: int = 0) -> Callable[[NetworkBuilder, Value], Value]:
    def build(net: NetworkBuilder, x: Value) -> Value:
        if shuffle_groups:
            x = net.add("shuffle", ChannelShuffle(shuffle_groups), x)
        first = net.add("first", ChannelSlice(*bounds[:2]), x)
        second = net.add("second", ChannelSlice(*bounds[2:]), x)
        return net.add("concat", Concat(), second, first)
    return build


def _resolution_after_linear(net: NetworkBuilder, x: Value) -> Value:
    vector = net.add("linear", Linear(6), net.add("pool", GlobalAveragePool(), x))
    vector = net.add("twice", Add(), vector, vector)
    gate = net.add("gate", Activation("sigmoid"), net.add("conv", Conv(6), vector))
    scaled = net.add("scale", Multiply(), x, net.add("gates", Multiply(), gate, vector))
    return net.add("bn", BatchNorm(), scaled)


def _vector_tail(net: NetworkBuilder, x: Value) -> Value:
    x = net.add("linear", Linear(12), net.add("dropout", Dropout(0.5), net.add("pool", GlobalAveragePool(), x)))
    return net.add("classifier", Linear(5, bias=False), net.add("act", Activation("hardswish"), x))


def _chain(net: NetworkBuilder, x: Value) -> Value:
    return net.add("unused", Conv(7), net.add("conv", Conv(4), x))


PRIMITIVES: dict[str, Network] = {
    **{f"conv {layer}": network_of(lambda net, x, layer=layer: net.add("conv", layer, x)) for layer in (
        Conv(5), Conv(5, bias=True), Conv(7, (3, 3), 2, (1, 1)), Conv(4, (3, 5), 1, (1, 2)), Conv(6, (3, 3), 1, (2, 2), 2),
        Conv(9, (3, 3), 2, (0, 1), 1, 3), Conv(6, (7, 7), 1, (3, 3), 1, 6, True))},
    "conv, bn": network_of(lambda net, x: net.add("bn", BatchNorm(), net.add("conv", Conv(5, (3, 3)), x))),
    "conv with bias, bn": network_of(lambda net, x: net.add("bn", BatchNorm(1e-3), net.add("conv", Conv(5, bias=True), x))),
    "conv read twice, bn": network_of(_two_readers),
    "activation beside its input": network_of(_beside_its_input),
    "activation of an activation": network_of(lambda net, x: net.add("relu", Activation("relu6"), net.add(
        "sigmoid", Activation("sigmoid"), x))),
    "bn": network_of(lambda net, x: net.add("bn", BatchNorm(1e-2), x)),
    **{name: network_of(lambda net, x, name=name: net.add("act", Activation(name), x)) for name in ACTIVATIONS},
    **{f"conv, {name}": network_of(lambda net, x, name=name: net.add("act", Activation(name), net.add("conv", Conv(4), x)))
       for name in ACTIVATIONS},
    **{f"pool {layer}": network_of(lambda net, x, layer=layer: net.add("pool", layer, x)) for layer in (
        Pool("max", 3, 2, 1), Pool("max", 2, 2), Pool("max", 5, 1, 2), Pool("avg", 3, 2, 1), Pool("avg", 2, 1),
        Pool("avg", 5, 3, 2))},
    "global pool": network_of(lambda net, x: net.add("pool", GlobalAveragePool(), x)),
    "linear": network_of(lambda net, x: net.add("linear", Linear(5), x), (6, 1, 1)),
    "vector tail": network_of(_vector_tail),
    "resolution after linear": network_of(_resolution_after_linear),
    "add of two": network_of(lambda net, x: net.add("add", Add(), x, net.add("conv", Conv(6), x))),
    "add of three": network_of(lambda net, x: net.add("add", Add(), x, x, net.add("conv", Conv(6), x))),
    "multiply by gate": network_of(lambda net, x: net.add("mul", Multiply(), x, net.add("pool", GlobalAveragePool(), x))),
    "multiply by map": network_of(lambda net, x: net.add("mul", Multiply(), x, net.add("conv", Conv(6), x))),
    "concat": network_of(lambda net, x: net.add("concat", Concat(), x, net.add("conv", Conv(3), x), x)),
    "slice": network_of(lambda net, x: net.add("slice", ChannelSlice(1, 4), x)),
    "slices that partition": network_of(_two_slices((0, 2, 2, 6))),
    "slices that overlap": network_of(_two_slices((0, 4, 2, 6))),
    "slices that leave some": network_of(_two_slices((0, 2, 3, 6))),
    "slices that leave the last": network_of(_two_slices((0, 2, 2, 5))),
    "slices of a shuffle by parity": network_of(_two_slices((0, 3, 3, 6), shuffle_groups=3)),
    "slices of a shuffle, part of a row": network_of(_two_slices((1, 3, 4, 5), shuffle_groups=3)),
    "slices of a shuffle across rows": network_of(_two_slices((0, 2, 1, 5), shuffle_groups=2)),
    "shuffle": network_of(lambda net, x: net.add("shuffle", ChannelShuffle(3), x)),
    **{f"pad {layer}": network_of(lambda net, x, layer=layer: net.add("pad", layer, x)) for layer in (
        Pad(1, 2, 3, 4), Pad(-1, -2, -3, -4), Pad(-1, 0, 1, 0), Pad(0, -1, 0, 1))},
    **{f"resize {layer}": network_of(lambda net, x, layer=layer: net.add("resize", layer, x)) for layer in (
        Resize(5, 4), Resize(12, 13), Resize(9, 8))},
    **{f"round {layer}": network_of(lambda net, x, layer=layer: net.add("round", layer, x)) for layer in (
        Quantize(4, True), Quantize(8, False), Quantize(1, True), Round("bf16"))},
    "dropout": network_of(lambda net, x: net.add("act", Activation(), net.add("dropout", Dropout(), x))),
    "dropout alone": network_of(lambda net, x: net.add("dropout", Dropout(), x)),
    "nothing": network_of(lambda net, x: x),
    "dead end": dataclasses.replace(network_of(_chain), output="conv"),
}

BLOCKS: dict[str, Block] = {
    "identity": Identity(),
    "conv": ConvBlock(12, 5, 2, 2, "silu"),
    "conv, linear": ConvBlock(12, 1, activation=None),
    "stem": Stem(8, activation="hardswish"),
    "stem with pool": Stem(8, pool=True),
    "head": Head(10, dropout=0.2),
    "head with conv": Head(10, 24, "relu6", bias=False),
    "separable_conv": SeparableConv(12, 3, 2),
    "mbconv": MBConv(12, 5, 3, 2),
    "mbconv with residual": MBConv(8, 3, 6),
    "mbconv without expansion": MBConv(8, 7, 1, residual=False),
    "mbconv with gate": MBConv(8, 3, 2.5, se_ratio=0.25, activation="silu"),
    "shuffle_unit": ShuffleUnit(8, 5),
    "shuffle_unit of stride 2": ShuffleUnit(20, 7, 2),
    "shuffle_unit, xception": ShuffleUnit(8, 3, xception=True, mid_channels=5),
    "shuffle_unit, xception, stride 2": ShuffleUnit(20, 3, 2, xception=True),
    "resolution": Resolution(12),
    "sequence": Sequence((MBConv(12, 3, 2, 2), SeparableConv(9))),
    "basic_block": BasicBlock(12, 3, 2),
    "basic_block with residual": BasicBlock(8),
    "bottleneck": Bottleneck(12, 3, 2),
    "bottleneck with residual": Bottleneck(8),
    "fbnet_block": FBNetBlock(12, 5, 3, 2, 2),
    "fbnet_block, released": FBNetBlock(8, 3, 1, expand_always=False),
    "mnasnet_layer": MnasNetLayer(8, "mbconv3", 5, 2, 0.25, "pool"),
    "pooled_head": PooledHead(5, 12, dropout=0.1),
    "mnasnet_layer, dwconv": MnasNetLayer(12, "dwconv", 3),
    "separable_operation": SeparableOperation(12, 5, 2),
    "dilated_operation": DilatedOperation(12, 5, 2),
    "pool_operation": PoolOperation("avg", 3, 2, 12),
    "preactivated_conv": PreactivatedConv(12, 3, 2),
    "factorized_convolution": FactorizedConvolution(12, 7, 2),
    "factorized_reduction": FactorizedReduction(13),
    "unpadded_stem": UnpaddedStem(12),
    "cell_head": CellHead(10, 0.2),
    "quantized": Quantized(BasicBlock(12), 2, 4),
    "half_precision": HalfPrecision(SeparableConv(12), "bf16"),
}
BLOCK_SHAPE = (8, 10, 9)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Chains of one to five blocks of any kind, some ending in a classifier, from an image of at most 3x16x16."""
    activation = st.sampled_from(ACTIVATIONS)
    kernel = st.sampled_from((1, 3, 5, 7))
    width = st.integers(1, 6).map(lambda half: 2 * half)
    image = TensorShape(draw(st.integers(1, 3)), draw(st.integers(1, 16)), draw(st.integers(1, 16)))
    channels = draw(width)
    stride = st.integers(1, min(2, *image[1:]))
    stem = Stem(channels, draw(kernel), draw(stride), draw(activation), draw(st.booleans()) and min(image[1:]) >= 4)
    blocks: list[tuple[str, Block]] = [("stem", stem)]
    for index in range(draw(st.integers(0, 4))):
        smallest = min(build_network(image, blocks).output_shape[1:])
        stride = st.integers(1, min(2, smallest))
        strided = ("widening shuffle",) if smallest > 1 else ()
        kind = draw(st.sampled_from(("conv", "separable", "mbconv", "shuffle", *strided, "identity")))
        match kind:
            case "conv":
                block: Block = ConvBlock(draw(width), draw(kernel), draw(stride), draw(st.sampled_from((1, 2))), draw(activation))
            case "separable":
                block = SeparableConv(draw(width), draw(kernel), draw(stride), draw(activation))
            case "mbconv":
                block = MBConv(draw(width), draw(kernel), draw(st.integers(1, 4)), draw(stride),
                               draw(st.sampled_from((0, 0.25))), draw(activation))
            case "shuffle":
                block = ShuffleUnit(channels, draw(kernel), 1, draw(st.one_of(st.none(), st.integers(1, 6))), draw(st.booleans()))
            case "widening shuffle":
                block = ShuffleUnit(channels + draw(width), draw(kernel), 2, None, draw(st.booleans()), draw(activation))
            case _:
                block = Identity()
        channels = getattr(block, "out_channels", channels)
        blocks.append((f"layer{index}", block))
    if draw(st.booleans()):
        blocks.append(("head", Head(draw(st.integers(1, 9)), draw(st.one_of(st.none(), width)), draw(activation))))
    return build_network(image, blocks)
