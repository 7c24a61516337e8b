"""hwnas: compile a search space into the best network that a device runs within a latency budget.

The public names. They load on first use: the command line starts fast, and nothing needs torch but `to_torch`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwnas.errors import HwnasError, InfeasibleError, InputError, UnavailableError, VerificationError
    from hwnas.ir.architecture import Architecture, load_architecture
    from hwnas.ir.block import Block
    from hwnas.ir.blocks import (
        ConvBlock,
        Head,
        Identity,
        MBConv,
        Resolution,
        SeparableConv,
        Sequence,
        ShuffleUnit,
        Stem,
    )
    from hwnas.ir.cells import CellSpace
    from hwnas.ir.network import Network, build_network
    from hwnas.ir.quantized import HalfPrecision, Quantized
    from hwnas.ir.shape import TensorShape
    from hwnas.ir.space import Decision, Fixed, SearchSpace
    from hwnas.ir.steps import Space
    from hwnas.ir.trellis import Trellis
    from hwnas.latency.table import LatencyTable, Prediction, load_table
    from hwnas.lower.onnx import to_onnx
    from hwnas.lower.torch import to_torch
    from hwnas.spaces.bit_widths import with_precisions
    from hwnas.spaces.load import load_space
    from hwnas.spaces.networks import load_network

__version__ = "0.1.0"

_HOMES = {
    "hwnas.errors": ("HwnasError", "InfeasibleError", "InputError", "UnavailableError", "VerificationError"),
    "hwnas.ir.architecture": ("Architecture", "load_architecture"),
    "hwnas.ir.block": ("Block",),
    "hwnas.ir.blocks": ("ConvBlock", "Head", "Identity", "MBConv", "Resolution", "SeparableConv", "Sequence", "ShuffleUnit",
                        "Stem"),
    "hwnas.ir.cells": ("CellSpace",),
    "hwnas.ir.network": ("Network", "build_network"),
    "hwnas.ir.shape": ("TensorShape",),
    "hwnas.ir.space": ("Decision", "Fixed", "SearchSpace"),
    "hwnas.ir.quantized": ("HalfPrecision", "Quantized"),
    "hwnas.ir.steps": ("Space",),
    "hwnas.ir.trellis": ("Trellis",),
    "hwnas.latency.table": ("LatencyTable", "Prediction", "load_table"),
    "hwnas.lower.onnx": ("to_onnx",),
    "hwnas.lower.torch": ("to_torch",),
    "hwnas.spaces.bit_widths": ("with_precisions",),
    "hwnas.spaces.load": ("load_space",),
    "hwnas.spaces.networks": ("load_network",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Architecture",
    "Block",
    "CellSpace",
    "ConvBlock",
    "Decision",
    "Fixed",
    "HalfPrecision",
    "Head",
    "HwnasError",
    "Identity",
    "InfeasibleError",
    "InputError",
    "LatencyTable",
    "MBConv",
    "Network",
    "Prediction",
    "Quantized",
    "Resolution",
    "SearchSpace",
    "SeparableConv",
    "Sequence",
    "ShuffleUnit",
    "Space",
    "Stem",
    "TensorShape",
    "Trellis",
    "UnavailableError",
    "VerificationError",
    "build_network",
    "load_architecture",
    "load_network",
    "load_space",
    "load_table",
    "to_onnx",
    "to_torch",
    "with_precisions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hwnas' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
