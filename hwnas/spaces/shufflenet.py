"""ShuffleNetV2 at 224x224 (Ma et al., arXiv 1807.11164, Table 5), as in the authors' released code.

Its units are Single Path One-Shot's `ShuffleUnit` with kernel 3: the channels that a unit of stride 2 projects keep their
number, where another common implementation (torchvision's) gives both branches half of the output. The two differ in stage 2's
first unit alone, and only the one used here gives the published MACs. The classifier has a bias, which the released code
leaves out.
"""

from functools import partial

from hwnas.errors import InputError
from hwnas.ir.blocks import Head, ShuffleUnit, Stem
from hwnas.ir.network import Network, build_network
from hwnas.spaces.reference import Published, ReferenceNetwork

_DEPTHS = (4, 8, 4)  # units of stages 2 to 4; the first of each has stride 2
_SIZES = {  # widths of stages 2 to 4, width of the last convolution, dropout
    "0.5": ((48, 96, 192), 1024, 0.0),
    "1.0": ((116, 232, 464), 1024, 0.0),
    "1.5": ((176, 352, 704), 1024, 0.0),
    "2.0": ((244, 488, 976), 2048, 0.2),
}
_SOURCE = "megvii-model/ShuffleNet-Series, ShuffleNetV2/README.md"


def build_shufflenet_v2(size: str = "1.0", classes: int = 1000) -> Network:
    """ShuffleNetV2 of size 0.5, 1.0, 1.5 or 2.0.

    Raises:
        InputError: There is no network of this size.
    """
    if size not in _SIZES:
        raise InputError(f"ShuffleNetV2's size is one of {', '.join(_SIZES)}, but got {size!r}: choose one of these.")
    widths, channels, dropout = _SIZES[size]
    units = [(f"stage{stage}_{index + 1}", ShuffleUnit(width, 3, 1 if index else 2))
             for stage, (width, depth) in enumerate(zip(widths, _DEPTHS, strict=True), 2) for index in range(depth)]
    head = Head(classes, channels, dropout=dropout)
    return build_network((3, 224, 224), [("stem", Stem(24, pool=True)), *units, ("head", head)])


NETWORKS: tuple[ReferenceNetwork, ...] = (
    ReferenceNetwork(
        "shufflenet-v2-0.5", partial(build_shufflenet_v2, "0.5"), Published(41_000_000, 1_400_000, 61.1, _SOURCE),
        "41M would follow from counting the average pool's inputs too: 40,476,448 + 50,176 = 40,526,624; that this was the rule "
        "is a guess."),
    ReferenceNetwork(
        "shufflenet-v2-1.0", partial(build_shufflenet_v2, "1.0"), Published(146_000_000, 2_300_000, 69.4, _SOURCE)),
    ReferenceNetwork(
        "shufflenet-v2-1.5", partial(build_shufflenet_v2, "1.5"), Published(299_000_000, 3_500_000, 72.6, _SOURCE)),
    ReferenceNetwork(
        "shufflenet-v2-2.0", partial(build_shufflenet_v2, "2.0"), Published(591_000_000, 7_400_000, 75.0, _SOURCE)),
)
