"""Spaces of cells that train in a moment: DARTS's, Bender et al.'s and NASNet's rules, at the smallest size that shows them."""

import torch

from hwnas.ir.blocks import ConvBlock, Identity
from hwnas.ir.cell_operations import (
    CellHead,
    DilatedOperation,
    FactorizedReduction,
    PoolOperation,
    PreactivatedConv,
    SeparableOperation,
)
from hwnas.ir.cells import Cell, CellDecision, CellKind, CellSpace, Pick, Skeleton, chosen_pairs
from hwnas.ir.shape import TensorShape
from hwnas.spaces.nasnet import any_two
from hwnas.spaces.nasnet import stacked as nasnet_skeleton
from hwnas.supernet import Supernet, build_supernet
from tests.supernet.samples import CLASSES

IMAGE = TensorShape(3, 16, 16)


def darts_like(*names: str) -> CellSpace:
    """Two states of two operations on two different states, all states concatenated, with a reduction cell.

    Args:
        names: The operations; all three if none is named.
    """
    operations = {"max_pool": (PoolOperation("max", 3, 1), PoolOperation("max", 3, 2)),
                  "skip": (Identity(), FactorizedReduction(2)),
                  "conv": (DilatedOperation(1, 3, 1), DilatedOperation(1, 3, 2))}
    operations = {name: operations[name] for name in names or operations}
    cells = (Cell("cell1", "normal", 4), Cell("cell2", "reduction", 8, 2), Cell("cell3", "normal", 8))
    skeleton = Skeleton(IMAGE, (ConvBlock(6, 3, 2, activation=None),), cells, CellHead(CLASSES, activation=None), operations,
                        previous_first=True, fitting="always")
    kinds = {kind: CellKind(chosen_pairs(kind, range(2, 4), tuple(operations), lambda state: [
        (one, other) for other in range(state) for one in range(other)]), (2, 3)) for kind in ("normal", "reduction")}
    return CellSpace("darts-like", skeleton, kinds)


def one_shot_like() -> CellSpace:
    """States that sum one or two of the inputs, then blocks that sum one or two operations; both inputs reduced before."""
    operations = {"project": (PreactivatedConv(1),) * 2, "identity": (Identity(),) * 2, "pool": (PoolOperation("avg", 3),) * 2,
                  "conv": (SeparableOperation(1, 3),) * 2}
    cells = (Cell("cell1", "cell", 4), Cell("cell2", "cell", 8, 2))
    skeleton = Skeleton(IMAGE, (ConvBlock(4, 3, 2),), cells, CellHead(CLASSES), operations, fitting="resolution",
                        strided_operations=False)
    decisions = []
    for gathered, sources in ((2, ("0", "1", "0+1")), (4, ("1", "3", "0+3"))):
        decisions += [
            CellDecision(f"inputs{gathered}", gathered, {
                names: Pick(tuple(("project", int(source)) for source in names.split("+"))) for names in sources}),
            CellDecision(f"operations{gathered}", gathered + 1, {names: Pick(tuple((name, gathered) for name in names.split("+")))
                                                                 for names in ("identity", "conv", "pool+conv")})]
    return CellSpace("one-shot-like", skeleton, {"cell": CellKind(tuple(decisions), (3, 5))})


def nasnet_like() -> CellSpace:
    """Any two states, one of them twice included; a cell passes on what nothing in it reads.

    Cells of 4, then 8 channels: two states of the former are as wide as the latter's, and are then read as they are.
    """
    operations = ("identity", "max_pool_3x3", "separable_3x3")
    cells = (Cell("stem1", "reduction", 3, 2), Cell("normal1", "normal", 4), Cell("normal2", "normal", 8),
             Cell("reduce", "reduction", 8, 2), Cell("normal3", "normal", 16, back=3))
    kinds = {kind: CellKind(chosen_pairs(kind, range(2, 5), operations, any_two), None) for kind in ("normal", "reduction")}
    return CellSpace("nasnet-like", nasnet_skeleton(33, 4, cells, CLASSES, operations), kinds)


def used_supernet(space: CellSpace, seed: int = 1) -> Supernet:
    """A supernet whose weights and batch-norm statistics are none of the initial ones, in evaluation mode."""
    supernet = build_supernet(space, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in supernet.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            else:
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return supernet.eval()
