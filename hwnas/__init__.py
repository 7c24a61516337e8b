"""hwnas: compile a search space into the best network that a device runs within a latency budget.

The public names. They load on first use: the command line starts fast, and nothing needs torch but `to_torch`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwnas.errors import HwnasError, InfeasibleError, InputError, UnavailableError, VerificationError
    from hwnas.ir.architecture import Architecture, load_architecture
    from hwnas.ir.blocks import (
        Block,
        ConvBlock,
        Head,
        Identity,
        MBConv,
        SeparableConv,
        ShuffleUnit,
        Stem,
    )
    from hwnas.ir.network import Network, build_network
    from hwnas.ir.shape import TensorShape
    from hwnas.ir.space import Decision, Fixed, SearchSpace
    from hwnas.ir.trellis import Trellis
    from hwnas.latency.table import LatencyTable, Prediction, load_table
    from hwnas.lower.onnx import to_onnx
    from hwnas.lower.torch import to_torch
    from hwnas.spaces.load import load_space

__version__ = "0.1.0"

_HOMES = {
    "hwnas.errors": ("HwnasError", "InfeasibleError", "InputError", "UnavailableError", "VerificationError"),
    "hwnas.ir.architecture": ("Architecture", "load_architecture"),
    "hwnas.ir.blocks": ("Block", "ConvBlock", "Head", "Identity", "MBConv", "SeparableConv", "ShuffleUnit", "Stem"),
    "hwnas.ir.network": ("Network", "build_network"),
    "hwnas.ir.shape": ("TensorShape",),
    "hwnas.ir.space": ("Decision", "Fixed", "SearchSpace"),
    "hwnas.ir.trellis": ("Trellis",),
    "hwnas.latency.table": ("LatencyTable", "Prediction", "load_table"),
    "hwnas.lower.onnx": ("to_onnx",),
    "hwnas.lower.torch": ("to_torch",),
    "hwnas.spaces.load": ("load_space",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Architecture",
    "Block",
    "ConvBlock",
    "Decision",
    "Fixed",
    "Head",
    "HwnasError",
    "Identity",
    "InfeasibleError",
    "InputError",
    "LatencyTable",
    "MBConv",
    "Network",
    "Prediction",
    "SearchSpace",
    "SeparableConv",
    "ShuffleUnit",
    "Stem",
    "TensorShape",
    "Trellis",
    "UnavailableError",
    "VerificationError",
    "build_network",
    "load_architecture",
    "load_space",
    "load_table",
    "to_onnx",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hwnas' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
