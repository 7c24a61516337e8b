"""What an option costs in one state: the numbers on the edges of the trellis.

A cost model is anything with these three members. A latency table is one; here are those that need no measurement.
"""

from dataclasses import dataclass
from typing import Protocol

from hwnas.ir.layers import FORMAT_BITS, Conv, Layer, Quantize, Round
from hwnas.ir.network import Network
from hwnas.ir.steps import Edge


class CostModel(Protocol):
    """Additive cost of a network: one term for every edge of its path, and a constant."""

    @property
    def unit(self) -> str:
        """What a cost is counted in, for messages: `ms`, `MACs`."""

    @property
    def constant(self) -> float:
        """Added once to the cost of every network; may be negative (the intercept of a calibration)."""

    def edge_cost(self, edge: Edge) -> float:
        """Cost of one option in one state; finite and not negative."""


@dataclass(frozen=True)
class MacsCost:
    """Multiply-accumulates of convolutions and linear layers, for one image; exact."""

    unit: str = "MACs"
    constant: float = 0

    def edge_cost(self, edge: Edge) -> int:
        return sum(part.network.macs for part in edge.parts)


@dataclass(frozen=True)
class ParametersCost:
    """Learnable parameters, batch norm and biases included; exact."""

    unit: str = "parameters"
    constant: float = 0

    def edge_cost(self, edge: Edge) -> int:
        return sum(part.network.parameters for part in edge.parts)


@dataclass(frozen=True)
class BitOpsCost:
    """Bit operations: multiply-accumulates times bits of the weights times bits of the activations, for one image; exact.

    Single Path One-Shot's bit-width search (arXiv 1904.00420, sec. 3.4) counts this way. The figures reported for it are not
    reproduced: 6.32, 14.23 and 25.27 x 10^9 for ResNet-18 with 2, 3 and 4 bits throughout mean 1.580 x 10^9
    multiply-accumulates, where all convolutions but the first have 1.696 x 10^9 (6.782, 15.260 and 27.129 x 10^9). What is
    missing is as much as one 3x3 convolution (0.116 x 10^9); which one is left out is not known, so none is here.

    Attributes:
        count_full_precision: Count layers whose weights and activations both have 32 bits as well. Without them, what stays
            in full precision in every network of a space (first convolution, classifier) does not drown the choice.
    """

    count_full_precision: bool = False
    unit: str = "BitOps"
    constant: float = 0

    def edge_cost(self, edge: Edge) -> int:
        return sum(self.network_cost(part.network) for part in edge.parts)

    def network_cost(self, network: Network) -> int:
        """Of a whole network."""
        layers = {node.name: node.layer for node in network.nodes}
        operations = 0
        for node in network.nodes:
            if node.macs:
                bits = _weight_bits(node.layer), _activation_bits(layers.get(node.inputs[0]))
                if self.count_full_precision or bits != (32, 32):
                    operations += node.macs * bits[0] * bits[1]
        return operations


def _weight_bits(layer: Layer) -> int:
    return FORMAT_BITS[layer.weight_format] if isinstance(layer, Conv) else 32


def _activation_bits(source: Layer | None) -> int:
    match source:
        case Quantize(bits):
            return bits
        case Round(format):
            return FORMAT_BITS[format]
        case _:
            return 32
