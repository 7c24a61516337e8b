"""Residual blocks of full convolutions (He et al., arXiv 1512.03385, sec. 3.3 and 3.4).

Where the shape changes, a 1x1 convolution and a batch norm project the shortcut (the paper's option B).
"""

from dataclasses import dataclass

from hwnas.errors import InputError
from hwnas.ir.block import Block, conv_bn_act
from hwnas.ir.layers import Activation, Add
from hwnas.ir.network import NetworkBuilder, Value


@dataclass(frozen=True)
class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut; the stride is the first's. ResNet-18's and -34's."""

    kind = "basic_block"
    out_channels: int
    kernel: int = 3
    stride: int = 1
    activation: str = "relu"

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        y = conv_bn_act(net, "first_", x, self.out_channels, self.kernel, self.stride, 1, self.activation)
        y = conv_bn_act(net, "second_", y, self.out_channels, self.kernel, 1, 1, None)
        return _add_shortcut(net, x, y, self.stride, self.activation)


@dataclass(frozen=True)
class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions and a shortcut. ResNet-50's.

    The stride is the 3x3 convolution's, as in torchvision ("v1.5"); the paper has it in the first 1x1 convolution, which
    costs less: parameters are the same, multiply-accumulates are not.

    Attributes:
        out_channels: Output width; a multiple of `reduction`.
        kernel: Of the middle convolution.
        stride: Of the middle convolution.
        reduction: Output width over the width inside.
        activation: After both inner convolutions and after the sum.
    """

    kind = "bottleneck"
    out_channels: int
    kernel: int = 3
    stride: int = 1
    reduction: int = 4
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out_channels % self.reduction:
            raise InputError(f"{self.kind}: out_channels must be a multiple of reduction, but are {self.out_channels} and "
                             f"{self.reduction}")

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        inner = self.out_channels // self.reduction
        y = conv_bn_act(net, "reduce_", x, inner, 1, 1, 1, self.activation)
        y = conv_bn_act(net, "middle_", y, inner, self.kernel, self.stride, 1, self.activation)
        y = conv_bn_act(net, "expand_", y, self.out_channels, 1, 1, 1, None)
        return _add_shortcut(net, x, y, self.stride, self.activation)


def _add_shortcut(net: NetworkBuilder, x: Value, y: Value, stride: int, activation: str) -> Value:
    if x.shape != y.shape:
        x = conv_bn_act(net, "shortcut_", x, y.channels, 1, stride, 1, None)
    return net.add("act", Activation(activation), net.add("add", Add(), x, y))
