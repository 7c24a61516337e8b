"""DARTS (Liu et al., arXiv 1806.09055): its space of cells, the two published cells, and the rule that derives a cell.

Follows the authors' released code. A cell adds four states to its two inputs; each sums two operations on two different states
before it; the output is all four. Reduction cells stand at a third and two thirds of the depth. The auxiliary classifier and
drop-path exist in training only.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Block
from hwnas.ir.blocks import ConvBlock, Identity, Stem
from hwnas.ir.blocks import Sequence as Chain
from hwnas.ir.cell_operations import (
    CellHead,
    DilatedOperation,
    FactorizedReduction,
    PoolOperation,
    PreactivatedConv,
    SeparableOperation,
)
from hwnas.ir.cells import Cell, CellKind, CellSpace, Skeleton, choices_of_pairs, chosen_pairs
from hwnas.ir.genotype import INPUTS, Genotype
from hwnas.ir.shape import TensorShape
from hwnas.spaces.reference import Published, ReferenceNetwork

STATES = 4
OPERATIONS: dict[str, tuple[Block, Block]] = {
    "max_pool_3x3": (PoolOperation("max", 3, 1), PoolOperation("max", 3, 2)),
    "avg_pool_3x3": (PoolOperation("avg", 3, 1), PoolOperation("avg", 3, 2)),
    "skip_connect": (Identity(), FactorizedReduction(2)),
    "sep_conv_3x3": (SeparableOperation(1, 3, 1), SeparableOperation(1, 3, 2)),
    "sep_conv_5x5": (SeparableOperation(1, 5, 1), SeparableOperation(1, 5, 2)),
    "dil_conv_3x3": (DilatedOperation(1, 3, 1), DilatedOperation(1, 3, 2)),
    "dil_conv_5x5": (DilatedOperation(1, 5, 1), DilatedOperation(1, 5, 2)),
}
"""The seven that a derived cell can have; the eighth of the search, `none`, only ever loses."""

SEARCH_OPERATIONS = ("none", *OPERATIONS)
"""Columns of the architecture parameters, in the released code's order."""

_SEP, _SKIP, _MAX, _AVG, _DIL = "sep_conv_3x3", "skip_connect", "max_pool_3x3", "avg_pool_3x3", "dil_conv_3x3"
# State 0 is the output of the cell before the last, state 1 that of the last.
V1 = {"normal": Genotype((((_SEP, 1), (_SEP, 0)), ((_SKIP, 0), (_SEP, 1)), ((_SKIP, 0), (_SEP, 1)), ((_SEP, 0), (_SKIP, 2))),
                         (2, 3, 4, 5)),
      "reduction": Genotype((((_MAX, 0), (_MAX, 1)), ((_SKIP, 2), (_MAX, 0)), ((_MAX, 0), (_SKIP, 2)), ((_SKIP, 2), (_AVG, 0))),
                            (2, 3, 4, 5))}
V2 = {"normal": Genotype((((_SEP, 0), (_SEP, 1)), ((_SEP, 0), (_SEP, 1)), ((_SEP, 1), (_SKIP, 0)), ((_SKIP, 0), (_DIL, 2))),
                         (2, 3, 4, 5)),
      "reduction": Genotype((((_MAX, 0), (_MAX, 1)), ((_SKIP, 2), (_MAX, 1)), ((_MAX, 0), (_SKIP, 2)), ((_SKIP, 2), (_MAX, 1))),
                            (2, 3, 4, 5))}


def build_darts() -> CellSpace:
    """The ImageNet network: 48 channels, 14 cells."""
    stem = (Chain((Stem(24), ConvBlock(48, 3, 2, activation=None))), PreactivatedConv(48, 3, 2))
    return _space("darts", TensorShape(3, 224, 224), stem, 48, 14, 1000, "DARTS cells at 224x224 (arXiv 1806.09055)")


def build_darts_cifar(channels: int = 36, cells: int = 20, classes: int = 10) -> CellSpace:
    """The CIFAR-10 network: 36 channels, 20 cells."""
    return _space("darts-cifar", TensorShape(3, 32, 32), (ConvBlock(3 * channels, activation=None),), channels, cells, classes,
                  "DARTS cells at 32x32 (arXiv 1806.09055)")


def build_darts_cpu(classes: int = 36) -> CellSpace:
    """The same cells at 32x32, 8 channels, 5 cells: CPU-sized."""
    return _space("darts-cpu", TensorShape(3, 32, 32), (ConvBlock(24, 3, 2, activation=None),), 8, 5, classes,
                  "DARTS cells at 32x32, 5 cells; CPU-sized")


def architecture_of(space: CellSpace, genotypes: Mapping[str, Genotype]) -> Architecture:
    """The path of a space of this file that has these cells.

    Raises:
        InputError: Cells that are not of the space: not four states, each the sum of two of its operations on two different
            states, all concatenated.
    """
    ordered = {kind: Genotype(tuple(tuple(sorted(node, key=lambda term: term[1])) for node in genotype.nodes), genotype.concat)
               for kind, genotype in genotypes.items()}
    known = {decision.name for decision in space.decisions}  # the first state's inputs are no decision
    architecture = space.architecture({name: option for name, option in choices_of_pairs(ordered).items() if name in known})
    for kind, made in space.genotypes(architecture).items():
        if made != ordered[kind]:
            raise InputError(f"A cell of {space.name!r} sums two operations on two different states in each of {STATES} states "
                             f"and concatenates these, but {kind!r} is {genotypes[kind].to_dict()}.")
    return architecture


def derive(space: CellSpace, weights: Mapping[str, ArrayLike]) -> Architecture:
    """The cell that continuous architecture parameters stand for (sec. 2.4).

    Every state keeps the two incoming edges whose best operation, `none` left out, weighs most, and that operation on each.
    Among equals, the first edge and the first operation.

    Args:
        space: Of this file.
        weights: Kind of cell to an array (14, 8): for each edge, ordered by state, then source, the weight of each of
            `SEARCH_OPERATIONS` (after the softmax).

    Raises:
        InputError: A kind of cell has no array, or one of another shape or that is not finite.
    """
    operations = tuple(OPERATIONS)
    genotypes = {}
    for kind in space.kinds:
        best = _edge_weights(weights, kind)[:, 1:]
        nodes, start = [], 0
        for state in range(INPUTS, INPUTS + STATES):
            incoming = best[start:start + state]
            start += state
            kept = sorted(np.argsort(-incoming.max(axis=1), kind="stable")[:2].tolist())
            nodes.append(tuple((operations[int(incoming[source].argmax())], source) for source in kept))
        genotypes[kind] = Genotype(tuple(nodes), tuple(range(INPUTS, INPUTS + STATES)))
    return architecture_of(space, genotypes)


def _edge_weights(weights: Mapping[str, ArrayLike], kind: str) -> NDArray[np.float64]:
    shape = (sum(range(INPUTS, INPUTS + STATES)), len(SEARCH_OPERATIONS))
    rule = f"Architecture parameters must be finite numbers of shape {shape} for every kind of cell, but those of {kind!r}"
    try:
        table = np.asarray(weights[kind], np.float64)
    except KeyError:
        raise InputError(f"{rule} are missing.") from None
    except (TypeError, ValueError):
        raise InputError(f"{rule} are no numbers, or lists of unequal length.") from None
    if table.shape != shape:
        raise InputError(f"{rule} have the shape {table.shape}.")
    if not np.isfinite(table).all():
        raise InputError(f"{rule} are not finite.")
    return table


def _space(name: str, shape: TensorShape, stem: tuple[Block, ...], channels: int, layers: int, classes: int,
           description: str) -> CellSpace:
    reductions = (layers // 3, 2 * layers // 3)
    cells, width = [], channels
    for index in range(layers):
        is_reduction = index in reductions
        width *= 2 if is_reduction else 1
        cells.append(Cell(f"cell{index + 1}", "reduction" if is_reduction else "normal", width, 2 if is_reduction else 1))
    skeleton = Skeleton(shape, stem, tuple(cells), CellHead(classes, activation=None), OPERATIONS, previous_first=True,
                        fitting="always")
    return CellSpace(name, skeleton, {kind: _kind(kind) for kind in ("normal", "reduction")}, description)


def _kind(kind: str) -> CellKind:
    states = range(INPUTS, INPUTS + STATES)
    pairs = chosen_pairs(kind, states, tuple(OPERATIONS), lambda state: list(itertools.combinations(range(state), 2)))
    return CellKind(pairs, tuple(states))


def _published(build: Callable[[], CellSpace], cells: Mapping[str, Genotype], name: str, figures: Published, note: str
               ) -> ReferenceNetwork:
    def architecture() -> Architecture:
        return architecture_of(build(), cells)

    return ReferenceNetwork(name, lambda: build().network(architecture()), figures, note, architecture)


_CODE = "quark0/darts, README"
NETWORKS = (
    _published(build_darts, V2, "darts-v2", Published(574_000_000, 4_700_000, 73.3, f"arXiv 1806.09055, Table 3; {_CODE}"),
               "Convolutions and the classifier make 529,911,552 multiply-accumulates. The published 574M are 44M more, which no "
               "counting rule that we know of explains: batch norm would add 4M, every convolution's output counted once 7M. "
               "Parameters: 4,681,416 weights + 36,336 batch norm + 1,000 biases = 4,718,752."),
    _published(build_darts, V1, "darts-v1", Published(None, None, None, f"{_CODE} (genotype only)"), "The first-order cell."),
    _published(build_darts_cifar, V2, "darts-v2-cifar", Published(None, 3_300_000, None, f"{_CODE}: CIFAR-10, test error 2.76 %"),
               "For CIFAR-10: no ImageNet accuracy. 3,308,940 weights + 40,392 batch norm + 10 biases = 3,349,342."),
    _published(build_darts_cifar, V1, "darts-v1-cifar", Published(None, None, None, f"{_CODE} (genotype only)"),
               "For CIFAR-10: no ImageNet accuracy. The first-order cell."),
)
