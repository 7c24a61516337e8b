"""ONNX Runtime on a GPU: nothing may run on the CPU instead. The rest of the contract is in test_contract."""

import onnxruntime as ort
import pytest
from onnx import helper

from hwnas.errors import InputError
from hwnas.runtimes import RUNTIMES, RuntimeConfig
from hwnas.runtimes.onnxruntime_cuda import layers_elsewhere
from tests.runtimes.models import build_model, conv_net

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime was built with CUDA")
def test_a_build_without_cuda_is_told_with_the_command_that_replaces_it():
    reason = RUNTIMES["onnxruntime-cuda"].availability().reason
    assert "built without CUDA" in reason and "pip uninstall --yes onnxruntime && pip install 'onnxruntime-gpu" in reason


def test_layers_on_another_provider_are_named():
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    nodes = [helper.make_node("Det", ["x"], ["d"], "determinant"), helper.make_node("Abs", ["d"], ["y"], "absolute")]
    model = build_model(nodes, {"x": [2, 3, 3]}, {"y": [2]}, [])
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert layers_elsewhere(session, "CUDAExecutionProvider") == ["Det 'determinant'", "Abs 'absolute'"]
    assert layers_elsewhere(session, "CPUExecutionProvider") == []


@pytest.fixture
def runtime():
    found = RUNTIMES["onnxruntime-cuda"].availability()
    if not found.available:
        pytest.skip(f"onnxruntime-cuda: {found.reason}")
    return RUNTIMES["onnxruntime-cuda"]


@pytest.mark.gpu
def test_a_layer_without_a_kernel_on_the_gpu_is_refused_with_its_name(runtime):
    nodes = [helper.make_node("Relu", ["x"], ["r"], "relu"), helper.make_node("Det", ["r"], ["y"], "determinant")]
    model = build_model(nodes, {"x": [2, 3, 3]}, {"y": [2]}, [])
    with pytest.raises(InputError, match="no kernel there for Det 'determinant'"):
        runtime.compile(model.SerializeToString(), RuntimeConfig())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_everything_runs_on_the_gpu(runtime, precision):
    executable = runtime.compile(conv_net().SerializeToString(), RuntimeConfig(precision=precision))
    assert executable._session.get_providers()[0] == "CUDAExecutionProvider"
