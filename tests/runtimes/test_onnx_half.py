"""Converting to fp16: ONNX Runtime checks every type and the numbers are near float32's; small models are numpy's to the bit."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import hwnas
from hwnas.errors import InputError
from hwnas.lower.onnx import to_onnx
from hwnas.runtimes.onnx_half import to_half
from tests.runtimes.models import build_model, conv_net, noise, two_input_net

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Without optimisations, which could remove casts."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of each node's first output."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    known = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return {node.output[0]: known[node.output[0]] for node in graph.node}


def random_network(space_name: str, seed: int = 0) -> onnx.ModelProto:
    space = hwnas.load_space(space_name)
    return to_onnx(space.network(hwnas.Trellis(space).sample(1, seed=seed)[0]), seed=seed)


def assert_close_but_not_equal(result: np.ndarray, expected: np.ndarray) -> None:
    error = np.abs(result - expected).max() / np.abs(expected).max()
    assert 1e-6 < error < 2e-2  # fp16 has 11 bits


def test_a_network_computes_in_half_between_full_ends():
    images = noise((2, 3, 16, 16))
    half = to_half(conv_net())
    onnx.checker.check_model(half, full_check=True)
    assert_close_but_not_equal(run(half, images=images)["logits"], run(conv_net(), images=images)["logits"])
    assert (half.graph.input, half.graph.output) == (conv_net().graph.input, conv_net().graph.output)
    assert {tensor.data_type for tensor in half.graph.initializer} == {TensorProto.FLOAT16}
    assert [kind for name, kind in types(half).items() if kind == TensorProto.FLOAT] == [TensorProto.FLOAT]  # the last cast
    assert [node.op_type for node in half.graph.node].count("Cast") == 2


def test_the_model_given_is_not_changed():
    model = conv_net()
    to_half(model)
    assert model == conv_net()


@pytest.mark.parametrize("space", ["mobile-cpu", "spos", "fbnet"])
def test_networks_of_spaces(space):
    model = random_network(space)
    images = noise(tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim))
    assert_close_but_not_equal(run(to_half(model), images=images)["logits"], run(model, images=images)["logits"])


@pytest.mark.parametrize("space", ["mobile-cpu+int8+fp32", "mobile-cpu+fp16+fp32", "mobile-cpu+bf16+fp32"])
def test_quantisers_that_stay_in_full_precision_and_casts_of_the_model_itself(space):
    model = random_network(space)
    half = to_half(model, QUANTIZERS)
    onnx.checker.check_model(half, full_check=True)
    images = noise(tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim))
    result, expected = run(half, images=images)["logits"], run(model, images=images)["logits"]
    assert np.abs(result - expected).max() < 0.1 * np.abs(expected).max()  # a level of a quantiser may flip


def test_outputs_that_others_read_and_inputs_that_are_outputs():
    inputs = {"gate": np.array(3.0, np.float32), "images": noise((1, 4, 6, 6))}
    total, product = ReferenceEvaluator(to_half(two_input_net())).run(["total", "product"], inputs)
    images = inputs["images"].astype(np.float16)
    np.testing.assert_array_equal(product, (images * np.float16(3)).astype(np.float32))
    np.testing.assert_array_equal(total, (images + images * np.float16(3)).astype(np.float32))


def test_integers_and_what_must_be_float_stay():
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["big"], mode="nearest"),
             helper.make_node("Shape", ["big"], ["shape"]),
             helper.make_node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
             helper.make_node("ReduceSum", ["sizes"], ["y"], keepdims=0)]
    model = build_model(nodes, {"x": [1, 1, 4, 4]}, {"y": []},
                        [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")])
    assert run(to_half(model), x=noise((1, 1, 4, 4)))["y"] == 1 + 1 + 8 + 8


def test_bounds_beyond_the_range_become_infinite():
    bounds = [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", -3.4e38), ("high", 3.4e38))]
    model = build_model([helper.make_node("Clip", ["x", "low", "high"], ["y"])], {"x": [3]}, {"y": [3]}, bounds)
    x = np.array([-7, 0, 7], np.float32)
    np.testing.assert_array_equal(run(to_half(model), x=x)["y"], x)


def test_weights_beyond_the_range_are_refused():
    weight = numpy_helper.from_array(np.array([1.0, 70000.0], np.float32), "w")
    model = build_model([helper.make_node("Mul", ["x", "w"], ["y"])], {"x": [2]}, {"y": [2]}, [weight])
    with pytest.raises(InputError, match=r"65504.*'w' has 7e\+04.*fp32"):
        to_half(model)


def test_a_scale_never_becomes_zero():
    constants = [numpy_helper.from_array(np.float32(1e-30), "s"), numpy_helper.from_array(np.int8(0), "z")]
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    half = to_half(build_model(nodes, {"x": [2]}, {"y": [2]}, constants))
    (scale,) = (numpy_helper.to_array(one) for one in half.graph.initializer if one.name.startswith("s"))
    assert scale.dtype == np.float16 and scale > 0


def test_names_that_the_model_uses_itself_are_left_alone():
    nodes = [helper.make_node("Cast", ["x"], ["x/fp16"], to=TensorProto.BFLOAT16),
             helper.make_node("Cast", ["x/fp16"], ["rounded"], to=TensorProto.FLOAT),
             helper.make_node("Add", ["x", "rounded"], ["y"])]
    half = to_half(build_model(nodes, {"x": [4]}, {"y": [4]}, []))
    names = [name for node in half.graph.node for name in node.output]
    assert len(set(names)) == len(names)
    x = np.array([1, 1.0078125, 1.00390625, 3], np.float32)  # bf16 has eight bits, fp16 eleven
    np.testing.assert_array_equal(run(half, x=x)["y"], [2, 2.015625, 2.00390625, 6])


def test_control_flow_is_refused():
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "branch", [],
                               [helper.make_tensor_value_info("b", TensorProto.FLOAT, [4])])
    choice = helper.make_node("If", ["flag"], ["y"], "choice", then_branch=branch, else_branch=branch)
    model = build_model([choice], {"x": [4]}, {"y": [4]}, [numpy_helper.from_array(np.array(True), "flag")])
    with pytest.raises(InputError, match="If 'choice'"):
        to_half(model)
