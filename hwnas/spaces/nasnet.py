"""NASNet-A (Zoph et al., arXiv 1707.07012, fig. 4) and the operations that its cells were searched among.

Follows the authors' released code (tensorflow/models, slim/nets/nasnet): stem, cell inputs, reductions. Its auxiliary
classifier and drop-path exist in training only, so they are no part of these networks; batch norm keeps this package's
epsilon, where that code has 1e-3.
"""

from collections.abc import Callable, Iterable
from functools import partial

from hwnas.errors import InputError
from hwnas.ir.block import Block
from hwnas.ir.blocks import Identity
from hwnas.ir.cell_operations import (
    CellHead,
    FactorizedConvolution,
    PoolOperation,
    PreactivatedConv,
    SeparableOperation,
    UnpaddedStem,
)
from hwnas.ir.cells import Cell, CellKind, CellSpace, Skeleton, chosen_pairs
from hwnas.ir.genotype import INPUTS, Genotype
from hwnas.ir.network import Network
from hwnas.ir.shape import TensorShape
from hwnas.spaces.reference import Published, ReferenceNetwork

STATES = 5

# The 13 operations of sec. 3. Those that NASNet-A does not use are in no released code of NASNet: they are plain convolutions
# here, dilated or not, as in AmoebaNet's release (same group), which puts narrowing 1x1 convolutions around them besides.
OPERATIONS: dict[str, Callable[[int, int], Block]] = {
    "identity": lambda channels, stride: Identity() if stride == 1 else PreactivatedConv(channels, 1, stride),
    "conv_1x3_3x1": lambda channels, stride: FactorizedConvolution(channels, 3, stride),
    "conv_1x7_7x1": lambda channels, stride: FactorizedConvolution(channels, 7, stride),
    "dilated_3x3": lambda channels, stride: PreactivatedConv(channels, 3, stride, dilation=2),
    "avg_pool_3x3": lambda channels, stride: PoolOperation("avg", 3, stride, channels),
    "max_pool_3x3": lambda channels, stride: PoolOperation("max", 3, stride, channels),
    "max_pool_5x5": lambda channels, stride: PoolOperation("max", 5, stride, channels),
    "max_pool_7x7": lambda channels, stride: PoolOperation("max", 7, stride, channels),
    "conv_1x1": lambda channels, stride: PreactivatedConv(channels, 1, stride),
    "conv_3x3": lambda channels, stride: PreactivatedConv(channels, 3, stride),
    "separable_3x3": lambda channels, stride: SeparableOperation(channels, 3, stride),
    "separable_5x5": lambda channels, stride: SeparableOperation(channels, 5, stride),
    "separable_7x7": lambda channels, stride: SeparableOperation(channels, 7, stride),
}

# State 0 is the cell's input at the cell's width, state 1 the output of the cell before it.
NORMAL = Genotype((
    (("separable_5x5", 0), ("separable_3x3", 1)),
    (("separable_5x5", 1), ("separable_3x3", 1)),
    (("avg_pool_3x3", 0), ("identity", 1)),
    (("avg_pool_3x3", 1), ("avg_pool_3x3", 1)),
    (("separable_3x3", 0), ("identity", 0))), (1, 2, 3, 4, 5, 6))
REDUCTION = Genotype((
    (("separable_5x5", 0), ("separable_7x7", 1)),
    (("max_pool_3x3", 0), ("separable_7x7", 1)),
    (("avg_pool_3x3", 0), ("separable_5x5", 1)),
    (("identity", 3), ("avg_pool_3x3", 2)),
    (("separable_3x3", 2), ("max_pool_3x3", 0))), (3, 4, 5, 6))


TEMPLATES = {name: (make(2, 1), make(2, 2)) for name, make in OPERATIONS.items()}
"""The operations as a skeleton takes them: at stride 1 and 2, of any width."""


def operation(name: str, channels: int, stride: int = 1) -> Block:
    """One of NASNet's 13 operations.

    Args:
        name: A key of `OPERATIONS`.
        channels: Output width. An identity of stride 1 cannot change the width, and need not: states have the cell's width,
            save the first cell's second input, which is always read with a stride.
        stride: 1 or 2.

    Raises:
        InputError: There is no operation of this name.
    """
    if name not in OPERATIONS:
        raise InputError(f"An operation of NASNet is one of {', '.join(OPERATIONS)}, but got {name!r}: choose one of these.")
    return OPERATIONS[name](channels, stride)


def build_nasnet_a(size: int = 224, channels: int = 44, cells_per_group: int = 4, stem_channels: int = 32,
                   classes: int = 1000, skip_reduction_layer_input: bool = False) -> Network:
    """NASNet-A for ImageNet; the defaults are the mobile one, 4 @ 1056.

    Args:
        size: Height and width of the images.
        channels: Width of the first group's cells; doubled for each of the two others, a quarter and a half in the stem.
        cells_per_group: Normal cells in each of the three groups.
        stem_channels: Width of the first convolution.
        classes: Outputs.
        skip_reduction_layer_input: A group's first normal cell takes as its previous output what its reduction cell took,
            in place of that cell's input.
    """
    skeleton = _skeleton(size, channels, cells_per_group, stem_channels, classes, skip_reduction_layer_input)
    return skeleton.network({"normal": NORMAL, "reduction": REDUCTION})


def build_nasnet() -> CellSpace:
    """The space of NASNet at its mobile size: in both cells, five states of two operations on any two states before."""
    kinds = {kind: CellKind(chosen_pairs(kind, range(INPUTS, INPUTS + STATES), tuple(OPERATIONS), any_two), None)
             for kind in ("normal", "reduction")}
    return CellSpace("nasnet", _skeleton(224, 44, 4, 32, 1000, False), kinds, "NASNet cells at 224x224 (arXiv 1707.07012)")


def stacked(size: int, stem_channels: int, cells: Iterable[Cell], classes: int, operations: Iterable[str]) -> Skeleton:
    """The skeleton of NASNet and PNASNet: an unpadded 3x3 convolution of stride 2, cells, ReLU, pooling, classifier."""
    return Skeleton(TensorShape(3, size, size), (UnpaddedStem(stem_channels),), tuple(cells), CellHead(classes, 0.5),
                    {name: TEMPLATES[name] for name in operations})


def any_two(state: int) -> list[tuple[int, int]]:
    """The pairs of states that a state may read: any two before it, one of them twice included."""
    return [(one, other) for one in range(state) for other in range(state)]


def _skeleton(size: int, channels: int, cells_per_group: int, stem_channels: int, classes: int,
              skip_reduction_layer_input: bool) -> Skeleton:
    cells = [Cell(f"stem{number}", "reduction", channels * number // 4, 2) for number in (1, 2)]
    for group in range(3):
        width = channels << group
        if group:
            cells.append(Cell(f"reduction{group}", "reduction", width, 2))
        for number in range(cells_per_group):
            back = 3 if group and number == 0 and skip_reduction_layer_input else 2
            cells.append(Cell(f"group{group + 1}_{number + 1}", "normal", width, back=back))
    return stacked(size, stem_channels, cells, classes, OPERATIONS)


_SOURCE = "tensorflow/models, slim/nets/nasnet/README.md"

NETWORKS = (
    ReferenceNetwork("nasnet-a-mobile", build_nasnet_a, Published(564_000_000, 5_300_000, 74.0, _SOURCE)),
    ReferenceNetwork(
        "nasnet-a-large", partial(build_nasnet_a, 331, 168, 6, 96, 1001, True),
        Published(23_800_000_000, 88_900_000, 82.7, _SOURCE),
        "6 @ 4032, with the released network's 1001 classes. Weights, batch norm and biases are 88,757,183 parameters; batch "
        "norm's running statistics, 196,668 more, make 88,953,851, the printed 88.9M cut short."),
)
