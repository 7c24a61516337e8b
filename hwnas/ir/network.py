"""A network: primitive layers in topological order, each naming its inputs. What both lowerings read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hwnas.errors import InputError
from hwnas.ir.layers import Activation, Add, BatchNorm, Dropout, Layer, Linear, Quantize
from hwnas.ir.shape import TensorShape

if TYPE_CHECKING:
    import networkx

INPUT = "input"


@dataclass(frozen=True)
class Value:
    """A tensor while a network is built: the name of what produced it, and its shape."""

    name: str
    shape: TensorShape

    @property
    def channels(self) -> int:
        return self.shape.channels


@dataclass(frozen=True)
class Node:
    """One primitive layer in a network.

    Attributes:
        name: Unique, `layer/part`: where it stands in the space, then its role in the block.
        layer: The primitive.
        inputs: Names of the nodes it reads, or `input`.
        input_shapes: Their shapes.
        shape: Its output shape.
    """

    name: str
    layer: Layer
    inputs: tuple[str, ...]
    input_shapes: tuple[TensorShape, ...]
    shape: TensorShape

    @property
    def macs(self) -> int:
        return self.layer.macs(*self.input_shapes)

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Learnable parameters: name within the node, to shape."""
        return self.layer.parameters(*self.input_shapes)

    @property
    def buffers(self) -> dict[str, tuple[int, ...]]:
        return self.layer.buffers(*self.input_shapes)


@dataclass(frozen=True)
class Network:
    """A standalone network.

    Attributes:
        input_shape: Shape of one image.
        nodes: Layers in topological order. No nodes: the network is the identity.
        output: Name of the node (or `input`) whose tensor is the result.
    """

    input_shape: TensorShape
    nodes: tuple[Node, ...]
    output: str

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers for one image."""
        return sum(node.macs for node in self.nodes)

    @cached_property
    def parameters(self) -> int:
        """All learnable parameters, batch norm and biases included."""
        return sum(self.parameters_by_kind.values())

    @cached_property
    def parameters_by_kind(self) -> dict[str, int]:
        """Learnable parameters split the way that papers differ in counting them.

        `weights`, `batch_norm`, `biases`, and `quantizers`, which no paper counts.
        """
        counts = {"weights": 0, "batch_norm": 0, "biases": 0, "quantizers": 0}
        for node in self.nodes:
            kind = {BatchNorm: "batch_norm", Quantize: "quantizers"}.get(type(node.layer))
            for name, shape in node.parameters.items():
                counts[kind or ("biases" if name == "bias" else "weights")] += _elements(shape)
        return counts

    @property
    def output_shape(self) -> TensorShape:
        return self.input_shape if self.output == INPUT else self._by_name[self.output].shape

    @cached_property
    def vectors(self) -> frozenset[str]:
        """Nodes whose tensor the lowerings keep as `(N, F)`: linear layers, and what works element by element on them."""
        vectors: set[str] = set()
        for node in self.nodes:
            if isinstance(node.layer, Linear) or (
                    isinstance(node.layer, Activation | Add | Dropout) and vectors.issuperset(node.inputs)):
                vectors.add(node.name)
        return frozenset(vectors)

    @cached_property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every array that inference needs, `{node}.{parameter}` to shape, in PyTorch's layout."""
        return {f"{node.name}.{name}": shape for node in self.nodes
                for name, shape in (node.parameters | node.buffers).items()}

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def graph(self) -> "networkx.DiGraph":
        """The readable view: nodes carry `layer` and `shape`, edges point from producer to consumer."""
        import networkx

        graph = networkx.DiGraph()
        graph.add_node(INPUT, shape=self.input_shape)
        for node in self.nodes:
            graph.add_node(node.name, layer=node.layer, shape=node.shape)
            graph.add_edges_from((source, node.name) for source in node.inputs)
        return graph


class NetworkBuilder:
    """Collects nodes and infers their shapes as they are added; the one place where a network grows."""

    def __init__(self, input_shape: TensorShape) -> None:
        self._input_shape = input_shape
        self._nodes: list[Node] = []
        self._names = {INPUT}
        self._scope = ""
        self.input = Value(INPUT, input_shape)

    def scoped(self, scope: str) -> "NetworkBuilder":
        """A view of this builder whose nodes are named `scope/...`."""
        view = object.__new__(NetworkBuilder)
        view.__dict__.update(self.__dict__, _scope=f"{self._scope}{scope}/")
        return view

    def add(self, name: str, layer: Layer, *inputs: Value) -> Value:
        """Appends a layer.

        Raises:
            InputError: The name is taken, or the layer cannot take these shapes (the message names the node).
        """
        full_name = self._scope + name
        if full_name in self._names:
            raise InputError(f"Node names must be unique, but {full_name!r} is used twice: rename one.")
        shapes = tuple(value.shape for value in inputs)
        node = Node(full_name, layer, tuple(value.name for value in inputs), shapes, layer.infer(*shapes))
        self._nodes.append(node)
        self._names.add(full_name)
        return Value(full_name, node.shape)

    def build(self, output: Value) -> Network:
        """The network that ends in this value; what nothing on the way to it reads is left out, as runtimes do."""
        return Network(self._input_shape, nodes_needed(self._nodes, output.name), output.name)


def nodes_needed(nodes: Sequence[Node], output: str) -> tuple[Node, ...]:
    """Those of the nodes, in topological order, that this output depends on."""
    needed = {output}
    found: list[Node] = []
    for node in reversed(nodes):
        if node.name in needed:
            found.append(node)
            needed.update(node.inputs)
    return tuple(reversed(found))


def build_network(input_shape: TensorShape | tuple[int, int, int], blocks: Iterable[tuple[str, "Block"]]) -> Network:
    """Chains named blocks into a network; the name of a block prefixes the names of its nodes.

    Raises:
        InputError: A block cannot take the shape that reaches it; the message names the block.
    """
    builder = NetworkBuilder(TensorShape(*input_shape))
    value = builder.input
    for name, block in blocks:
        try:
            value = block.build(builder.scoped(name), value)
        except InputError as error:
            raise InputError(f"Layer {name!r} ({block.kind}) cannot take {value.shape}: {error}") from None
    return builder.build(value)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


if TYPE_CHECKING:
    from hwnas.ir.block import Block
