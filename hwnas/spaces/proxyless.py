"""ProxylessNAS (Cai et al., arXiv 1812.00332): the space of the released search code and the released networks.

Stem, one fixed MBConv of expansion 1, six stages of MBConv with kernel {3, 5, 7} and expansion {3, 6}; a block that keeps
its shape may be skipped (the paper's Zero operation beside the residual). The space has the search code's default widths;
each released network has widths of its own, so none of them is a path of it. Batch norm has this package's epsilon of 1e-5,
where the released code has 1e-3.
"""

from functools import partial

from hwnas.ir.blocks import Block, Head, Identity, MBConv, Stem
from hwnas.ir.network import Network, build_network
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.spaces.reference import Published, ReferenceNetwork

_STAGES = ((24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))  # width, blocks, stride of the first
_TINY_STAGES = ((16, 2), (24, 3), (48, 3))  # width, searched blocks
_WIDTHS = {  # of the stem, the fixed block, the stages and the last convolution
    "mobile": (32, 16, (32, 40, 80, 96, 192, 320), 1280),
    "mobile-1.4": (48, 24, (40, 56, 112, 136, 256, 448), 1792),
    "gpu": (40, 24, (32, 56, 112, 128, 256, 432), 1728),
    "cpu": (40, 24, (32, 48, 88, 104, 216, 360), 1432),
}
_MOBILE_BLOCKS = ("5/3 3/3 - -", "7/3 3/3 5/3 5/3", "7/6 5/3 5/3 5/3", "5/6 5/3 5/3 5/3", "7/6 7/6 7/3 7/3", "7/6")
_BLOCKS = {  # of each stage: kernel/expansion, or - for a skipped block
    "mobile": _MOBILE_BLOCKS,
    "mobile-1.4": _MOBILE_BLOCKS,
    "gpu": ("5/3 - - -", "7/3 - - 3/3", "7/6 - - 5/3", "5/6 - 3/3 5/3", "7/6 7/6 7/6 5/6", "7/6"),
    "cpu": ("3/6 3/3 3/3 3/3", "3/6 3/3 3/3 5/3", "3/6 - - 3/3", "5/6 3/3 3/3 3/3", "5/6 5/3 5/3 3/3", "5/6"),
}


def build_proxyless() -> SearchSpace:
    """6^6 x 7^15 networks at 224x224, 1000 classes."""
    layers: list[Fixed | Decision] = [Fixed("stem", Stem(32, activation="relu6")), Fixed("first", MBConv(16, 3, 1))]
    for stage, (width, blocks, stride) in enumerate(_STAGES, 1):
        layers += [Decision(f"stage{stage}_{index + 1}", _candidates(width, 1 if index else stride, skip=index > 0))
                   for index in range(blocks)]
    layers.append(Fixed("head", Head(1000, 1280, "relu6")))
    return SearchSpace("proxyless", TensorShape(3, 224, 224), tuple(layers),
                       "ProxylessNAS: 21 MBConv blocks (arXiv 1812.00332)")


def build_proxyless_tiny(classes: int = 36) -> SearchSpace:
    """The same candidates at 32x32, 8 decisions: 7^8 networks, CPU-sized.

    Blocks that change width and resolution are fixed, as in `mobile-cpu`, so that a supernet learns within minutes.
    """
    layers: list[Fixed | Decision] = [Fixed("stem", Stem(_TINY_STAGES[0][0], stride=1, activation="relu6"))]
    for stage, (width, blocks) in enumerate(_TINY_STAGES, 1):
        if stage > 1:
            layers.append(Fixed(f"reduce{stage}", MBConv(width, 3, 3, 2)))
        layers += [Decision(f"stage{stage}_{index + 1}", _candidates(width)) for index in range(blocks)]
    layers.append(Fixed("head", Head(classes, 128, "relu6")))
    return SearchSpace("proxyless-tiny", TensorShape(3, 32, 32), tuple(layers),
                       "ProxylessNAS's candidates at 32x32; CPU-sized")


def build_proxyless_network(target: str) -> Network:
    """The released network for a target: mobile, mobile-1.4, gpu or cpu."""
    stem, first, widths, last = _WIDTHS[target]
    blocks: list[tuple[str, Block]] = [("stem", Stem(stem, activation="relu6")), ("first", MBConv(first, 3, 1))]
    for stage, (width, (_, _, stride), row) in enumerate(zip(widths, _STAGES, _BLOCKS[target], strict=True), 1):
        for index, text in enumerate(row.split()):
            if text != "-":
                kernel, expansion = map(int, text.split("/"))
                blocks.append((f"stage{stage}_{index + 1}", MBConv(width, kernel, expansion, 1 if index else stride)))
    return build_network((3, 224, 224), [*blocks, ("head", Head(1000, last, "relu6"))])


def _candidates(width: int, stride: int = 1, skip: bool = True) -> dict[str, Block]:
    options: dict[str, Block] = {f"k{kernel}_e{expansion}": MBConv(width, kernel, expansion, stride)
                                 for expansion in (3, 6) for kernel in (3, 5, 7)}
    return options | {"skip": Identity()} if skip else options


_CODE = "mit-han-lab/proxylessnas"
_QUOTED = "Guo et al., arXiv 1904.00420"
NETWORKS: tuple[ReferenceNetwork, ...] = tuple(
    ReferenceNetwork(f"proxyless-{target}", partial(build_proxyless_network, target), published,
                     f"{note}It has widths of its own, so it is no path of the space `proxyless`.")
    for target, published, note in (
        ("mobile", Published(320_000_000, 4_000_000, 74.6, f"{_QUOTED}, Table 4 (MACs, parameters); {_CODE} (top-1)"),
         "4.0M is the weights alone: 4,045,016 + 34,496 of batch norm + 1,000 biases = 4,080,512. "),
        ("mobile-1.4", Published(None, None, None, f"{_CODE} (the network, no figures)"), ""),
        ("gpu", Published(465_000_000, None, 75.1, f"{_QUOTED} (MACs); {_CODE} (top-1)"), ""),
        ("cpu", Published(None, None, 75.3, f"{_CODE} (top-1)"), ""),
    ))
