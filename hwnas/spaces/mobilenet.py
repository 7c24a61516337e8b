"""MobileNetV1 (Howard et al., arXiv 1704.04861, Table 1) and V2 (Sandler et al., arXiv 1801.04381, Table 2) at 224x224.

A multiplier scales every width: V1's as it is, V2's to a multiple of 8 (the authors' released code), V2's last convolution
only where the multiplier exceeds 1.
"""

from functools import partial

from hwnas.ir.blocks import Block, Head, MBConv, SeparableConv, Stem
from hwnas.ir.network import Network, build_network
from hwnas.spaces.reference import Published, ReferenceNetwork

_V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))  # width, stride
_V2_STAGES = (  # expansion, width, blocks, stride of the first
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def round_width(width: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, but never less than 90% of the width: the rule of the released mobile networks."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def build_mobilenet_v1(multiplier: float = 1.0, classes: int = 1000) -> Network:
    """Depthwise-separable convolutions; `multiplier` is the paper's alpha."""
    blocks = [(f"block{index}", SeparableConv(round(width * multiplier), stride=stride))
              for index, (width, stride) in enumerate(_V1_BLOCKS, 1)]
    return build_network((3, 224, 224), [("stem", Stem(round(32 * multiplier))), *blocks, ("head", Head(classes))])


def build_mobilenet_v2(multiplier: float = 1.0, classes: int = 1000) -> Network:
    """Inverted residuals with linear bottlenecks."""
    blocks: list[tuple[str, Block]] = [
        (f"stage{stage}_{index + 1}", MBConv(round_width(width * multiplier), 3, expansion, 1 if index else stride))
        for stage, (expansion, width, count, stride) in enumerate(_V2_STAGES, 1) for index in range(count)]
    stem = Stem(round_width(32 * multiplier), activation="relu6")
    head = Head(classes, round_width(1280 * max(1.0, multiplier)), "relu6", dropout=0.2)
    return build_network((3, 224, 224), [("stem", stem), *blocks, ("head", head)])


_V1 = "Howard et al., arXiv 1704.04861, Table 6"
_V2 = "Sandler et al., arXiv 1801.04381, Table 4"
_V2_SLIM = "tensorflow/models, research/slim/nets/mobilenet/README.md"

NETWORKS: tuple[ReferenceNetwork, ...] = (
    ReferenceNetwork("mobilenet-v1-0.5", partial(build_mobilenet_v1, 0.5), Published(149_000_000, 1_300_000, 63.7, _V1)),
    ReferenceNetwork("mobilenet-v1-0.75", partial(build_mobilenet_v1, 0.75), Published(325_000_000, 2_600_000, 68.4, _V1)),
    ReferenceNetwork("mobilenet-v1-1.0", partial(build_mobilenet_v1, 1.0), Published(569_000_000, 4_200_000, 70.6, _V1)),
    ReferenceNetwork(
        "mobilenet-v2-0.75", partial(build_mobilenet_v2, 0.75), Published(209_000_000, 2_610_000, 69.8, _V2_SLIM),
        "2.61M is the weights alone: 2,608,784 + 26,640 of batch norm + 1,000 biases = 2,636,424."),
    ReferenceNetwork(
        "mobilenet-v2-1.0", partial(build_mobilenet_v2, 1.0), Published(300_000_000, 3_400_000, 72.0, _V2),
        "Both figures are cut off rather than rounded: 300,774,272 MACs, and the weights alone, 3,469,760 (3.47M in TF-slim's "
        "table), of 3,469,760 + 34,112 of batch norm + 1,000 biases = 3,504,872 parameters."),
    ReferenceNetwork(
        "mobilenet-v2-1.4", partial(build_mobilenet_v2, 1.4), Published(585_000_000, 6_900_000, 74.7, _V2),
        "Neither figure can be reproduced: the count is 582,195,824 MACs and 6,059,840 weights + 47,936 of batch norm + 1,000 "
        "biases = 6,108,776 parameters. TF-slim's table agrees with it: 582M, 6.06M (the weights alone), top-1 75.0."),
)
