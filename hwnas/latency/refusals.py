"""The keys of whole networks among those of blocks, wherever it is written down what a runtime refuses.

A block's key is its workload; a network's is the word `network` and its options, in which no name has a space.
"""

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.steps import Space

_PREFIX = "network "


def network_key(architecture: Architecture) -> str:
    """The key of a whole network."""
    return f"{_PREFIX}{architecture}"


def network_of(space: Space, key: str) -> Architecture | None:
    """The network that a key is of; None for a block's key, and for one of another space."""
    options = key.removeprefix(_PREFIX).split(" ")
    if not key.startswith(_PREFIX) or len(options) != len(space.decisions):
        return None
    try:
        return space.architecture({decision.name: option for decision, option in zip(space.decisions, options, strict=True)})
    except InputError:
        return None
