"""What an option costs at one input shape: the numbers on the edges of the trellis.

A cost model is anything with these three members. A latency table is one; here are the two that need no measurement.
"""

from dataclasses import dataclass
from typing import Protocol

from hwnas.ir.space import Edge, block_network


class CostModel(Protocol):
    """Additive cost of a network: one term for every edge of its path, and a constant."""

    @property
    def unit(self) -> str:
        """What a cost is counted in, for messages: `ms`, `MACs`."""

    @property
    def constant(self) -> float:
        """Added once to the cost of every network; may be negative (the intercept of a calibration)."""

    def edge_cost(self, edge: Edge) -> float:
        """Cost of one option at one input shape; finite and not negative."""


@dataclass(frozen=True)
class MacsCost:
    """Multiply-accumulates of convolutions and linear layers, for one image; exact."""

    unit: str = "MACs"
    constant: float = 0

    def edge_cost(self, edge: Edge) -> int:
        return block_network(edge.block, edge.input_shape).macs


@dataclass(frozen=True)
class ParametersCost:
    """Learnable parameters, batch norm and biases included; exact."""

    unit: str = "parameters"
    constant: float = 0

    def edge_cost(self, edge: Edge) -> int:
        return block_network(edge.block, edge.input_shape).parameters
