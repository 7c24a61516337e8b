"""Primitive layers: the small vocabulary that every block expands into and that both lowerings read.

A layer holds its hyper-parameters and nothing else. Shapes, multiply-accumulates and parameters are functions of the
layer and its input shapes. Counting rule: MACs are those of convolutions and linear layers alone, for one image; batch
norm, biases, activations, pooling and element-wise layers count nothing.

What will never be here: weights (they travel as `{node}.{parameter}` arrays), torch, ONNX.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from hwnas.errors import InputError
from hwnas.ir.shape import TensorShape

ActivationKind = Literal["relu", "relu6", "hardswish", "silu", "sigmoid", "hardsigmoid"]
ACTIVATIONS: tuple[str, ...] = ("relu", "relu6", "hardswish", "silu", "sigmoid", "hardsigmoid")

FORMAT_BITS: dict[str, int] = {"fp32": 32, "fp16": 16, "bf16": 16, **{f"int{bits}": bits for bits in range(1, 9)}}
"""What numbers can be stored as, and how many bits that takes."""


@dataclass(frozen=True)
class Layer:
    """One primitive operation on one or more tensors."""

    def infer(self, *inputs: TensorShape) -> TensorShape:
        """Output shape for the given input shapes.

        Raises:
            InputError: The layer cannot take these shapes.
        """
        return inputs[0]

    def macs(self, *inputs: TensorShape) -> int:
        """Multiply-accumulates for one image."""
        return 0

    def parameters(self, *inputs: TensorShape) -> dict[str, tuple[int, ...]]:
        """Learnable parameters: name to shape, in PyTorch's layout."""
        return {}

    def buffers(self, *inputs: TensorShape) -> dict[str, tuple[int, ...]]:
        """Arrays that inference needs but no gradient reaches: name to shape."""
        return {}


def _window(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Output length of a sliding window along one axis; below 1 when the window does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _slide(what: str, x: TensorShape, channels: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int],
           dilation: int = 1) -> TensorShape:
    if min(x.height, x.width) < stride:  # padding would hide it: a window of zeros and one pixel still fits
        raise InputError(f"{what} of stride {stride} must find a resolution of at least {stride}x{stride}, but would reduce "
                         f"{x.height}x{x.width} below 1x1")
    height = _window(x.height, kernel[0], stride, padding[0], dilation)
    width = _window(x.width, kernel[1], stride, padding[1], dilation)
    if height < 1 or width < 1:
        raise InputError(f"{what} with kernel {kernel[0]}x{kernel[1]}, stride {stride} and padding {padding} must leave "
                         f"a resolution of at least 1x1, but reduces {x} to {height}x{width}")
    return TensorShape(channels, height, width)


@dataclass(frozen=True)
class Conv(Layer):
    """2-D convolution, `(N, C, H, W)` to `(N, out_channels, H', W')`; padding is symmetric and zero.

    `weight_format`, one of `FORMAT_BITS`, is what its weights are rounded to, a function of the weights alone: the nearest
    half-precision numbers, or whole multiples of one step per output channel. The step of `intB` is max|w| / (2^(B-1) - 1);
    `int1` keeps signs, times mean|w| (XNOR-Net, arXiv 1603.05279, sec. 3.1). The weights themselves stay what training moves.
    """

    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    weight_format: str = "fp32"

    def __post_init__(self) -> None:
        if self.weight_format not in FORMAT_BITS:
            raise InputError(f"a weight format must be one of {', '.join(FORMAT_BITS)}, but is {self.weight_format!r}")

    def __repr__(self) -> str:
        """Names the weight format where there is one: stored hashes of networks are those of their text."""
        shown = [f"{one.name}={getattr(self, one.name)!r}" for one in dataclasses.fields(self)
                 if one.name != "weight_format" or self.weight_format != "fp32"]
        return f"Conv({', '.join(shown)})"

    def infer(self, *inputs: TensorShape) -> TensorShape:
        (x,) = inputs
        if x.channels % self.groups or self.out_channels % self.groups:
            raise InputError(f"a convolution's groups must divide its channels, but {self.groups} groups do not divide "
                             f"{x.channels} input and {self.out_channels} output channels")
        return _slide("a convolution", x, self.out_channels, self.kernel, self.stride, self.padding, self.dilation)

    def macs(self, *inputs: TensorShape) -> int:
        kernel_macs = inputs[0].channels // self.groups * self.kernel[0] * self.kernel[1]
        return self.infer(*inputs).elements * kernel_macs

    def parameters(self, *inputs: TensorShape) -> dict[str, tuple[int, ...]]:
        weight = (self.out_channels, inputs[0].channels // self.groups, *self.kernel)
        return {"weight": weight, "bias": (self.out_channels,)} if self.bias else {"weight": weight}


@dataclass(frozen=True)
class Linear(Layer):
    """Fully connected layer on a `(C, 1, 1)` tensor; gives `(out_features, 1, 1)`."""

    out_features: int
    bias: bool = True

    def infer(self, *inputs: TensorShape) -> TensorShape:
        (x,) = inputs
        if (x.height, x.width) != (1, 1):
            raise InputError(f"a linear layer needs a pooled input of Cx1x1, but gets {x}")
        return TensorShape(self.out_features, 1, 1)

    def macs(self, *inputs: TensorShape) -> int:
        return inputs[0].channels * self.out_features

    def parameters(self, *inputs: TensorShape) -> dict[str, tuple[int, ...]]:
        weight = (self.out_features, inputs[0].channels)
        return {"weight": weight, "bias": (self.out_features,)} if self.bias else {"weight": weight}


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalisation over N, H and W; folded into the convolution before it on the way to ONNX."""

    eps: float = 1e-5
    momentum: float = 0.1

    def parameters(self, *inputs: TensorShape) -> dict[str, tuple[int, ...]]:
        return {"weight": (inputs[0].channels,), "bias": (inputs[0].channels,)}

    def buffers(self, *inputs: TensorShape) -> dict[str, tuple[int, ...]]:
        return {"running_mean": (inputs[0].channels,), "running_var": (inputs[0].channels,)}


@dataclass(frozen=True)
class Activation(Layer):
    """Element-wise non-linearity."""

    function: str = "relu"

    def __post_init__(self) -> None:
        if self.function not in ACTIVATIONS:
            raise InputError(f"an activation must be one of {', '.join(ACTIVATIONS)}, but got {self.function!r}")


@dataclass(frozen=True)
class Pool(Layer):
    """Max or average pooling; the average leaves padding out of its denominator."""

    kind: Literal["max", "avg"]
    kernel: int = 3
    stride: int = 1
    padding: int = 0

    def infer(self, *inputs: TensorShape) -> TensorShape:
        (x,) = inputs
        if self.padding > self.kernel // 2:
            raise InputError(f"a pool's padding must be at most half its kernel, but is {self.padding} for kernel {self.kernel}")
        return _slide(f"a {self.kind} pool", x, x.channels, (self.kernel,) * 2, self.stride, (self.padding,) * 2)


@dataclass(frozen=True)
class Pad(Layer):
    """Adds rows and columns of zeros, or takes rows and columns away where a number is negative."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def infer(self, *inputs: TensorShape) -> TensorShape:
        (x,) = inputs
        shape = TensorShape(x.channels, x.height + self.top + self.bottom, x.width + self.left + self.right)
        cropped = min(x.height + min(self.top, 0) + min(self.bottom, 0), x.width + min(self.left, 0) + min(self.right, 0))
        if cropped < 1:
            raise InputError(f"a crop must leave at least one row and column, but {self} leaves none of {x}")
        return shape


@dataclass(frozen=True)
class Resize(Layer):
    """Bilinear interpolation to another resolution, pixel centres at half coordinates, no smoothing before it."""

    height: int
    width: int

    def infer(self, *inputs: TensorShape) -> TensorShape:
        return TensorShape(inputs[0].channels, self.height, self.width)


@dataclass(frozen=True)
class GlobalAveragePool(Layer):
    """Mean over height and width: `(C, H, W)` to `(C, 1, 1)`."""

    def infer(self, *inputs: TensorShape) -> TensorShape:
        return TensorShape(inputs[0].channels, 1, 1)


@dataclass(frozen=True)
class Add(Layer):
    """Element-wise sum of two or more tensors of one shape."""

    def infer(self, *inputs: TensorShape) -> TensorShape:
        if len(set(inputs)) != 1:
            raise InputError(f"a residual sum needs equal shapes, but gets {' and '.join(map(str, inputs))}")
        return inputs[0]


@dataclass(frozen=True)
class Multiply(Layer):
    """Scales `(C, H, W)` by a `(C, 1, 1)` gate (squeeze-and-excitation's last step)."""

    def infer(self, *inputs: TensorShape) -> TensorShape:
        x, gate = inputs
        if gate not in (x, TensorShape(x.channels, 1, 1)):
            raise InputError(f"a channel gate for {x} must be {x.channels}x1x1, but is {gate}")
        return x


@dataclass(frozen=True)
class Concat(Layer):
    """Concatenation along channels."""

    def infer(self, *inputs: TensorShape) -> TensorShape:
        if len({shape[1:] for shape in inputs}) != 1:
            raise InputError(f"a concatenation needs equal resolutions, but gets {' and '.join(map(str, inputs))}")
        return TensorShape(sum(shape.channels for shape in inputs), *inputs[0][1:])


@dataclass(frozen=True)
class ChannelSlice(Layer):
    """Channels `start` to `stop` (exclusive)."""

    start: int
    stop: int

    def infer(self, *inputs: TensorShape) -> TensorShape:
        (x,) = inputs
        if not 0 <= self.start < self.stop <= x.channels:
            raise InputError(f"a channel slice must lie within its input, but {self.start}:{self.stop} is outside {x}")
        return TensorShape(self.stop - self.start, x.height, x.width)


@dataclass(frozen=True)
class ChannelShuffle(Layer):
    """Reads the channels as a `(groups, C / groups)` matrix and transposes it (ShuffleNet, arXiv 1707.01083, sec. 3.1).

    With `groups = C / 2` the even-indexed channels come first and the odd-indexed ones second: Single Path One-Shot's
    split by channel parity.
    """

    groups: int

    def infer(self, *inputs: TensorShape) -> TensorShape:
        (x,) = inputs
        if x.channels % self.groups:
            raise InputError(f"a channel shuffle's groups must divide its channels, but {self.groups} does not divide "
                             f"{x.channels}")
        return x


@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout in training; nothing at inference."""

    rate: float = 0.2


@dataclass(frozen=True)
class Quantize(Layer):
    """Rounds to whole multiples of a positive `scale`, half to even, and clips to what `bits` can count.

    Unsigned: multiples 0 to 2^bits - 1. Signed: -2^(bits-1) to 2^(bits-1) - 1; one signed bit is -1 or 1 and never 0. The
    parameter `scale` is one number for the tensor, learned or calibrated; its sign does not count.
    """

    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if f"int{self.bits}" not in FORMAT_BITS:
            raise InputError(f"a quantiser must have 1 to 8 bits, but has {self.bits}")

    @property
    def lowest(self) -> int:
        """The smallest multiple."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def highest(self) -> int:
        """The largest multiple."""
        return max(1, (1 << self.bits - 1) - 1) if self.signed else (1 << self.bits) - 1

    def parameters(self, *inputs: TensorShape) -> dict[str, tuple[int, ...]]:
        return {"scale": (1,)}


@dataclass(frozen=True)
class Round(Layer):
    """Rounds to the nearest number of half precision, `fp16` or `bf16`, half to even."""

    format: str

    def __post_init__(self) -> None:
        if FORMAT_BITS.get(self.format) != 16:
            raise InputError(f"a half-precision format must be fp16 or bf16, but is {self.format!r}")
