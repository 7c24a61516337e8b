"""ONNX models as PyTorch modules: operators, layers and blocks against ONNX Runtime."""

import weakref
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import InputError
from hwnas.ir.network import build_network
from hwnas.ir.shape import TensorShape
from hwnas.lower.onnx import to_onnx
from hwnas.runtimes import RuntimeConfig, load_runtime
from hwnas.runtimes.onnx_model import read_onnx
from hwnas.runtimes.torch_model import TorchModel, build_torch_model
from hwnas.runtimes.torch_operators import TRANSLATIONS
from tests.lower.networks import BLOCK_SHAPE, BLOCKS, PRIMITIVES
from tests.runtimes.models import build_model, conv_net, noise

IMAGES = (2, 4, 7, 6)


def node_model(operator: str, inputs: list, attributes: dict[str, Any], outputs: int = 1, opset: int = 17) -> onnx.ModelProto:
    """One node. An input is a shape (of noise), an array (a constant), or "" (left out)."""
    names, constants, shapes = [], [], {}
    for index, given in enumerate(inputs):
        names.append("" if isinstance(given, str) else f"x{index}")
        if isinstance(given, np.ndarray):
            constants.append(numpy_helper.from_array(given, f"x{index}"))
        elif not isinstance(given, str):
            shapes[f"x{index}"] = given
    node = helper.make_node(operator, names, [f"y{index}" for index in range(outputs)], **attributes)
    model = build_model([node], shapes, {}, constants)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output)
    model.opset_import[0].version = opset
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def built(model: onnx.ModelProto) -> TorchModel:
    return build_torch_model(read_onnx(model.SerializeToString()))


def agree_with_onnxruntime(model: onnx.ModelProto, tolerance: float = 1e-5) -> None:
    inputs = {value.name: noise(tuple(d.dim_value for d in value.type.tensor_type.shape.dim), seed)
              for seed, value in enumerate(model.graph.input)}
    expected = load_runtime("onnxruntime-cpu").compile(model.SerializeToString(), RuntimeConfig()).run(inputs)
    results = [result.numpy() for result in built(model)(*map(torch.from_numpy, inputs.values()))]
    for result, right in zip(results, expected.values(), strict=True):
        assert result.dtype == right.dtype
        np.testing.assert_allclose(result, right, rtol=tolerance, atol=tolerance)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


SCALE = np.array(0.1, np.float32)
PER_CHANNEL = floats(0.1, 0.2, 0.05, 0.3), np.array([0, 3, -5, 7], np.int8)
CASES: list[tuple] = [
    *((operator, [IMAGES], {}) for operator in (
        "Abs", "Ceil", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid",
        "Softplus", "Tanh", "Dropout", "GlobalAveragePool", "Squeeze", "LeakyRelu", "HardSigmoid",
        "Softmax", "Flatten", "Transpose")),
    *((operator, [IMAGES, IMAGES], {}) for operator in (
        "Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Less", "Greater", "Equal")),
    *((operator, [IMAGES, (1, 4, 1, 1)], {}) for operator in ("Add", "Mul", "Sum")),
    ("Sum", [IMAGES] * 3, {}), ("Sum", [IMAGES], {}), ("Max", [IMAGES] * 3, {}),
    ("Add", [IMAGES, floats(2.5)], {}), ("Pow", [IMAGES, np.array(2, np.float32)], {}),
    ("Sqrt", [noise(IMAGES) ** 2], {}), ("Log", [noise(IMAGES) ** 2], {}),
    ("Where", [noise(IMAGES) > 0, IMAGES, IMAGES], {}),
    ("MatMul", [(2, 3, 5), (2, 5, 4)], {}),
    ("LeakyRelu", [IMAGES], {"alpha": 0.3}), ("HardSigmoid", [IMAGES], {"alpha": 1 / 6}), ("Softmax", [IMAGES], {"axis": 1}),
    ("Gelu", [IMAGES], {}, 1, 20), ("Gelu", [IMAGES], {"approximate": "tanh"}, 1, 20),
    ("Clip", [IMAGES, floats(0).reshape(()), floats(6).reshape(())], {}), ("Clip", [IMAGES], {}),
    ("Clip", [IMAGES, floats(-0.5).reshape(())], {}), ("Clip", [IMAGES, "", floats(0.5).reshape(())], {}),
    ("Conv", [IMAGES, (5, 4, 3, 3)], {}), ("Conv", [IMAGES, (5, 4, 3, 3), (5,)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", [IMAGES, (8, 1, 3, 5)], {"pads": [2, 0, 1, 3], "group": 4, "dilations": [2, 1], "kernel_shape": [3, 5]}),
    ("Conv", [IMAGES, (5, 4, 1, 1)], {"auto_pad": "VALID"}),
    ("MaxPool", [IMAGES], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("MaxPool", [IMAGES], {"kernel_shape": [3, 2], "pads": [0, 1, 2, 0]}), ("MaxPool", [IMAGES], {"kernel_shape": [2, 2]}),
    ("AveragePool", [IMAGES], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 1]}),
    ("AveragePool", [IMAGES], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("Gemm", [(3, 5), (5, 4)], {}), ("Gemm", [(3, 5), (4, 5), (4,)], {"transB": 1}),
    ("Gemm", [(3, 5), (4, 5), (3, 1)], {"transB": 1}),
    ("Gemm", [(5, 3), (4, 5), (4,)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}), ("Gemm", [(3, 5), (5, 4), (4,)], {}),
    ("BatchNormalization", [IMAGES, (4,), (4,), (4,), floats(1, 2, 3, 4)], {"epsilon": 1e-2}),
    ("LayerNormalization", [IMAGES, (6,), (6,)], {"epsilon": 1e-3}), ("LayerNormalization", [IMAGES, (6,)], {}),
    ("ReduceMean", [IMAGES], {"axes": [2, 3]}), ("ReduceMean", [IMAGES, ints(-1)], {"keepdims": 0}, 1, 18),
    ("Concat", [IMAGES, (2, 3, 7, 6)], {"axis": 1}), ("Concat", [IMAGES, IMAGES], {"axis": -1}),
    ("Split", [IMAGES, ints(1, 3)], {"axis": 1}, 2), ("Split", [IMAGES], {"axis": 1}, 2),
    ("Split", [IMAGES, ints(4)], {"axis": 1}),
    ("Split", [IMAGES], {"axis": 2, "num_outputs": 3}, 3, 18),
    ("Slice", [IMAGES, ints(1), ints(3), ints(1)], {}),
    ("Slice", [IMAGES, ints(1, 0), ints(-1, 2**62), ints(-1, 2), ints(2, 3)], {}),
    ("Slice", [IMAGES, ints(0, 1), ints(2, 3)], {}),
    ("Pad", [IMAGES, ints(0, 0, 1, 2, 0, 0, 3, 4)], {}),
    ("Pad", [IMAGES, ints(0, 1, 0, 0, 1, 0, 0, 0), np.array(7, np.float32)], {}),
    ("Reshape", [IMAGES, ints(0, 2, -1)], {}), ("Transpose", [IMAGES], {"perm": [0, 2, 1, 3]}),
    ("Flatten", [IMAGES], {"axis": 2}),
    ("Unsqueeze", [(2, 3), ints(3, 2)], {}), ("Unsqueeze", [(2, 3), ints(-1)], {}), ("Squeeze", [(2, 3, 1, 1), ints(2, 3)], {}),
    ("Resize", [IMAGES, "", "", ints(2, 4, 5, 9)], {"mode": "linear"}),
    ("Resize", [IMAGES, "", floats(1, 1, 0.6, 1.7)], {"mode": "linear"}),
    ("Resize", [IMAGES, "", floats(1, 1, 2, 3)], {
        "mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Cast", [IMAGES], {"to": TensorProto.FLOAT16}), ("Cast", [IMAGES], {"to": TensorProto.INT32}),
    ("Cast", [IMAGES], {"to": TensorProto.DOUBLE}),
    ("QuantizeLinear", [IMAGES, SCALE, np.array(128, np.uint8)], {}),
    ("QuantizeLinear", [IMAGES, *PER_CHANNEL], {}),
    ("DequantizeLinear", [np.arange(-4, 4, dtype=np.int8).reshape(2, 4), *PER_CHANNEL], {}),
    ("DequantizeLinear", [np.arange(8, dtype=np.int8).reshape(4, 2), *PER_CHANNEL], {"axis": 0}),
    ("DequantizeLinear", [np.arange(8, dtype=np.int32), SCALE], {}),
    ("Constant", [], {"value": numpy_helper.from_array(noise((3,)))}), ("Constant", [], {"value_ints": [1, 2]}),
    ("Constant", [], {"value_float": 1.5}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[2]}"[:60])
def test_operators_agree_with_onnxruntime(case):
    agree_with_onnxruntime(node_model(*case))


def test_every_operator_is_tested():
    assert {case[0] for case in CASES} == set(TRANSLATIONS)


NETWORKS = PRIMITIVES | {f"block {name}": build_network(TensorShape(*BLOCK_SHAPE), [("block", block)])
                         for name, block in BLOCKS.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_and_blocks_agree_with_onnxruntime(name):
    agree_with_onnxruntime(to_onnx(NETWORKS[name], seed=1, batch_size=2))


@pytest.mark.parametrize(("case", "named"), [
    (("Conv", [IMAGES, (5, 4, 3, 3)], {"auto_pad": "SAME_UPPER"}), "auto_pad"),
    (("Conv", [(2, 4, 7), (5, 4, 3)], {"kernel_shape": [3]}), "1-dimensional"),
    (("AveragePool", [IMAGES], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}), "side to side"),
    (("AveragePool", [IMAGES], {"kernel_shape": [3, 3], "ceil_mode": 1}), "ceil_mode"),
    (("MaxPool", [IMAGES], {"kernel_shape": [2, 2]}, 2), "several outputs"),
    (("Resize", [IMAGES, "", floats(1, 1, 2, 2)], {"mode": "cubic"}), "cubic"),
    (("Resize", [IMAGES, "", floats(1, 1, 2, 2)], {
        "mode": "linear", "coordinate_transformation_mode": "align_corners"}), "align"),
    (("Pad", [IMAGES, ints(0, 0, 1, 1, 0, 0, 1, 1)], {"mode": "reflect"}), "'reflect'"),
    (("Slice", [IMAGES, ints(5), ints(0), ints(3), ints(-1)], {}), "backwards"),
    (("ReduceMean", [IMAGES], {}), "axes"),
    (("LayerNormalization", [IMAGES, (7, 6)], {"axis": 2}), "axis"),
], ids=lambda value: value if isinstance(value, str) else value[0])
def test_forms_of_operators_that_are_not_covered_are_refused_with_what_it_is(case, named):
    model = node_model(*case)
    model.graph.node[0].name = "the layer"
    with pytest.raises(InputError, match="'the layer' has no PyTorch form") as caught:
        built(model)
    assert named in str(caught.value) and case[0] in str(caught.value)


def test_an_attribute_that_nobody_reads_is_refused():
    model = node_model("Relu", [IMAGES], {})
    model.graph.node[0].attribute.append(helper.make_attribute("gentle", 1))
    with pytest.raises(InputError, match="attribute 'gentle'"):
        built(model)


def test_an_operator_of_another_domain_is_refused_by_its_full_name():
    model = node_model("Gelu", [IMAGES], {}, 1, 20)
    model.graph.node[0].domain = "com.microsoft"
    with pytest.raises(InputError, match=r"com\.microsoft\.Gelu"):
        built(model)


def test_what_must_be_known_beforehand_may_not_be_computed():
    nodes = [helper.make_node("Cast", ["shape"], ["sizes"], to=TensorProto.INT64),
             helper.make_node("Reshape", ["x", "sizes"], ["y"])]
    model = build_model(nodes, {"x": [2, 6], "shape": [1]}, {"y": [12]}, [])
    with pytest.raises(InputError, match="'sizes' is not a constant"):
        built(model)


def test_graphs_that_do_not_hang_together_are_refused():
    with pytest.raises(InputError, match="'nowhere'"):
        built(build_model([helper.make_node("Relu", ["nowhere"], ["y"])], {"x": [2]}, {"y": [2]}, []))
    with pytest.raises(InputError, match="'z' is made by no layer"):
        built(build_model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, {"z": [2]}, []))


def test_old_opsets_are_refused():
    model = node_model("Relu", [IMAGES], {})
    model.opset_import[0].version = 12
    with pytest.raises(InputError, match="at least 13"):
        built(model)


def test_what_follows_from_constants_is_computed_once():
    weight = numpy_helper.from_array(np.arange(8, dtype=np.int8), "w")
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "s")
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["f"]), helper.make_node("Mul", ["x", "f"], ["y"])]
    module = built(build_model(nodes, {"x": [8]}, {"y": [8]}, [weight, scale]))
    np.testing.assert_array_equal(module(torch.ones(8))[0], np.arange(8) / 2)
    (parameter,) = module.parameters()  # the integers and their scale are gone
    assert parameter.dtype == torch.float32


def test_tensors_are_dropped_when_nothing_reads_them_any_more():
    made: list[weakref.ref] = []
    alive = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        result = x + 1
        made.append(weakref.ref(result))
        alive.append(sum(reference() is not None for reference in made))
        return result

    nodes = [helper.make_node("Relu", [f"t{index}"], [f"t{index + 1}"]) for index in range(20)]
    nodes.append(helper.make_node("Add", ["t1", "t20"], ["y"]))
    model = read_onnx(build_model(nodes, {"t0": [4]}, {"y": [4]}, []).SerializeToString())
    module = build_torch_model(model, overrides={"Relu": (lambda node: layer, None)})
    np.testing.assert_array_equal(module(torch.zeros(4))[0], np.full(4, 21))
    assert max(alive) == 3  # the first, which is read at the end, a layer's input and its result


def test_other_types_reach_every_layer_and_stop_at_the_ends():
    seen = []
    model = read_onnx(conv_net().SerializeToString())

    def relu(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.dtype)
        return x.relu()

    module = build_torch_model(model, torch.bfloat16, overrides={"Relu": (lambda node: relu, None)})
    (result,) = module(torch.from_numpy(noise((2, 3, 16, 16))))
    assert set(seen) == {torch.bfloat16} == {parameter.dtype for parameter in module.parameters()}
    assert result.dtype == torch.float32


def test_numbers_that_are_no_weights_stay_exact_in_other_types():
    image = torch.from_numpy(noise((1, 1, 100, 100)))
    resize = node_model("Resize", [tuple(image.shape), "", floats(1, 1, 1.235, 1.235)], {"mode": "linear"})
    (result,) = build_torch_model(read_onnx(resize.SerializeToString()), torch.bfloat16)(image)
    assert result.shape == (1, 1, 123, 123)  # 124 by the nearest number that bf16 has
    scale = np.array(0.1003, np.float32)
    quantize = node_model("QuantizeLinear", [tuple(image.shape), scale, np.array(0, np.int8)], {})
    (result,) = build_torch_model(read_onnx(quantize.SerializeToString()), torch.bfloat16)(image)
    np.testing.assert_array_equal(result, torch.round(image.bfloat16().float() / float(scale)))


def test_other_types_at_the_ends_are_kept():
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)
    model = build_model([node], {"x": [3]}, {"y": [3]}, [])
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    executable = load_runtime("torch-cpu").compile(model.SerializeToString(), RuntimeConfig())
    result = executable.run({"x": floats(1, 2.001, 3.3)})["y"]
    assert result.dtype.name == "bfloat16" and result.dtype == executable.outputs[0].dtype
    np.testing.assert_array_equal(result.astype(np.float32), [1, 2, 3.296875])


def test_torch_export_sees_straight_line_code():
    module = built(conv_net(depth=2))
    images = torch.from_numpy(noise((2, 3, 16, 16)))
    exported = torch.export.export(module.eval(), (images,))
    operators = [node.target.__name__ for node in exported.graph.nodes if node.op == "call_function"]
    assert operators == ["conv2d.default", "relu.default", "conv2d.default", "relu.default", "conv2d.default", "relu.default",
                         "mean.dim", "flatten.using_ints", "linear.default"]
    np.testing.assert_allclose(exported.module()(images)[0], module(images)[0], atol=1e-6)
