"""ProxylessNAS's space (Cai et al., arXiv 1812.00332), default widths of the released search code.

Stem, one fixed MBConv of expansion 1, six stages of MBConv with kernel {3, 5, 7} and expansion {3, 6}; a block that keeps
its shape may be skipped (the paper's Zero operation beside the residual).
"""

from hwnas.ir.blocks import Block, Head, Identity, MBConv, Stem
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace

_STAGES = ((24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))  # width, blocks, stride of the first


def build_proxyless() -> SearchSpace:
    """6^6 x 7^15 networks at 224x224, 1000 classes."""
    layers: list[Fixed | Decision] = [Fixed("stem", Stem(32, activation="relu6")), Fixed("first", MBConv(16, 3, 1))]
    for stage, (width, blocks, stride) in enumerate(_STAGES, 1):
        for index in range(blocks):
            options: dict[str, Block] = {
                f"k{kernel}_e{expansion}": MBConv(width, kernel, expansion, stride if index == 0 else 1)
                for expansion in (3, 6) for kernel in (3, 5, 7)}
            if index > 0:
                options["skip"] = Identity()
            layers.append(Decision(f"stage{stage}_{index + 1}", options))
    layers.append(Fixed("head", Head(1000, 1280, "relu6")))
    return SearchSpace("proxyless", TensorShape(3, 224, 224), tuple(layers),
                       "ProxylessNAS: 21 MBConv blocks (arXiv 1812.00332)")
