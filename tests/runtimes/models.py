"""Small ONNX models for the runtimes' tests."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwnas.ir.layers import Activation, BatchNorm, Conv, Quantize
from hwnas.ir.network import NetworkBuilder
from hwnas.ir.shape import TensorShape
from hwnas.lower.onnx import OPSET, to_onnx
from hwnas.lower.weights import random_weights


def conv_net(seed: int = 0, *, width: int = 8, side: int = 16, depth: int = 1) -> onnx.ModelProto:
    """Convolutions with ReLU, a strided depthwise one, global pooling and a linear layer: (2, 3, side, side) -> (2, 5)."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], []

    def layer(operator: str, source: str, target: str, shape: tuple[int, ...], **attributes: object) -> str:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        for suffix, size in (("weight", shape), ("bias", shape[:1])):
            values = (rng.standard_normal(size) * scale).astype(np.float32)
            weights.append(numpy_helper.from_array(values, f"{target}.{suffix}"))
        nodes.append(helper.make_node(operator, [source, f"{target}.weight", f"{target}.bias"], [target], **attributes))
        return target

    def relu(source: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [f"{source}.relu"]))
        return f"{source}.relu"

    flow = "images"
    for index in range(depth):
        flow = relu(layer("Conv", flow, f"conv{index}", (width, width if index else 3, 3, 3), pads=[1, 1, 1, 1]))
    flow = relu(layer("Conv", flow, "depthwise", (width, 1, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2], group=width))
    nodes.append(helper.make_node("GlobalAveragePool", [flow], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    layer("Gemm", "flat", "logits", (5, width), transB=1)
    return build_model(nodes, {"images": [2, 3, side, side]}, {"logits": [2, 5]}, weights)


def int8_net(opset: int = OPSET) -> tuple[onnx.ModelProto, float]:
    """Convolutions in int8 from end to end, as hwnas writes them, (2, 3, 16, 16) -> (2, 24, 8, 8), and its results' step."""
    net = NetworkBuilder(TensorShape(3, 16, 16))
    x = net.add("images/rounded", Quantize(8, signed=True), net.input)
    for name, conv, signed in (("stem", Conv(16, (3, 3), 1, (1, 1), weight_format="int8"), False),
                               ("depthwise", Conv(16, (3, 3), 2, (1, 1), groups=16, weight_format="int8"), False),
                               ("pointwise", Conv(24, weight_format="int8"), True)):
        x = net.add(f"{name}/bn", BatchNorm(), net.add(name, conv, x))
        if not signed:
            x = net.add(f"{name}/relu", Activation("relu"), x)
        x = net.add(f"{name}/rounded", Quantize(8, signed), x)
    network = net.build(x)
    weights = random_weights(network, seed=0)
    return to_onnx(network, weights, batch_size=2, opset=opset), float(weights["pointwise/rounded.scale"][0])


def two_input_net() -> onnx.ModelProto:
    """images * gate, and its sum with images: two inputs, one of them a scalar, and two outputs."""
    nodes = [
        helper.make_node("Mul", ["images", "gate"], ["product"]),
        helper.make_node("Add", ["images", "product"], ["total"]),
    ]
    shape = [1, 4, 6, 6]
    return build_model(nodes, {"images": shape, "gate": []}, {"total": shape, "product": shape}, [])


def build_model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list],
    outputs: dict[str, list | None],
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
