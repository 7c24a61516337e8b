"""Makes the supernet that a space calls for."""

from hwnas.errors import InputError
from hwnas.ir.cells import CellSpace
from hwnas.ir.space import SearchSpace
from hwnas.ir.steps import Space
from hwnas.supernet.cells import CellSupernet
from hwnas.supernet.layered import LayeredSupernet
from hwnas.supernet.sliced import SlicedSupernet
from hwnas.supernet.supernet import Supernet


def build_supernet(space: Space, seed: int = 0, sharing: str = "options") -> Supernet:
    """Builds a supernet.

    Args:
        space: Of layers or of cells.
        seed: Of the initial weights.
        sharing: Which options of a layer share weights, one of `hwnas.supernet.config.SHARING`.

    Raises:
        InputError: A space whose networks cannot share weights: one of neither layers nor cells, or one of cells whose head
            cannot read a varying number of states.
    """
    if isinstance(space, SearchSpace):
        return LayeredSupernet(space, seed) if sharing == "options" else SlicedSupernet(space, seed, sharing)
    if isinstance(space, CellSpace):
        if sharing != "options":
            raise InputError(f"Slices of weights are shared in spaces of layers, but {space.name!r} is one of cells: leave "
                             f"sharing {sharing!r} out.")
        return CellSupernet(space, seed)
    raise InputError(f"A supernet is made for a space of layers or of cells, but {space.name!r} is a {type(space).__name__}.")
