"""A plain chain of 20 convolutions: {24, 36, 48, 64} filters x {3, 5, 7} kernels x stride {1, 2}, the example of lectures on NAS.

(4 x 3 x 2)^20, about 4e27, combinations: far more than the networks that make sense, since eight strides of 2 bring 224 pixels
down to one. A layer strides only where at least two pixels are left, so the space counts the networks that keep a legal
resolution: 12^20 times the ways to place at most eight strides. What the example leaves open is fixed here: resolution-keeping
padding, batch norm and ReLU after every convolution, global pooling and a classifier.
"""

from hwnas.ir.blocks import Block, ConvBlock, Head
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace

LAYERS = 20
FILTERS = (24, 36, 48, 64)
KERNELS = (3, 5, 7)
STRIDES = (1, 2)


def build_plain_conv(resolution: int = 224, classes: int = 1000, layers: int = LAYERS) -> SearchSpace:
    """24 options a layer, such as `f48_k5_s2`."""
    return _build("plain-conv", resolution, classes, layers, "Plain convolutions: filters, kernel, stride in 20 layers")


def build_plain_conv_cpu(classes: int = 36) -> SearchSpace:
    """The same options at 32x32, 6 layers: CPU-sized."""
    return _build("plain-conv-cpu", 32, classes, 6, "Plain convolutions at 32x32, 6 layers; CPU-sized")


def _build(name: str, resolution: int, classes: int, layers: int, description: str) -> SearchSpace:
    options: dict[str, Block] = {f"f{filters}_k{kernel}_s{stride}": ConvBlock(filters, kernel, stride)
                                 for filters in FILTERS for kernel in KERNELS for stride in STRIDES}
    decisions = [Decision(f"layer{index + 1}", options, where_fits=True) for index in range(layers)]
    return SearchSpace(name, TensorShape(3, resolution, resolution), (*decisions, Fixed("head", Head(classes))), description)
