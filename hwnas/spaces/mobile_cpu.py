"""A CPU-sized space of inverted residuals: 32x32 images, trainable in minutes on two cores. Ours, for trying things.

Three stages in the manner of MobileNetV2 (arXiv 1801.04381): the first block of each stage changes width and resolution,
the others may be skipped, so that depth is searched too.
"""

from hwnas.ir.blocks import Block, Head, Identity, MBConv, Stem
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace

_STAGES = ((16, 2, 1), (24, 3, 2), (48, 3, 2))  # width, blocks, stride of the first


def build_mobile_cpu(classes: int = 36) -> SearchSpace:
    """8 decisions; kernel {3, 5} x expansion {1, 3, 6}, plus skip where the shape stays."""
    layers: list[Fixed | Decision] = [Fixed("stem", Stem(12, 3, 1, "relu"))]
    for stage, (width, blocks, stride) in enumerate(_STAGES, 1):
        for index in range(blocks):
            options: dict[str, Block] = {
                f"k{kernel}_e{expansion}": MBConv(width, kernel, expansion, stride if index == 0 else 1, activation="relu")
                for expansion in (1, 3, 6) for kernel in (3, 5)}
            if index > 0:
                options["skip"] = Identity()
            layers.append(Decision(f"stage{stage}_{index + 1}", options))
    layers.append(Fixed("head", Head(classes, 128)))
    return SearchSpace("mobile-cpu", TensorShape(3, 32, 32), tuple(layers),
                       "MBConv kernel, expansion and depth at 32x32; CPU-sized")
