"""Elastic depth, width, kernel and resolution: once-for-all's dimensions (Cai et al., arXiv 1908.09791, sec. 3.2).

Five units of two to four inverted residuals; every block has its own kernel and expansion, a unit may stop after two or three
blocks, and the images may be smaller. `ofa-mobilenet-v3` follows the released MobileNetV3 skeleton (hard swish from the third
unit on, squeeze-and-excitation in the second, fourth and fifth); `ofa-mobilenet-v2` is the same idea on MobileNetV2's widths
with ReLU6. Blocks that a shallower unit leaves out have no kernel or expansion, so each network is counted once:
(9^2 + 9^3 + 9^4)^5 for every resolution.

Departures: the squeezed width is a quarter of the block's input (the released code rounds a quarter of the hidden width to a
multiple of 8), and gates use ReLU and sigmoid.
"""

from dataclasses import dataclass

from hwnas.ir.blocks import Block, ConvBlock, Head, Identity, MBConv, Resolution, Stem
from hwnas.ir.mobile_blocks import PooledHead
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace

KERNELS = (3, 5, 7)
EXPANSIONS = (3, 4, 6)


@dataclass(frozen=True)
class _Unit:
    width: int
    stride: int
    activation: str
    se_ratio: float = 0.0


_V3 = (_Unit(24, 2, "relu"), _Unit(40, 2, "relu", 0.25), _Unit(80, 2, "hardswish"), _Unit(112, 1, "hardswish", 0.25),
       _Unit(160, 2, "hardswish", 0.25))
_V2 = (_Unit(24, 2, "relu6"), _Unit(40, 2, "relu6"), _Unit(80, 2, "relu6"), _Unit(96, 1, "relu6"), _Unit(192, 2, "relu6"))
_CPU = (_Unit(24, 2, "relu"), _Unit(48, 2, "relu"))


def build_ofa_mobilenet_v3(classes: int = 1000) -> SearchSpace:
    """25 resolutions x 2.18e19 networks."""
    return SearchSpace("ofa-mobilenet-v3", TensorShape(3, 224, 224), (
        _resolutions(range(128, 225, 4)), Fixed("stem", Stem(16, activation="hardswish")),
        Fixed("first", MBConv(16, 3, 1, activation="relu")),
        *_units(_V3, KERNELS, EXPANSIONS, depth=4),
        Fixed("last", ConvBlock(960, 1, activation="hardswish")),
        Fixed("head", PooledHead(classes, 1280, "hardswish", 0.1))),
        "Once-for-all: elastic depth, width, kernel, resolution (arXiv 1908.09791)")


def build_ofa_mobilenet_v2(classes: int = 1000) -> SearchSpace:
    """25 resolutions x 2.18e19 networks."""
    return SearchSpace("ofa-mobilenet-v2", TensorShape(3, 224, 224), (
        _resolutions(range(128, 225, 4)), Fixed("stem", Stem(32, activation="relu6")), Fixed("first", MBConv(16, 3, 1)),
        *_units(_V2, KERNELS, EXPANSIONS, depth=4),
        Fixed("last", MBConv(320, 3, 6)), Fixed("head", Head(classes, 1280, "relu6"))),
        "Elastic depth, width, kernel, resolution on MobileNetV2's skeleton")


def build_ofa_cpu(classes: int = 36) -> SearchSpace:
    """Two units at 32x32 and 24x24: CPU-sized."""
    return SearchSpace("ofa-cpu", TensorShape(3, 32, 32), (
        _resolutions((24, 32)), Fixed("stem", Stem(16, stride=1)),
        *_units(_CPU, (3, 5), (3, 6), depth=3, fixed_first=True),
        Fixed("head", Head(classes, 128))), "Elastic depth, width, kernel, resolution at 32x32; CPU-sized")


def _resolutions(sizes: tuple[int, ...] | range) -> Decision:
    return Decision("resolution", {f"r{size}": Resolution(size) for size in sizes})


def _units(units: tuple[_Unit, ...], kernels: tuple[int, ...], expansions: tuple[int, ...], depth: int,
           fixed_first: bool = False) -> list[Fixed | Decision]:
    """Units of two blocks to `depth` blocks; with `fixed_first` the block that reduces is not a choice (see `mobile_cpu`)."""
    layers: list[Fixed | Decision] = []
    for number, unit in enumerate(units, 1):
        for index in range(depth):
            blocks: dict[str, Block] = {
                f"k{kernel}_e{expansion}": MBConv(unit.width, kernel, expansion, unit.stride if index == 0 else 1, unit.se_ratio,
                                                  unit.activation)
                for kernel in kernels for expansion in expansions}
            if index == 0 and fixed_first:
                layers.append(Fixed(f"reduce{number}", MBConv(unit.width, 3, 3, unit.stride, unit.se_ratio, unit.activation)))
            elif index < 2:
                layers.append(Decision(f"unit{number}_{index + 1}", blocks))
            else:  # a unit that has ended stays so
                after = dict.fromkeys(blocks, tuple(blocks)) if index > 2 else {}
                layers.append(Decision(f"unit{number}_{index + 1}", blocks | {"skip": Identity()}, after=after))
    return layers
