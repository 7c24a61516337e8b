"""Blocks whose convolutions compute with fewer bits: a pass over the layers of any block, so bit-widths are options like any.

`Quantized` counts in whole multiples of a scale (DoReFa-Net, arXiv 1606.06160; LSQ, arXiv 1902.08153): each convolution reads
activations through a `Quantize` layer and has weights of an `intB` format. `HalfPrecision` rounds both to 16-bit floating
point. Batch norm, biases and what accumulates stay in full precision, and so does a classifier.

A block does not know what comes before it, alone or in a network, so whether its input can be negative is one of its fields;
inside, the layers tell. What will never be here: how a number is rounded (the layers say, the lowerings do), calibration.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hwnas.errors import InputError
from hwnas.ir.block import Block, check_inner
from hwnas.ir.layers import (
    FORMAT_BITS,
    Activation,
    Add,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Conv,
    Dropout,
    GlobalAveragePool,
    Layer,
    Multiply,
    Pad,
    Pool,
    Quantize,
    Resize,
    Round,
)
from hwnas.ir.network import INPUT, Network, NetworkBuilder, Value
from hwnas.ir.shape import TensorShape

BITS: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 32)
"""Bits of weights and activations; 32 leaves them as they are."""

_INTEGER_LAYERS = (Conv, Add, Multiply, Concat, GlobalAveragePool)  # that runtimes have integer kernels for
_FUSED = ("relu", "relu6")  # that the integer kernel before them does on the way out
_NON_NEGATIVE = ("relu", "relu6", "sigmoid", "hardsigmoid")
_SIGN_KEEPING = (Add, Multiply, Concat, ChannelSlice, ChannelShuffle, Pool, GlobalAveragePool, Pad, Resize, Dropout, Round)


@dataclass(frozen=True)
class _Rewritten(Block):
    """A block whose layers are changed on the way into the network; node names stay, new nodes are added."""

    block: Block

    def __post_init__(self) -> None:
        if not isinstance(self.block, Block):
            raise InputError(f"{self.kind}: block must be a block, but is {self.block!r}")
        check_inner(self, self.block)
        super().__post_init__()

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        network = _layers(self.block, x.shape)
        non_negative = _non_negative_values(network, self._non_negative_input)
        values = {INPUT: x}
        rounded: dict[str, Value] = {}  # one for all that read a tensor
        for node in network.nodes:
            layer = node.layer
            if isinstance(layer, Quantize | Round) or (isinstance(layer, Conv) and layer.weight_format != "fp32"):
                raise InputError(f"the block inside must be of full precision, but {self.block.kind!r} is not")
            if isinstance(layer, Conv):
                layer = dataclasses.replace(layer, weight_format=self._weight_format)
            reads = values
            if self._reads_rounded(layer):
                for source in node.inputs:
                    if source not in rounded:
                        rounded[source] = self._round(net, source, values[source], source in non_negative)
                reads = rounded
            values[node.name] = net.add(node.name, layer, *(reads[source] for source in node.inputs))
        return values[network.output]

    @property
    def _weight_format(self) -> str:
        """Of every convolution."""
        raise NotImplementedError

    @property
    def _non_negative_input(self) -> bool:
        return False

    def _reads_rounded(self, layer: Layer) -> bool:
        return isinstance(layer, Conv)

    def _round(self, net: NetworkBuilder, name: str, x: Value, non_negative: bool) -> Value:
        """Adds what the tensor `x`, called `name` in the block, is rounded by."""
        raise NotImplementedError

    @property
    def signature(self) -> str:
        others = [f"{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self) if field.name != "block"]
        return f"{self.kind}({', '.join([self.block.signature, *others])})"

    def to_dict(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"kind": self.kind, **fields, "block": self.block.to_dict()}


@dataclass(frozen=True)
class Quantized(_Rewritten):
    """A block with weights and activations of few bits.

    Attributes:
        block: What is quantised.
        weight_bits: One of `BITS`.
        activation_bits: Of what convolutions read; one of `BITS`.
        signed_input: Whether the block's input can be negative. Without a sign, the same bits count twice as far; a negative
            input is then clipped to 0.
        integer: Also quantise what sums, products, concatenations, global pools and activations other than ReLU read, so that
            a runtime's integer kernels follow one another. Networks of the few-bit papers keep these in full precision.
    """

    kind = "quantized"
    weight_bits: int
    activation_bits: int
    signed_input: bool = True
    integer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight_bits", "activation_bits"):
            if getattr(self, name) not in BITS:
                raise InputError(f"{self.kind}: {name} must be 1 to 8, or 32 for full precision, but is {getattr(self, name)}")

    @property
    def _weight_format(self) -> str:
        return "fp32" if self.weight_bits == 32 else f"int{self.weight_bits}"

    @property
    def _non_negative_input(self) -> bool:
        return not self.signed_input

    def _reads_rounded(self, layer: Layer) -> bool:
        if isinstance(layer, Activation):
            return self.integer and layer.function not in _FUSED
        return isinstance(layer, _INTEGER_LAYERS if self.integer else Conv)

    def _round(self, net: NetworkBuilder, name: str, x: Value, non_negative: bool) -> Value:
        if self.activation_bits == 32:
            return x
        return net.add(f"{name}_quantize", Quantize(self.activation_bits, not non_negative), x)


@dataclass(frozen=True)
class HalfPrecision(_Rewritten):
    """A block whose convolutions read weights and activations of 16-bit floating point, and accumulate in 32 bits.

    These are the numbers that half-precision kernels compute with. The time they save needs a runtime that has such kernels:
    where there are none, the rounding is extra work.

    Attributes:
        block: What is rounded.
        format: `fp16` or `bf16`.
    """

    kind = "half_precision"
    format: str = "fp16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if FORMAT_BITS.get(self.format) != 16:
            raise InputError(f"{self.kind}: format must be fp16 or bf16, but is {self.format!r}")

    @property
    def _weight_format(self) -> str:
        return self.format

    def _round(self, net: NetworkBuilder, name: str, x: Value, non_negative: bool) -> Value:
        return net.add(f"{name}_round", Round(self.format), x)


def is_non_negative(block: Block, shape: TensorShape, non_negative_input: bool) -> bool:
    """Whether a block's output can never be negative; a block that passes its input on keeps what that was."""
    network = _layers(block, shape)
    return network.output in _non_negative_values(network, non_negative_input)


def has_convolutions(block: Block, shape: TensorShape) -> bool:
    """Whether there is anything in a block to compute with fewer bits."""
    return any(isinstance(node.layer, Conv) for node in _layers(block, shape).nodes)


@lru_cache(maxsize=1 << 14)  # asked for every edge of a space, which has the same blocks again and again
def _layers(block: Block, shape: TensorShape) -> Network:
    """A block's layers, named as it names them."""
    net = NetworkBuilder(shape)
    return net.build(block.build(net, net.input))


def _non_negative_values(network: Network, non_negative_input: bool) -> set[str]:
    found = {INPUT} if non_negative_input else set()
    for node in network.nodes:
        if _is_non_negative(node.layer, (source in found for source in node.inputs)):
            found.add(node.name)
    return found


def _is_non_negative(layer: Layer, inputs: Iterable[bool]) -> bool:
    match layer:
        case Activation(function):
            return function in _NON_NEGATIVE
        case Quantize(signed=signed):
            return not signed
        case _:
            return isinstance(layer, _SIGN_KEEPING) and all(inputs)
