"""Makes the supernet that a space calls for."""

from hwnas.errors import InputError
from hwnas.ir.space import SearchSpace
from hwnas.ir.steps import Space
from hwnas.supernet.layered import LayeredSupernet
from hwnas.supernet.supernet import Supernet


def build_supernet(space: Space, seed: int = 0) -> Supernet:
    """Builds a supernet with initial weights drawn from `seed`.

    Raises:
        InputError: A space of cells.
    """
    if not isinstance(space, SearchSpace):
        raise InputError(f"A supernet is trained for a space of layers, but {space.name!r} is one of cells: profile it, draw "
                         "from it and export its networks; to train one, retrain it on its own.")
    return LayeredSupernet(space, seed)
