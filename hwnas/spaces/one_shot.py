"""The space of "Understanding and Simplifying One-Shot Architecture Search" (Bender et al., ICML 2018), for 32x32 images.

Identical cells, each reading the outputs of the two cells before it. A cell has choice blocks; each adds up one or two of the
states before it, every one through a 1x1 convolution of its own, and then one or two of seven operations on that sum. The output
is all choice blocks, concatenated.

The paper leaves some of this open, and we do not have its code: eight cells of four choice blocks in three groups, twice the
width and half the resolution from group to group, both inputs reduced before the cell. Convolutions here are ReLU, convolution,
batch norm, where the paper normalises first; the costs are the same.
"""

import itertools
from typing import TypeVar

from hwnas.ir.block import Block
from hwnas.ir.blocks import ConvBlock, Identity
from hwnas.ir.cell_operations import CellHead, FactorizedConvolution, PoolOperation, PreactivatedConv, SeparableOperation
from hwnas.ir.cells import Cell, CellDecision, CellKind, CellSpace, Pick, Skeleton
from hwnas.ir.genotype import INPUTS
from hwnas.ir.shape import TensorShape

OPERATIONS: dict[str, Block] = {
    "identity": Identity(),
    "separable_3x3": SeparableOperation(1, 3),
    "separable_5x5": SeparableOperation(1, 5),
    "separable_7x7": SeparableOperation(1, 7),
    "conv_1x7_7x1": FactorizedConvolution(1, 7),
    "max_pool_3x3": PoolOperation("max", 3),
    "avg_pool_3x3": PoolOperation("avg", 3),
}
"""The seven of a choice block (sec. 3)."""

_PROJECT = "project"  # the 1x1 convolution on each input of a choice block
Item = TypeVar("Item")


def build_one_shot() -> CellSpace:
    """Eight cells, four choice blocks, 32 channels, 10 classes: CIFAR-10."""
    return _space("one-shot", 32, 8, 3, 4, 10, "One-shot cells at 32x32 (Bender et al., ICML 2018)")


def build_one_shot_cpu(classes: int = 36) -> CellSpace:
    """Four cells in two groups, three choice blocks, 12 channels: CPU-sized."""
    return _space("one-shot-cpu", 12, 4, 2, 3, classes, "One-shot cells at 32x32, 4 cells; CPU-sized", stem_stride=2)


def _space(name: str, channels: int, cells: int, groups: int, blocks: int, classes: int, description: str,
           stem_stride: int = 1) -> CellSpace:
    stack = []
    for number in range(cells):
        group = number * groups // cells
        is_first = group > 0 and (number - 1) * groups // cells < group
        stack.append(Cell(f"cell{number + 1}", "cell", channels << group, 2 if is_first else 1))
    operations: dict[str, tuple[Block, Block]] = {_PROJECT: (PreactivatedConv(1), PreactivatedConv(1))}
    operations |= {operation: (block, block) for operation, block in OPERATIONS.items()}
    skeleton = Skeleton(TensorShape(3, 32, 32), (ConvBlock(channels, 3, stem_stride),), tuple(stack), CellHead(classes),
                        operations, fitting="resolution", strided_operations=False)
    return CellSpace(name, skeleton, {"cell": _kind(blocks)}, description)


def _kind(blocks: int) -> CellKind:
    """States 2, 4, 6, ... are sums of inputs, and 3, 5, 7, ... the choice blocks that read them."""
    decisions = []
    readable = list(range(INPUTS))
    for number in range(blocks):
        gathered = INPUTS + 2 * number
        inputs = {"+".join(map(str, states)): Pick(tuple((_PROJECT, state) for state in states))
                  for states in _one_or_two(readable)}
        operations = {"+".join(names): Pick(tuple((name, gathered) for name in names)) for names in _one_or_two(list(OPERATIONS))}
        decisions += [CellDecision(f"block{number + 1}_inputs", gathered, inputs),
                      CellDecision(f"block{number + 1}_operations", gathered + 1, operations)]
        readable.append(gathered + 1)
    return CellKind(tuple(decisions), tuple(readable[INPUTS:]))


def _one_or_two(items: list[Item]) -> list[tuple[Item, ...]]:
    return [chosen for count in (1, 2) for chosen in itertools.combinations(items, count)]
