"""A CPU-sized space of inverted residuals: 32x32 images, trainable in minutes on two cores. Ours, for trying things.

Three stages in the manner of MobileNetV2 (arXiv 1801.04381). The blocks that change width and resolution are fixed; every
other block chooses kernel and expansion or is skipped, so that depth is searched too. Only residual blocks are chosen, because
a shared weight learns little while the features that it reads come from another random projection at every step: with
the reductions as decisions too, the supernet hardly leaves chance in the minutes that a quickstart has.
"""

from hwnas.ir.blocks import Block, Head, Identity, MBConv, Stem
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace

_STAGES = ((16, 2), (24, 3), (48, 3))  # width, searched blocks


def build_mobile_cpu(classes: int = 36) -> SearchSpace:
    """8 decisions: kernel {3, 5} x expansion {1, 3, 6}, or skip."""
    layers: list[Fixed | Decision] = [Fixed("stem", Stem(_STAGES[0][0], 3, 1))]
    for stage, (width, blocks) in enumerate(_STAGES, 1):
        if stage > 1:
            layers.append(Fixed(f"reduce{stage}", MBConv(width, 3, 3, 2, activation="relu")))
        options: dict[str, Block] = {f"k{kernel}_e{expansion}": MBConv(width, kernel, expansion, activation="relu")
                                     for expansion in (1, 3, 6) for kernel in (3, 5)}
        options["skip"] = Identity()
        layers += [Decision(f"stage{stage}_{index + 1}", options) for index in range(blocks)]
    layers.append(Fixed("head", Head(classes, 128)))
    return SearchSpace("mobile-cpu", TensorShape(3, 32, 32), tuple(layers),
                       "MBConv kernel, expansion and depth at 32x32; CPU-sized")
