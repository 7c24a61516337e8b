"""From an ONNX model to an ExecuTorch program: `torch.export`, then XNNPACK for all that it covers.

XNNPACK computes in integers where it finds the pattern of PyTorch's own quantiser: a dequantiser of its own before each
reader, signed activations, and a convolution (with its activation function) whose result is quantised at once. hwnas writes
QuantizeLinear and DequantizeLinear in u8 and shares a dequantiser among readers, so the graph is put into that form first,
with the same numbers. Convolutions outside of the pattern compute in floating point.
"""

import logging
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import Tensor

from hwnas.errors import InputError
from hwnas.runtimes.onnx_model import OnnxModel
from hwnas.runtimes.torch_model import build_torch_model
from hwnas.runtimes.torch_operators import TRANSLATIONS, Function, NodeReader, Translations, to_dtype

_ACTIVATIONS = ("Relu", "Clip")  # what XNNPACK fuses into an integer convolution
_INTEGER_CONFIGS = ("ConvolutionConfig", "AddConfig", "QuantizedPerTensorConfig", "DeQuantizedPerTensorConfig")
_XNNPACK_CALLS = ("executorch_call_delegate", "getitem")


@dataclass(frozen=True)
class Lowered:
    """An ExecuTorch program.

    Attributes:
        program: The content of a `.pte` file.
        portable: Operators that XNNPACK does not cover, one for each time that it occurs; ExecuTorch's own kernels run them.
    """

    program: bytes
    portable: tuple[str, ...]


def lower(model: OnnxModel, dtype: torch.dtype = torch.float32) -> Lowered:
    """Lowers a model, which takes seconds.

    Args:
        model: As `read_onnx` gives it.
        dtype: What is computed in wherever the model says float32.

    Raises:
        InputError: An operator is not covered, or a quantised model is to be computed in another type than float32.
        Exception: Whatever PyTorch and ExecuTorch raise for a model that they do not take.
    """
    examples = tuple(torch.zeros(tensor.shape, dtype=to_dtype(tensor.dtype)) for tensor in model.inputs)
    with _unattended():
        import executorch.exir  # also brings the operators that quantise
        from executorch.exir.passes import MemoryPlanningPass

        exported = torch.export.export(_OwnResults(_build(model, dtype)).eval(), examples)
        edge = executorch.exir.to_edge_transform_and_lower(exported, partitioner=[_partitioner()])
        called = [node.target.__name__ for node in edge.exported_program().graph.nodes if node.op == "call_function"]
        # Inputs stay where the caller has them, so that a run neither copies them nor finds them overwritten.
        planning = MemoryPlanningPass(alloc_graph_input=False)
        program = edge.to_executorch(config=executorch.exir.ExecutorchBackendConfig(memory_planning_pass=planning))
    return Lowered(program.buffer, tuple(name for name in called if name not in _XNNPACK_CALLS))


class _OwnResults(torch.nn.Module):
    """A module whose results are never its inputs themselves, which ExecuTorch would leave unwritten."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(result.clone() if any(result is given for given in inputs) else result for result in self.module(*inputs))


@contextmanager
def _unattended() -> Iterator[None]:
    """Keeps to itself what third parties warn and log of their own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _partitioner() -> Any:
    """XNNPACK's, but what merely moves values about does so in floating point.

    Concatenations and the like of integers need one scale for all that goes in and out, which it does not check.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    def in_float(config: type) -> type:
        return type(config.__name__, (config,), {"supported_precision_types": lambda self: [ConfigPrecisionType.FP32]})

    return XnnpackPartitioner(configs=[config if config.__name__ in _INTEGER_CONFIGS else in_float(config)
                                       for config in ALL_PARTITIONER_CONFIGS])


def _build(model: OnnxModel, dtype: torch.dtype) -> torch.nn.Module:
    proto = onnx.load_from_string(model.content)
    if dtype != torch.float32 and any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        raise InputError("ExecuTorch computes a quantised model's other layers in fp32 only: choose the precision fp32.")
    graph = _Graph(proto.graph)
    if not graph.is_plainly_quantized():
        return build_torch_model(model, dtype, overrides=_OVERRIDES)
    computed = graph.integer_weights()
    graph.separate_dequantizers()
    overrides: Translations = {**_OVERRIDES, "QuantizeLinear": (_quantize, 1),
                               "DequantizeLinear": (partial(_dequantize, computed), 1)}
    return build_torch_model(replace(model, content=proto.SerializeToString()), dtype, overrides=overrides, computed=computed)


class _Graph:
    """What quantises in an ONNX graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {name: [] for name in self._makers}
        for node in graph.node:
            for name in {*node.input} & self._readers.keys():
                self._readers[name].append(node)
        self._results = {output.name for output in graph.output}

    def is_plainly_quantized(self) -> bool:
        """Whether there are quantised activations, with eight bits and one scale each, and none but dequantisers read them."""
        quantizers = [node for node in self._graph.node if node.op_type == "QuantizeLinear"]
        dequantizers = [node for node in self._graph.node if self._dequantizes_activation(node)]
        made = {node.output[0] for node in quantizers}
        return (bool(quantizers) and made.isdisjoint(self._results)
                and all(node.input[0] in made for node in dequantizers)
                and all(self._has_one_scale(node) for node in (*quantizers, *dequantizers))
                and all(reader.op_type == "DequantizeLinear" for name in made for reader in self._readers[name]))

    def integer_weights(self) -> set[str]:
        """The dequantised weights of convolutions that XNNPACK can compute in integers."""
        return {node.input[1] for node in self._graph.node if node.op_type == "Conv" and self._is_integer(node)}

    def separate_dequantizers(self) -> None:
        """Gives each reader of a quantised activation a dequantiser of its own."""
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            if self._dequantizes_activation(node):
                continue
            for index, name in enumerate(node.input):
                maker = self._makers.get(name)
                if maker is not None and self._dequantizes_activation(maker):
                    node.input[index] = f"{name}/{len(nodes)}"
                    nodes.append(onnx.helper.make_node(maker.op_type, maker.input, [node.input[index]]))
            nodes.append(node)
        nodes.extend(self._makers[name] for name in self._results if self._dequantizes_activation(self._makers[name]))
        self._graph.ClearField("node")
        self._graph.node.extend(nodes)

    def _dequantizes_activation(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "DequantizeLinear" and node.input[0] not in self._constants

    def _has_one_scale(self, node: onnx.NodeProto) -> bool:
        known = [self._constants[name] for name in node.input[1:] if name in self._constants]
        return (len(known) == 2 and not any(tensor.dims for tensor in known)
                and known[1].data_type in (TensorProto.INT8, TensorProto.UINT8))

    def _is_integer(self, convolution: onnx.NodeProto) -> bool:
        activation, weight = (self._makers.get(name) for name in convolution.input[:2])
        return (activation is not None and self._dequantizes_activation(activation)
                and weight is not None and self._is_symmetric_weight(weight)
                and self._is_quantized_next(convolution))

    def _is_symmetric_weight(self, node: onnx.NodeProto) -> bool:
        """int8 around 0, with a scale for each output channel, and read by one convolution only."""
        if node.op_type != "DequantizeLinear" or len(node.input) != 3 or len(self._readers[node.output[0]]) != 1:
            return False
        integers, scale, zero = (self._constants.get(name) for name in node.input)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        return (integers is not None and integers.data_type == TensorProto.INT8 and axis == 0
                and scale is not None and len(scale.dims) == 1
                and zero is not None and not numpy_helper.to_array(zero).any())

    def _is_quantized_next(self, node: onnx.NodeProto) -> bool:
        """Whether a node's result goes to nothing but a quantiser, or an activation function that goes to nothing but one."""
        for _ in range(2):
            name, = node.output
            readers = self._readers[name]
            if len(readers) != 1 or name in self._results:
                return False
            node, = readers
            if node.op_type not in _ACTIVATIONS:
                break
        return node.op_type == "QuantizeLinear"


def _signed(zero: Tensor) -> int:
    """A zero point in s8, where u8 numbers are smaller by 128."""
    return int(zero) - (128 if zero.dtype == torch.uint8 else 0)


def _quantize(node: NodeReader) -> Function:
    scale, zero = float(node.tensor(1)), _signed(node.tensor(2))
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor
    return lambda x: quantize(x, scale, zero, -128, 127, torch.int8)


def _dequantize(computed: Container[str], node: NodeReader) -> Function:
    if not node.is_constant(0):
        node.attribute("axis")  # of one scale there is none
        scale, zero = float(node.tensor(1)), _signed(node.tensor(2))
        return lambda x: torch.ops.quantized_decomposed.dequantize_per_tensor(x, scale, zero, -128, 127, torch.int8)
    if node.outputs[0] in computed:
        axis, scales = node.attribute("axis"), node.tensor(1)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        return lambda x: torch.ops.quantized_decomposed.dequantize_per_channel(x, scales, zeros, axis, -127, 127, torch.int8)
    dequantize = TRANSLATIONS[node.operator][0](node)
    parameters = [node.tensor(index) for index in range(1, len(node.inputs))]
    return lambda x: dequantize(x, *parameters)


def _hard_sigmoid(node: NodeReader) -> Function:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    return lambda x: F.hardtanh(alpha * x + beta, 0.0, 1.0)


_OVERRIDES: Translations = {"HardSigmoid": (_hard_sigmoid, None)}  # PyTorch's own becomes what XNNPACK does not cover
