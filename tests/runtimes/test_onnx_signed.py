"""Eight-bit integers made signed: the same numbers where that is possible, every other level where not."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import hwnas
from hwnas.errors import InputError
from hwnas.lower.onnx import to_onnx
from hwnas.runtimes.onnx_signed import to_signed
from tests.runtimes.models import build_model, conv_net, noise

X = np.linspace(-5, 5, 601, dtype=np.float32)
STEP = np.float32(0.015625)


def quantised(zero: np.generic | None, step: np.ndarray = STEP) -> onnx.ModelProto:
    """x -> integers -> y."""
    constants = [numpy_helper.from_array(np.asarray(step), "step")]
    if zero is not None:
        constants.append(numpy_helper.from_array(np.asarray(zero), "zero"))
    names = ["step", "zero"][:len(constants)]
    nodes = [helper.make_node("QuantizeLinear", ["x", *names], ["q"], "quantise"),
             helper.make_node("DequantizeLinear", ["q", *names], ["y"], "dequantise")]
    return build_model(nodes, {"x": [601]}, {"y": [601]}, constants)


def weighted(integers: np.ndarray, zero: np.ndarray | None, step: np.ndarray, axis: int = 0) -> onnx.ModelProto:
    """x + dequantised constant."""
    constants = {"w": integers, "step": step} | ({} if zero is None else {"zero": zero})
    nodes = [helper.make_node("DequantizeLinear", list(constants), ["values"], "weights", axis=axis),
             helper.make_node("Add", ["x", "values"], ["y"])]
    shape = list(integers.shape)
    return build_model(nodes, {"x": shape}, {"y": shape}, [numpy_helper.from_array(a, n) for n, a in constants.items()])


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def zero_points(model: onnx.ModelProto) -> list[np.ndarray]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [constants[node.input[2]] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]


def assert_signed(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zero_points(model))


def test_u8_around_128_gives_the_same_numbers():
    model = quantised(np.uint8(128))
    signed = to_signed(model)
    assert_signed(signed)
    np.testing.assert_array_equal(run(signed, x=X), run(model, x=X))
    assert np.ptp(run(model, x=X)) == 255 * STEP  # both ends were reached


@pytest.mark.parametrize("zero", [np.uint8(0), None], ids=["stated", "by default"])
def test_u8_from_0_keeps_its_range_and_every_other_level(zero):
    signed = to_signed(quantised(zero))
    assert_signed(signed)
    positive = X[X >= 0]
    expected = np.clip(np.rint(positive / (2 * STEP)), 0, 127) * (2 * STEP)
    np.testing.assert_array_equal(run(signed, x=X)[X >= 0], expected)
    assert expected.max() == 254 * STEP


def test_signed_models_and_those_without_integers_stay_as_they_are():
    for model in (quantised(np.int8(0)), conv_net()):
        assert to_signed(model) == model


def test_the_model_given_is_not_changed():
    model = quantised(np.uint8(0))
    to_signed(model)
    assert model == quantised(np.uint8(0))


def test_weights_in_u8_around_128():
    integers = np.arange(256, dtype=np.uint8).reshape(2, 128)
    model = weighted(integers, np.full(2, 128, np.uint8), np.array([0.5, 0.25], np.float32))
    signed = to_signed(model)
    assert_signed(signed)
    np.testing.assert_array_equal(run(signed, x=noise((2, 128))), run(model, x=noise((2, 128))))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_whole_numbers_of_32_bits_become_floats(axis):
    integers = np.array([[-100000, 7], [0, 2**20]], np.int32)
    model = weighted(integers, None, np.array([0.001, 0.5], np.float32), axis)
    folded = to_signed(model)
    assert [node.op_type for node in folded.graph.node] == ["Add"]
    np.testing.assert_array_equal(run(folded, x=noise((2, 2))), run(model, x=noise((2, 2))))


def test_a_network_of_a_space_with_bit_widths():
    space = hwnas.load_space("mobile-cpu+int8+fp32")
    model = to_onnx(space.network(hwnas.Trellis(space).sample(1, seed=0)[0]), seed=0)
    assert {zero.dtype for zero in zero_points(model)} == {np.dtype(np.uint8), np.dtype(np.int8)}
    assert {int(zero.max()) for zero in zero_points(model)} == {0, 128}
    assert_signed(to_signed(model))


@pytest.mark.parametrize("model", [quantised(np.uint8(37)), weighted(np.ones((2, 2), np.uint8), np.array([0, 0], np.uint8),
                                                                     np.ones(2, np.float32))], ids=["activations", "weights"])
def test_other_zero_points_are_refused(model):
    with pytest.raises(InputError, match=r"zero point (37|0)"):
        to_signed(model)


def test_integers_that_reach_another_operator_are_refused():
    model = quantised(np.uint8(128))
    model.graph.node.insert(1, helper.make_node("Reshape", ["q", "shape"], ["r"], "reshape"))
    model.graph.node[2].input[0] = "r"
    model.graph.initializer.append(numpy_helper.from_array(np.array([601]), "shape"))
    with pytest.raises(InputError, match="Reshape 'reshape'"):
        to_signed(model)


def test_scales_that_are_computed_are_refused():
    model = quantised(np.uint8(0))
    model.graph.node.insert(0, helper.make_node("Abs", ["step"], ["computed"]))
    for node in model.graph.node[1:]:
        node.input[1] = "computed"
    with pytest.raises(InputError, match="'computed'"):
        to_signed(model)
