"""LiteRT beyond the contract: that lowering keeps the numbers, what XNNPACK covers, integers, refusals."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import InputError
from hwnas.ir.block import Block
from hwnas.ir.blocks import ConvBlock, MBConv, ShuffleUnit
from hwnas.ir.network import Network, build_network
from hwnas.ir.quantized import Quantized
from hwnas.ir.residual_blocks import BasicBlock
from hwnas.ir.shape import TensorShape
from hwnas.lower.onnx import to_onnx
from hwnas.runtimes import RuntimeConfig
from hwnas.runtimes.litert import LiteRtCpu
from hwnas.spaces.networks import load_network
from tests.lower.networks import BLOCK_SHAPE, BLOCKS, PRIMITIVES, networks
from tests.runtimes.models import build_model, conv_net, noise
from tests.runtimes.parity import assert_parity, leaked_mib, random_network

pytest.importorskip("ai_edge_litert")

RUNTIME = LiteRtCpu()
IMAGE = (2, 6, 7, 8)


def network_of(*blocks: Block) -> Network:
    return build_network(TensorShape(*BLOCK_SHAPE), [(f"block{index}", block) for index, block in enumerate(blocks)])


def lowered(network: Network) -> bytes:
    return RUNTIME.prepare(to_onnx(network, seed=1, batch_size=2).SerializeToString(), RuntimeConfig()).files["model.tflite"]


def runs_within_xnnpack(network: Network) -> bool:
    from ai_edge_litert.compiled_model import CompiledModel

    return CompiledModel.from_buffer(lowered(network)).is_fully_accelerated()


def node(operator: str, *inputs: str, outputs: tuple[str, ...] = ("y",), **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, **attributes)


def model_of(*nodes: onnx.NodeProto, shape: tuple[int, ...] = IMAGE, **constants: np.ndarray) -> onnx.ModelProto:
    """From `x` to `y`."""
    weights = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    return build_model(list(nodes), {"x": list(shape)}, {"y": None}, weights)


def with_output(model: onnx.ModelProto, shape: tuple[int, ...]) -> bytes:
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    return model.SerializeToString()


def check(*nodes: onnx.NodeProto, shape: tuple[int, ...] = IMAGE, **constants: np.ndarray) -> None:
    """Against ONNX Runtime, node by node."""
    model = model_of(*nodes, shape=shape, **constants)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected, = session.run(None, {"x": noise(shape)})
    executable = RUNTIME.compile(with_output(model, expected.shape), RuntimeConfig())
    result = executable.run({"x": noise(shape)})["y"]
    executable.close()
    np.testing.assert_allclose(result, expected, atol=1e-5, rtol=1e-5)


# Networks


@pytest.mark.parametrize("name", PRIMITIVES)
def test_layers_agree_with_onnxruntime(name):
    assert_parity(RUNTIME, PRIMITIVES[name], tolerance=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_agree_with_onnxruntime(name):
    assert_parity(RUNTIME, network_of(BLOCKS[name]), tolerance=1e-5)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_random_networks_agree_with_onnxruntime(network):
    assert_parity(RUNTIME, network, tolerance=1e-5)


@pytest.mark.parametrize("name", ["mobilenet-v2-0.75", "shufflenet-v2-0.5", "mnasnet-small", "darts-v2-cifar", "nasnet-a-mobile"])
def test_reference_networks_agree_with_onnxruntime_and_run_within_xnnpack(name):
    network = load_network(name).network
    assert_parity(RUNTIME, network, tolerance=1e-5)
    assert runs_within_xnnpack(network)


@pytest.mark.parametrize("space", [
    "mobile-cpu", "spos-cpu", "fbnet-cpu", "darts-cpu", "one-shot-cpu", "ofa-cpu", "plain-conv-cpu", "mobile-cpu+int8+fp32",
    "spos-cpu+int8", "fbnet-cpu+int8+fp32"])
def test_networks_of_all_kinds_agree_with_onnxruntime_and_run_within_xnnpack(space):
    network = random_network(space)
    # In a long chain of integers, the last bit of a float now and then decides between two neighbours.
    assert_parity(RUNTIME, network, tolerance=1e-2 if "int8" in space else 1e-5)
    assert runs_within_xnnpack(network)


@pytest.mark.parametrize("blocks", [
    (ConvBlock(16, activation="relu6"), ConvBlock(8)), (MBConv(8, 3, 2), MBConv(8, 3, 2)), (BasicBlock(8), ConvBlock(8)),
    (MBConv(8, 3, 2, se_ratio=0.25, activation="hardswish"), ConvBlock(8)), (ShuffleUnit(8), ConvBlock(8)),
], ids=["convs", "residuals", "activated residual", "gates", "concatenation"])
def test_integer_networks_compute_in_integers(blocks):
    """To the last bit of ONNX Runtime's integers: a convolution in floats rounds otherwise."""
    network = network_of(*(Quantized(block, 8, 8, integer=True) for block in blocks), ConvBlock(8))
    assert_parity(RUNTIME, network, tolerance=1e-5)
    assert runs_within_xnnpack(network)
    convolutions = [operator for operator in operators(lowered(network)) if operator.startswith(("CONV", "DEPTHWISE"))]
    assert 0 < convolutions.count("CONV_2D FLOAT32") <= 2  # the last, and one whose result only goes there
    assert set(convolutions[:-2]) <= {"CONV_2D INT8", "DEPTHWISE_CONV_2D INT8"} and "CONV_2D INT8" in convolutions


def operators(content: bytes) -> list[str]:
    """The operators in a file, each with the type of its result."""
    from ai_edge_litert import schema_py_generated as schema

    def names(numbered: type) -> dict[int, str]:
        return {number: name for name, number in vars(numbered).items() if isinstance(number, int)}

    model = schema.ModelT.InitFromPackedBuf(content)
    codes, types = names(schema.BuiltinOperator), names(schema.TensorType)
    graph, = model.subgraphs
    return [f"{codes[model.operatorCodes[operator.opcodeIndex].builtinCode]} {types[graph.tensors[operator.outputs[0]].type]}"
            for operator in graph.operators]


# Layout


def test_channels_are_moved_about_only_where_they_are_shuffled():
    plain = operators(lowered(network_of(MBConv(8, 3, 2, se_ratio=0.25, activation="hardswish"), BasicBlock(12, 3, 2))))
    assert not [operator for operator in plain if operator.startswith(("TRANSPOSE", "RESHAPE"))]
    shuffled = operators(lowered(network_of(ShuffleUnit(8))))
    assert shuffled.count("TRANSPOSE FLOAT32") == 1


def test_activation_functions_join_what_they_follow():
    found = operators(lowered(network_of(ConvBlock(8, activation="relu6"), BasicBlock(8))))
    assert found == ["CONV_2D FLOAT32"] * 3 + ["ADD FLOAT32"]


@pytest.mark.parametrize("nodes", [
    [node("Flatten", "x")],
    [node("Flatten", "x", axis=3)],
    [node("Transpose", "x", perm=[2, 0, 3, 1])],
    [node("Transpose", "x", outputs=("t",)), node("Relu", "t")],
    [node("Softmax", "x", axis=1)],
    [node("Softmax", "x", axis=-1)],
    [node("Concat", "x", "x", "x", "x", "x", "x", "x", axis=2)],
    [node("GlobalAveragePool", "x", outputs=("p",)), node("Squeeze", "p", "last", outputs=("s",)), node("Mul", "x", "p")],
    [node("ReduceMean", "x", axes=[2, 3], keepdims=0)],
    [node("ReduceMean", "x", axes=[1], keepdims=1)],
    [node("Unsqueeze", "x", "first", outputs=("u",)), node("Squeeze", "u", "first")],
    [node("Reshape", "x", "as_rows")],
    [node("Reshape", "x", "as_rows", outputs=("r",)), node("Reshape", "r", "as_image", outputs=("i",)), node("MaxPool", "i",
                                                                                                       kernel_shape=[2, 2])],
    [node("Slice", "x", "ones", "ends", "axes", "steps")],
    [node("Split", "x", "sizes", outputs=("a", "b"), axis=1), node("Concat", "b", "a", axis=1)],
], ids=lambda nodes: ", ".join(one.op_type for one in nodes))
def test_what_moves_values_about_agrees_with_the_reference(nodes):
    check(*nodes, first=np.array([0]), last=np.array([2, 3]), as_rows=np.array([0, -1, 14]), as_image=np.array([2, 3, 14, 8]),
          ones=np.array([1, 1, -3]), ends=np.array([6, 99, 99]), axes=np.array([1, 2, 3]), steps=np.array([1, 2, 1]),
          sizes=np.array([1, 5]))


@pytest.mark.parametrize("other", [(), (8,), (7, 1), (6, 1, 1), (1, 1, 7, 8), IMAGE], ids=str)
@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_operands_of_all_ranks_are_repeated_along_the_right_axes(operator, other):
    constant = noise(other, 5) + np.float32(3)
    check(node(operator, "x", "c"), c=constant)
    check(node(operator, "c", "x"), c=constant)


def test_operands_that_change_are_repeated_too():
    check(node("GlobalAveragePool", "x", outputs=("p",)), node("Squeeze", "p", "axes", outputs=("v",)), node("Add", "v", "rows"),
          axes=np.array([2, 3]), rows=noise((2, 6)))
    check(node("ReduceMean", "x", outputs=("m",), axes=[0, 1], keepdims=0), node("Mul", "m", "x"))


@pytest.mark.parametrize("operator", ["Abs", "Ceil", "Exp", "Floor", "HardSigmoid", "HardSwish", "LeakyRelu", "Neg", "Relu",
                                      "Round", "Sigmoid", "Tanh"])
def test_functions_of_one_element_agree_with_the_reference(operator):
    check(node(operator, "x"))


@pytest.mark.parametrize("bounds", [(0, 6), (-1, 1), (0, 1), (-0.5, 0.25), (0, None), (None, 0.5), (None, None)], ids=str)
def test_bounds_agree_with_the_reference(bounds):
    low, high = ("" if bound is None else name for bound, name in zip(bounds, ("low", "high"), strict=True))
    known = {name: np.float32(bound) for bound, name in zip(bounds, ("low", "high"), strict=True) if bound is not None}
    check(node("Clip", "x", low, high), **known)
    check(node("Add", "x", "x", outputs=("twice",)), node("Clip", "twice", low, high), **known)


def test_choices_agree_with_the_reference():
    check(node("Less", "x", "zero", outputs=("c",)), node("Where", "c", "x", "one"), zero=np.float32(0), one=np.float32(1))


# Padding and groups


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 0], [1, 0, 0, 1], [0, 0, 1, 1], [2, 2, 2, 2]], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_all_padding_of_convolutions_agrees_with_the_reference(pads, stride, dilation):
    """Of an odd and of an even number of rows: with a stride, TensorFlow's SAME is symmetric for one of them only."""
    check(node("Conv", "x", "w", "b", pads=pads, strides=[stride] * 2, dilations=[dilation] * 2), w=noise((4, 6, 3, 3), 1),
          b=noise((4,), 2))
    check(node("Conv", "x", "w", pads=pads, strides=[stride] * 2, dilations=[dilation] * 2, group=6), w=noise((6, 1, 3, 3), 1))


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 0], [0, 0, 1, 1], [2, 1, 2, 2]], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_all_padding_of_pools_agrees_with_the_reference(pads, stride):
    """Of numbers of either sign: zeros around them would be larger than some."""
    window = {"kernel_shape": [3, 3], "pads": pads, "strides": [stride] * 2}
    check(node("MaxPool", "x", **window))
    for count_include_pad in (0, 1):
        check(node("AveragePool", "x", count_include_pad=count_include_pad, **window))


@pytest.mark.parametrize(("groups", "filters"), [(2, 4), (3, 9), (6, 6), (6, 18), (1, 1)])
def test_groups_of_channels_agree_with_the_reference(groups, filters):
    check(node("Conv", "x", "w", "b", group=groups, pads=[1, 1, 1, 1]), w=noise((filters, 6 // groups, 3, 3), 1),
          b=noise((filters,), 2))


@pytest.mark.parametrize("attributes", [{"transB": 1}, {"transB": 0}, {"transB": 1, "alpha": 0.5, "beta": 2.0}], ids=str)
def test_matrices_agree_with_the_reference(attributes):
    weight = noise((5, 4) if attributes["transB"] else (4, 5), 1)
    check(node("Gemm", "x", "w", "b", **attributes), shape=(3, 4), w=weight, b=noise((5,), 2))
    check(node("Gemm", "x", "w", **attributes), shape=(3, 4), w=weight)


@pytest.mark.parametrize("attributes", [{"mode": "linear"}, {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                                                             "nearest_mode": "floor"}], ids=lambda found: found["mode"])
def test_scaled_images_agree_with_the_reference(attributes):
    check(node("Resize", "x", "", "scales", **attributes), scales=np.array([1, 1, 2, 3], np.float32))


def test_constants_of_the_graph_are_computed_once():
    two = node("Constant", outputs=("two",), value=numpy_helper.from_array(np.float32(2)))
    check(two, node("Mul", "two", "c", outputs=("d",)), node("Add", "x", "d"), c=noise((6, 1, 1)))


def test_weights_that_another_tool_quantised_agree_with_the_reference():
    check(node("DequantizeLinear", "q", "s", "z", outputs=("w",), axis=1), node("Conv", "x", "w"),
          q=np.arange(24, dtype=np.uint8).reshape(4, 6, 1, 1), s=np.linspace(0.1, 0.2, 6, dtype=np.float32),
          z=np.arange(6, dtype=np.uint8))


def test_integers_are_right_where_nothing_computes_with_them():
    check(node("QuantizeLinear", "x", "s", "z", outputs=("q",)), node("DequantizeLinear", "q", "s", "z"), s=np.float32(0.25),
          z=np.uint8(100))


# Results


def test_results_that_are_inputs_or_each_other_are_right_too():
    nodes = [node("Dropout", "x", outputs=("same",)), node("Relu", "same", outputs=("y",)), node("Identity", "y", outputs=("z",))]
    model = build_model(nodes, {"x": list(IMAGE)}, {name: list(IMAGE) for name in ("same", "y", "z")}, [])
    executable = RUNTIME.compile(model.SerializeToString(), RuntimeConfig())
    for seed in (1, 2):
        results = executable.run({"x": noise(IMAGE, seed)})
        np.testing.assert_array_equal(results["same"], noise(IMAGE, seed))
        for name in ("y", "z"):
            np.testing.assert_array_equal(results[name], np.maximum(noise(IMAGE, seed), 0))
    executable.close()


def test_two_threads_compute_the_same():
    model, images = conv_net(width=32, depth=3).SerializeToString(), {"images": noise((2, 3, 16, 16))}
    one, two = (RUNTIME.compile(model, RuntimeConfig(threads=threads)) for threads in (1, 2))
    np.testing.assert_allclose(one.run(images)["logits"], two.run(images)["logits"], atol=1e-5)
    one.close()
    two.close()


def test_a_model_is_always_lowered_to_the_same_file():
    for network in (PRIMITIVES["slices of a shuffle across rows"], network_of(Quantized(BasicBlock(8), 8, 8, integer=True))):
        assert lowered(network) == lowered(network)


def test_constants_are_aligned_in_the_file():
    """As the format demands; LiteRT on other processors than x86 relies on it."""
    weights = [noise((size, 6, 1, 1), size) for size in (3, 5)]
    model = model_of(node("Conv", "x", "v", outputs=("h",)), node("Conv", "x", "w", outputs=("i",)),
                     node("Concat", "h", "i", axis=1), v=weights[0], w=weights[1])
    content = RUNTIME.prepare(with_output(model, (2, 8, 7, 8)), RuntimeConfig()).files["model.tflite"]
    for weight in weights:
        assert content.find(weight.tobytes()) % 16 == 0
        assert content.count(weight.tobytes()) == 1


def test_memory_is_given_back():
    assert leaked_mib(RUNTIME) < 15  # 45 if only the weights were kept


def test_nothing_is_printed():
    program = """
from hwnas.runtimes import RuntimeConfig
from hwnas.runtimes.litert import LiteRtCpu
from tests.runtimes.models import conv_net, noise
executable = LiteRtCpu().compile(conv_net().SerializeToString(), RuntimeConfig())
assert executable.run({"images": noise((2, 3, 16, 16))})["logits"].shape == (2, 5)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Refusals


@pytest.mark.parametrize(("nodes", "said"), [
    ([node("Frobnicate", "x")], "no LiteRT form of the ONNX operator 'Frobnicate'"),
    ([helper.make_node("Relu", ["x"], ["y"], domain="mine")], "'mine.Relu'"),
    ([node("Relu", "x", sharpness=2)], "its attribute 'sharpness' is not covered"),
    ([node("Relu", "nothing")], "no layer before it makes its input 'nothing'"),
    ([node("Conv", "x", "w", auto_pad="SAME_LOWER")], "its auto_pad leaves the padding to the runtime"),
    ([node("Conv", "x", "x")], "its input 'x' is not a constant"),
    ([node("Conv", "x", "w", group=2)], "in 2 groups do not fit"),
    ([node("Conv", "x", "w", strides=[0, 0])], "litert-cpu cannot compile the model"),
    ([node("AveragePool", "x", kernel_shape=[9, 9])], "does not fit"),
    ([node("MaxPool", "x", kernel_shape=[2, 2], ceil_mode=1)], "its ceil_mode is 1 instead of 0"),
    ([node("MaxPool", "x", kernel_shape=[2, 2], outputs=("y", "indices"))], "it has several outputs"),
    ([node("Pad", "x", "pads", mode="reflect")], "its mode is 'reflect'"),
    ([node("Resize", "x", "", "scales", mode="cubic")], "it is cubic with half_pixel coordinates"),
    ([node("Slice", "x", "start", "end", "axis", "step")], "it steps backwards"),
    ([node("Reshape", "x", "rows")], "does not fill"),
    ([node("Cast", "x", to=TensorProto.INT32)], "it converts to INT32"),
    ([node("QuantizeLinear", "x", "scale", "zero", outputs=("q",)), node("Relu", "q")], "it reads integers"),
    ([node("QuantizeLinear", "x", "scale", "zero", outputs=("q",)), node("DequantizeLinear", "q", "other", "zero")],
     "its integers were quantised otherwise"),
], ids=lambda found: found if isinstance(found, str) else "")
def test_what_is_not_covered_is_refused_with_the_reason(nodes, said):
    model = model_of(*nodes, w=noise((4, 6, 1, 1)), pads=np.array([0] * 8), scales=np.array([1, 1, 2, 2], np.float32),
                     start=np.array([5]), end=np.array([0]), axis=np.array([1]), step=np.array([-1]), rows=np.array([3]),
                     scale=np.float32(0.1), zero=np.int8(0), other=np.float32(0.2))
    with pytest.raises(InputError) as caught:
        RUNTIME.compile(with_output(model, IMAGE), RuntimeConfig())
    assert said in str(caught.value)


def test_models_of_other_types_and_ages_are_refused():
    model = model_of(node("Relu", "x"))
    model.opset_import[0].version = 11
    with pytest.raises(InputError, match="at least 13 to be lowered to LiteRT, but is 11"):
        RUNTIME.compile(with_output(model, IMAGE), RuntimeConfig())
    model = model_of(node("Relu", "x"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(InputError, match="takes and gives float32, but 'x' is float64"):
        RUNTIME.compile(with_output(model, IMAGE), RuntimeConfig())


def test_a_damaged_program_is_refused():
    program = RUNTIME.prepare(conv_net().SerializeToString(), RuntimeConfig())
    damaged = type(program)({"model.tflite": program.files["model.tflite"][:100]}, program.inputs, program.outputs)
    with pytest.raises(InputError, match="litert-cpu cannot compile"):
        RUNTIME.load(damaged, RuntimeConfig())
