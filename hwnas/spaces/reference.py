"""A reference network: a published network as a network of this package, with what its authors reported of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from hwnas.ir.architecture import Architecture
from hwnas.ir.network import Network


@dataclass(frozen=True)
class Published:
    """What was reported of a network; None where nothing was.

    Attributes:
        macs: Multiply-accumulates ("FLOPs" in the sources), as printed.
        parameters: As printed.
        top1: ImageNet validation accuracy in percent, single crop.
        source: Where it was reported.
    """

    macs: int | None
    parameters: int | None
    top1: float | None
    source: str


@dataclass(frozen=True)
class ReferenceNetwork:
    """A published network.

    Attributes:
        name: For the command line.
        build: Makes it.
        published: Its reported figures.
        note: Why the count differs from what was reported, with the arithmetic; which of several definitions this is.
        architecture: Where it is a path of a published space: makes that path.
    """

    name: str
    build: Callable[[], Network]
    published: Published
    note: str = ""
    architecture: Callable[[], Architecture] | None = None

    @cached_property
    def network(self) -> Network:
        return self.build()
