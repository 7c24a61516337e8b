"""Operations of cells (NASNet, PNASNet, DARTS, one-shot): the activation comes first, and the batch norm last.

Where a stride meets an even resolution, TensorFlow's "same" padding starts one pixel later than the symmetric padding used
here (and by DARTS); shapes, multiply-accumulates and parameters are the same.
"""

from dataclasses import dataclass

from hwnas.errors import InputError
from hwnas.ir.block import Block
from hwnas.ir.layers import Activation, BatchNorm, Concat, Conv, Dropout, GlobalAveragePool, Linear, Pad, Pool
from hwnas.ir.network import NetworkBuilder, Value


@dataclass(frozen=True)
class SeparableOperation(Block):
    """(ReLU, depthwise kxk, pointwise, batch norm) `repeats` times; the first takes the stride and changes the width.

    NASNet (Zoph et al., arXiv 1707.07012, appendix A.4) and DARTS (Liu et al., arXiv 1806.09055) apply it twice.
    """

    kind = "separable_operation"
    out_channels: int
    kernel: int = 3
    stride: int = 1
    repeats: int = 2

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        for number in range(1, self.repeats + 1):
            stride = self.stride if number == 1 else 1
            x = net.add(f"act{number}", Activation("relu"), x)
            x = net.add(f"depthwise{number}", _depthwise(x, self.kernel, stride), x)
            x = net.add(f"pointwise{number}", Conv(self.out_channels), x)
            x = net.add(f"bn{number}", BatchNorm(), x)
        return x


@dataclass(frozen=True)
class DilatedOperation(Block):
    """ReLU, depthwise kxk with dilation 2, pointwise, batch norm (DARTS, arXiv 1806.09055, sec. 3.1)."""

    kind = "dilated_operation"
    out_channels: int
    kernel: int = 3
    stride: int = 1

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        x = net.add("act", Activation("relu"), x)
        x = net.add("depthwise", _depthwise(x, self.kernel, self.stride, 2), x)
        x = net.add("pointwise", Conv(self.out_channels), x)
        return net.add("bn", BatchNorm(), x)


@dataclass(frozen=True)
class PoolOperation(Block):
    """Pooling; an average leaves padding out.

    Attributes:
        pool: `max` or `avg`.
        kernel: Window.
        stride: Its step.
        out_channels: Where it differs from the input's width, a 1x1 convolution and a batch norm follow (PNASNet's first
            cell); None keeps the width.
        batch_norm: Follow with a batch norm (DARTS's search network; Bender et al. have none).
    """

    kind = "pool_operation"
    pool: str
    kernel: int = 3
    stride: int = 1
    out_channels: int | None = None
    batch_norm: bool = False

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        if self.pool == "max":
            x = net.add("pool", Pool("max", self.kernel, self.stride, self.kernel // 2), x)
        elif self.pool == "avg":
            x = net.add("pool", Pool("avg", self.kernel, self.stride, self.kernel // 2), x)
        else:
            raise InputError(f"a pool must be 'max' or 'avg', but is {self.pool!r}")
        if self.out_channels is not None and self.out_channels != x.channels:
            x = net.add("project", Conv(self.out_channels), x)
            return net.add("project_bn", BatchNorm(), x)
        return net.add("bn", BatchNorm(), x) if self.batch_norm else x


@dataclass(frozen=True)
class PreactivatedConv(Block):
    """ReLU, kxk convolution, batch norm: what brings a cell's input to its width, and NASNet's plain convolutions."""

    kind = "preactivated_conv"
    out_channels: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        padding = self.dilation * (self.kernel // 2)
        x = net.add("act", Activation("relu"), x)
        x = net.add("conv", Conv(self.out_channels, (self.kernel,) * 2, self.stride, (padding,) * 2, self.dilation), x)
        return net.add("bn", BatchNorm(), x)


@dataclass(frozen=True)
class FactorizedConvolution(Block):
    """ReLU, 1xk, kx1 convolution, batch norm (NASNet's and the one-shot space's 1x7 then 7x1); the stride is the first's.

    Striding both axes in the first convolution halves the work of the second.
    """

    kind = "factorized_convolution"
    out_channels: int
    kernel: int = 7
    stride: int = 1

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        x = net.add("act", Activation("relu"), x)
        x = net.add("row", Conv(self.out_channels, (1, self.kernel), self.stride, (0, self.kernel // 2)), x)
        x = net.add("row_bn", BatchNorm(), x)
        x = net.add("act2", Activation("relu"), x)
        x = net.add("column", Conv(self.out_channels, (self.kernel, 1), 1, (self.kernel // 2, 0)), x)
        return net.add("column_bn", BatchNorm(), x)


@dataclass(frozen=True)
class FactorizedReduction(Block):
    """Halves the resolution: ReLU, two 1x1 convolutions of stride 2, the second one pixel further down and right, side by side,
    batch norm (NASNet's released code, `factorized_reduction`; DARTS, `FactorizedReduce`).

    The first gives half of `out_channels`, rounded down, and the second the rest.
    """

    kind = "factorized_reduction"
    out_channels: int

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        if self.out_channels < 2:
            raise InputError(f"a factorised reduction needs at least 2 output channels, but has {self.out_channels}")
        x = net.add("act", Activation("relu"), x)
        first = net.add("conv1", Conv(self.out_channels // 2, stride=2), x)
        # An even resolution needs no zeros: the pixel that the shift lost at one end is not missed at the other.
        shifted = net.add("shift", Pad(-1, -1, _added(x.shape.height), _added(x.shape.width)), x)
        second = net.add("conv2", Conv(self.out_channels - self.out_channels // 2, stride=2), shifted)
        return net.add("bn", BatchNorm(), net.add("concat", Concat(), first, second))


@dataclass(frozen=True)
class UnpaddedStem(Block):
    """kxk convolution without padding, batch norm: NASNet's first layer, which leaves the first ReLU to the cells."""

    kind = "unpadded_stem"
    out_channels: int
    kernel: int = 3
    stride: int = 2

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        return net.add("bn", BatchNorm(), net.add("conv", Conv(self.out_channels, (self.kernel,) * 2, self.stride), x))


@dataclass(frozen=True)
class CellHead(Block):
    """What turns the last cell's output into scores: an activation unless None, global average pool, dropout, classifier."""

    kind = "cell_head"
    classes: int
    dropout: float = 0.0
    activation: str | None = "relu"

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        if self.activation:
            x = net.add("act", Activation(self.activation), x)
        x = net.add("global_pool", GlobalAveragePool(), x)
        if self.dropout:
            x = net.add("dropout", Dropout(self.dropout), x)
        return net.add("classifier", Linear(self.classes), x)


def _added(size: int) -> int:
    return 1 if size % 2 or size == 2 else 0


def _depthwise(x: Value, kernel: int, stride: int, dilation: int = 1) -> Conv:
    return Conv(x.channels, (kernel, kernel), stride, (dilation * (kernel // 2),) * 2, dilation, x.channels)
