"""Residual networks at 224x224 (He et al., arXiv 1512.03385, Table 1), as torchvision builds them.

Torchvision's bottleneck has its stride in the 3x3 convolution ("v1.5"), where the paper has it in the first 1x1; shortcuts
that change shape are projections at every depth.
"""

from functools import partial

from hwnas.errors import InputError
from hwnas.ir.blocks import Block, Head, Stem
from hwnas.ir.network import Network, build_network
from hwnas.ir.residual_blocks import BasicBlock, Bottleneck
from hwnas.spaces.reference import Published, ReferenceNetwork

_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {  # block, how many in each stage
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
_SOURCE = "MACs: He et al., arXiv 1512.03385, Table 1; parameters and top-1: torchvision's documentation, IMAGENET1K_V1"


def resnet_blocks(depth: int, classes: int = 1000) -> list[tuple[str, Block]]:
    """The network as named blocks: `stem`, `stage1_1` to `stage4_N`, `head`.

    Raises:
        InputError: There is no network of this depth.
    """
    if depth not in _DEPTHS:
        raise InputError(f"A ResNet's depth is one of {', '.join(map(str, _DEPTHS))}, but got {depth}: choose one of these.")
    kind, stages = _DEPTHS[depth]
    first_width = 64 if kind is BasicBlock else 256
    residual = [(f"stage{stage + 1}_{index + 1}", kind(first_width << stage, stride=2 if stage and not index else 1))
                for stage, blocks in enumerate(stages) for index in range(blocks)]
    return [("stem", Stem(64, 7, pool=True)), *residual, ("head", Head(classes))]


def build_resnet(depth: int, classes: int = 1000) -> Network:
    """ResNet-18, -34 or -50 for 3x224x224 images.

    Raises:
        InputError: There is no network of this depth.
    """
    return build_network((3, 224, 224), resnet_blocks(depth, classes))


NETWORKS: tuple[ReferenceNetwork, ...] = (
    ReferenceNetwork(
        "resnet-18", partial(build_resnet, 18), Published(1_800_000_000, 11_689_512, 69.758, _SOURCE)),
    ReferenceNetwork(
        "resnet-34", partial(build_resnet, 34), Published(3_600_000_000, 21_797_672, 73.314, _SOURCE),
        "3.6 x 10^9 fits the paper's shortcuts without projections: 3,663,761,408 - 19,267,584 = 3,644,493,824 MACs."),
    ReferenceNetwork(
        "resnet-50", partial(build_resnet, 50), Published(3_800_000_000, 25_557_032, 76.130, _SOURCE),
        "The stride is in the 3x3 convolution (v1.5). With the paper's stride in the 1x1 before it, the count would be "
        "4,089,184,256 - 231,211,008 = 3,857,973,248 MACs, which the paper's 3.8 x 10^9 cuts off rather than rounds."),
)
