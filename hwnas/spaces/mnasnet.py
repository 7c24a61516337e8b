"""MnasNet's space and networks (Tan et al., arXiv 1807.11626, sec. 4.1).

Seven blocks, those of MobileNetV2; a block repeats one layer and is chosen as a whole: operation {conv, dwconv, mbconv3,
mbconv6} x kernel {3, 5} x squeeze-and-excitation ratio {0, 0.25} x skip {pool, identity, none} x width {0.75, 1, 1.25} and
number of layers {-1, 0, +1} relative to MobileNetV2. These are the paper's 432 options for a block; its example counts five
blocks (432^5, "about 10^13"), here are the seven that MobileNetV2 has.

What the paper leaves open, and what is done here:
- Its blocks of one layer cannot lose one, as only a layer changes the width: they have 1, 2 or 3 layers.
- Widths are the exact products. Rounded to multiples of 8, 12 and 16 would be one option, and so would 18 and 24.
- `pool` adds a 3x3 average pool of the layer's input, which takes the layer's stride; no skip changes the width. So the three
  skips are one network in a layer that changes the width, and `identity` and `none` are in one that only reduces.

The released networks are no paths: A1's fifth block has 112 channels (1.25 x 96 is 120), B1's sixth 192 (1.25 x 160 is 200).
The "MnasNet" of the paper's first version (317M, 4.2M, 74.0 %), with which FBNet and Single Path One-Shot compare, is not here:
it is neither A1 nor B1 by count, and no other definition of it was found.
"""

import itertools
from functools import partial

from hwnas.ir.blocks import Block, Head, MBConv, MnasNetLayer, Sequence, Stem
from hwnas.ir.network import Network, build_network
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.spaces.reference import Published, ReferenceNetwork

_SHAPE = TensorShape(3, 224, 224)
# MobileNetV2: width, layers, stride
_BLOCKS = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_OPTIONS = tuple(itertools.product(
    ("conv", "dwconv", "mbconv3", "mbconv6"), (3, 5), (0, 0.25), ("pool", "identity", "none"), (3, 4, 5), (-1, 0, 1)))

# Layers, kernel, stride, expansion, width, squeeze-and-excitation ratio of the seven stages
_A1 = ((1, 3, 1, 1, 16, 0), (2, 3, 2, 6, 24, 0), (3, 5, 2, 3, 40, 0.25), (4, 3, 2, 6, 80, 0), (2, 3, 1, 6, 112, 0.25),
       (3, 5, 2, 6, 160, 0.25), (1, 3, 1, 6, 320, 0))
_B1 = ((1, 3, 1, 1, 16, 0), (3, 3, 2, 3, 24, 0), (3, 5, 2, 3, 40, 0), (3, 5, 2, 6, 80, 0), (2, 3, 1, 6, 96, 0),
       (4, 5, 2, 6, 192, 0), (1, 3, 1, 6, 320, 0))
_SMALL = ((1, 3, 1, 1, 8, 0), (1, 3, 2, 3, 16, 0), (2, 3, 2, 6, 16, 0), (4, 5, 2, 6, 32, 0.25), (3, 3, 1, 6, 32, 0.25),
          (3, 5, 2, 6, 88, 0.25), (1, 3, 1, 6, 144, 0))
_Stages = tuple[tuple[int, int, int, int, int, float], ...]


def block_options(width: int, layers: int, stride: int) -> dict[str, Block]:
    """The 432 options of a block.

    Args:
        width: MobileNetV2's.
        layers: MobileNetV2's number of layers.
        stride: Of the first layer.
    """
    options: dict[str, Block] = {}
    for operation, kernel, se_ratio, skip, quarters, more in _OPTIONS:
        chosen_width, count = width * quarters // 4, max(layers, 2) + more
        name = f"{operation}_k{kernel}_{'se_' if se_ratio else ''}{skip}_w{chosen_width}_n{count}"
        options[name] = Sequence(tuple(MnasNetLayer(chosen_width, operation, kernel, 1 if index else stride, se_ratio, skip)
                                       for index in range(count)))
    return options


def build_mnasnet() -> SearchSpace:
    """Seven decisions of 432 options each, at 224x224, 1000 classes."""
    blocks = [Decision(f"block{number}", block_options(*block)) for number, block in enumerate(_BLOCKS, 1)]
    return SearchSpace("mnasnet", _SHAPE, (Fixed("stem", Stem(32)), *blocks, Fixed("head", Head(1000, 1280, dropout=0.2))),
                       "MnasNet: 7 blocks chosen as a whole, 432 options each (arXiv 1807.11626)")


def _network(stem_channels: int, stages: _Stages, dropout: float) -> Network:
    """A released network; its first stage adds no input, whatever its widths."""
    blocks = [(f"stage{stage}_{index + 1}", MBConv(width, kernel, expansion, 1 if index else stride, se_ratio, "relu",
                                                   False if stage == 1 else None))
              for stage, (count, kernel, stride, expansion, width, se_ratio) in enumerate(stages, 1)
              for index in range(count)]
    return build_network(_SHAPE, [("stem", Stem(stem_channels)), *blocks, ("head", Head(1000, 1280, dropout=dropout))])


_SOURCE = "arXiv 1807.11626"
_README = "tensorflow/tpu models/official/mnasnet README"

NETWORKS = (
    ReferenceNetwork("mnasnet-a1", partial(_network, 32, _A1, 0.2), Published(312_000_000, 3_900_000, 75.2, _SOURCE),
                     "311,579,072, of which 253,728 are squeeze-and-excitation. What else the release's table has in its 315.2M "
                     "is not known."),
    ReferenceNetwork("mnasnet-b1", partial(_network, 32, _B1, 0.2), Published(315_000_000, 4_400_000, 74.5, _SOURCE),
                     "314,415,872; what the printed 315M add is not known."),
    ReferenceNetwork("mnasnet-small", partial(_network, 8, _SMALL, 0), Published(68_000_000, 2_000_000, 66.0, _README),
                     "Accuracy is printed as about 66 %. The release declares 16 input channels for the first stage, gets 8 and "
                     "so adds no input there."),
)
