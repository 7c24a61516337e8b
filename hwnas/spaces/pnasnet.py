"""PNASNet-5 (Liu et al., arXiv 1712.00559, fig. 1) and the operations that its cell was searched among.

One cell in every role, with stride 2 where it reduces, on NASNet's skeleton, as in the authors' released code
(tensorflow/models, slim/nets/nasnet/pnasnet.py). No auxiliary classifier and no drop-path: they exist in training only.
"""

from functools import partial

from hwnas.errors import InputError
from hwnas.ir.block import Block
from hwnas.ir.cells import Cell, CellKind, CellSpace, Skeleton, chosen_pairs
from hwnas.ir.genotype import INPUTS, Genotype
from hwnas.ir.network import Network
from hwnas.spaces import nasnet
from hwnas.spaces.reference import Published, ReferenceNetwork

OPERATIONS = {name: nasnet.OPERATIONS[name] for name in (
    "separable_3x3", "separable_5x5", "separable_7x7", "conv_1x7_7x1", "identity", "avg_pool_3x3", "max_pool_3x3", "dilated_3x3")}
"""The 8 of NASNet's 13 that its authors kept (sec. 3.1)."""

CELL = Genotype((
    (("separable_5x5", 1), ("max_pool_3x3", 1)),
    (("separable_7x7", 0), ("max_pool_3x3", 0)),
    (("separable_5x5", 0), ("separable_3x3", 0)),
    (("separable_3x3", 4), ("max_pool_3x3", 0)),
    (("separable_3x3", 1), ("identity", 0))), (2, 3, 4, 5, 6))
"""State 0 is the cell's input at the cell's width, state 1 the output of the cell before it."""


def operation(name: str, channels: int, stride: int = 1) -> Block:
    """One of PNASNet's 8 operations; `hwnas.spaces.nasnet.operation` says more.

    Raises:
        InputError: There is no operation of this name.
    """
    if name not in OPERATIONS:
        raise InputError(f"An operation of PNASNet is one of {', '.join(OPERATIONS)}, but got {name!r}: choose one of these.")
    return OPERATIONS[name](channels, stride)


def build_pnasnet5(size: int = 224, channels: int = 54, cells_per_group: int = 3, stem_channels: int = 32,
                   classes: int = 1000) -> Network:
    """PNASNet-5 for ImageNet; the defaults are the mobile one.

    Args:
        size: Height and width of the images.
        channels: Width of the first group's cells; doubled for each of the two others, a quarter and a half in the stem.
        cells_per_group: Cells in each of the three groups; the first of the second and third group reduces.
        stem_channels: Width of the first convolution.
        classes: Outputs.
    """
    return _skeleton(size, channels, cells_per_group, stem_channels, classes).network({"cell": CELL})


def build_pnasnet() -> CellSpace:
    """The space of PNASNet at its mobile size: five states of two operations on any two states before.

    Of the paper's 5.6e14 cells 2.8 % are left out, which never read the cell before: every other one would be computed in vain.
    """
    kind = CellKind(chosen_pairs("cell", range(INPUTS, INPUTS + nasnet.STATES), tuple(OPERATIONS), nasnet.any_two), CELL.concat)
    return CellSpace("pnasnet", _skeleton(224, 54, 3, 32, 1000), {"cell": kind}, "PNASNet cells at 224x224 (arXiv 1712.00559)")


def _skeleton(size: int, channels: int, cells_per_group: int, stem_channels: int, classes: int) -> Skeleton:
    cells = [Cell(f"stem{number}", "cell", channels * number // 4, 2) for number in (1, 2)]
    cells += [Cell(f"group{group + 1}_{number + 1}", "cell", channels << group, 2 if group and number == 0 else 1)
              for group in range(3) for number in range(cells_per_group)]
    return nasnet.stacked(size, stem_channels, cells, classes, OPERATIONS)


_ACCURACY = "tensorflow/models, slim/README.md (accuracy)"

NETWORKS = (
    ReferenceNetwork(
        "pnasnet-5-mobile", build_pnasnet5,
        Published(588_000_000, 5_100_000, 74.2, f"arXiv 1904.00420's comparison (cost); {_ACCURACY}"),
        "The released definition makes 587,293,200 multiply-accumulates, 0.12 % less than the 588M reported; the stem's widths, "
        "54 / 4 and 54 / 2, are cut to 13 and 27, and 14 and 27 would already make 590M."),
    ReferenceNetwork(
        "pnasnet-5-large", partial(build_pnasnet5, 331, 216, 4, 96),
        Published(25_000_000_000, 86_100_000, 82.9, f"timm's model card of pnasnet5large (cost); {_ACCURACY}")),
)
