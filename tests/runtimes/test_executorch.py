"""ExecuTorch beyond the contract: what XNNPACK covers, integers, the cache of programs, the pool of threads."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import InputError
from hwnas.ir.block import Block
from hwnas.ir.blocks import ConvBlock, MBConv, ShuffleUnit
from hwnas.ir.network import Network, build_network
from hwnas.ir.quantized import Quantized
from hwnas.ir.shape import TensorShape
from hwnas.lower.onnx import to_onnx
from hwnas.runtimes import RuntimeConfig
from hwnas.runtimes.executorch import ExecuTorchCpu
from hwnas.spaces.networks import load_network
from tests.lower.networks import PRIMITIVES
from tests.runtimes.models import build_model, conv_net, noise
from tests.runtimes.parity import assert_parity, leaked_mib, random_network

RUNTIME = ExecuTorchCpu()
pytestmark = pytest.mark.skipif(not RUNTIME.availability().available, reason="executorch or torch is not installed")
SHAPE = [1, 4, 6, 6]


def network_of(*blocks: Block) -> Network:
    return build_network(TensorShape(8, 10, 9), [(f"block{index}", block) for index, block in enumerate(blocks)])


def portable_of(network: Network, precision: str = "fp32") -> tuple[str, ...]:
    executable = RUNTIME.compile(to_onnx(network, seed=1, batch_size=2).SerializeToString(), RuntimeConfig(precision=precision))
    executable.close()
    return executable.portable


def check_space(space: str) -> None:
    network = random_network(space)
    # In a long chain of integers, the last bit of a float now and then decides between two neighbours.
    assert_parity(RUNTIME, network, tolerance=1e-2 if "int8" in space else 1e-5)
    assert portable_of(network) == ()


def test_a_network_agrees_with_onnxruntime_and_runs_within_xnnpack():
    check_space("ofa-cpu")


@pytest.mark.slow
def test_half_precision_agrees_with_onnxruntime():
    assert_parity(RUNTIME, network_of(MBConv(8, 3, 2), ConvBlock(8)), precision="fp16", tolerance=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("space", [
    "mobile-cpu", "spos-cpu", "fbnet-cpu", "darts-cpu", "one-shot-cpu", "plain-conv-cpu", "spos-blocks-channels-cpu",
    "mobile-cpu+int8+fp32", "spos-cpu+int8", "fbnet-cpu+int8+fp32"])
def test_networks_of_all_kinds_agree_with_onnxruntime_and_run_within_xnnpack(space):
    check_space(space)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet-v2-1.0", "shufflenet-v2-1.0", "mnasnet-a1", "resnet-18"])
def test_reference_networks_agree_with_onnxruntime_and_run_within_xnnpack(name):
    network = load_network(name).network
    assert_parity(RUNTIME, network, tolerance=1e-5)
    assert portable_of(network) == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIMITIVES)
def test_layers_agree_with_onnxruntime(name):
    assert_parity(RUNTIME, PRIMITIVES[name], tolerance=1e-5)


@pytest.mark.parametrize("blocks", [
    pytest.param((ConvBlock(16, activation="relu6"), ConvBlock(8)), marks=pytest.mark.slow), (MBConv(8, 3, 2), MBConv(8, 3, 2)),
    (ShuffleUnit(8), ConvBlock(8))], ids=["convs", "residuals", "concatenation"])
def test_integer_networks_compute_in_integers(blocks):
    """To the last bit of ONNX Runtime's integers: a convolution in floats rounds otherwise."""
    network = network_of(*(Quantized(block, 8, 8, integer=True) for block in blocks), ConvBlock(8))
    assert_parity(RUNTIME, network, tolerance=1e-5)
    assert portable_of(network) == ()


def test_what_runs_outside_of_xnnpack_is_listed():
    assert portable_of(network_of(Quantized(ConvBlock(8), 4, 4))) == ("aten.round.default",)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv, hardsigmoid", "slices that partition"])
def test_layers_for_which_pytorch_has_another_form_run_within_xnnpack(name):
    assert_parity(RUNTIME, PRIMITIVES[name], tolerance=1e-5)
    assert portable_of(PRIMITIVES[name]) == ()


def test_a_quantised_model_is_not_run_in_fp16():
    model = to_onnx(network_of(Quantized(ConvBlock(8), 8, 8))).SerializeToString()
    with pytest.raises(InputError, match="choose the precision fp32"):
        RUNTIME.compile(model, RuntimeConfig(precision="fp16"))


def test_integers_that_are_read_as_such_are_right_too():
    """They are not for XNNPACK, whose integers are signed."""
    constants = [numpy_helper.from_array(np.array(0.1, np.float32), "s"), numpy_helper.from_array(np.array(100, np.uint8), "z")]
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    model = build_model(nodes, {"x": SHAPE}, {"y": SHAPE, "q": SHAPE}, constants)
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.UINT8
    executable = RUNTIME.compile(model.SerializeToString(), RuntimeConfig())
    results = executable.run({"x": noise(SHAPE)})
    executable.close()
    integers = np.clip(np.rint(noise(SHAPE) / np.float32(0.1)) + 100, 0, 255)
    np.testing.assert_array_equal(results["q"], integers)
    assert results["q"].dtype == np.uint8
    np.testing.assert_allclose(results["y"], (integers - 100) * 0.1, atol=1e-6)


def test_a_result_that_is_an_input_is_right_too():
    nodes = [helper.make_node("Dropout", ["x"], ["same"]), helper.make_node("Relu", ["same"], ["y"])]
    model = build_model(nodes, {"x": SHAPE}, {"same": SHAPE, "y": SHAPE}, [])
    executable = RUNTIME.compile(model.SerializeToString(), RuntimeConfig())
    for seed in (1, 2):
        results = executable.run({"x": noise(SHAPE, seed)})
        np.testing.assert_array_equal(results["same"], noise(SHAPE, seed))
        np.testing.assert_array_equal(results["y"], np.maximum(noise(SHAPE, seed), 0))
    executable.close()


def test_memory_is_given_back():
    assert leaked_mib(RUNTIME) < 15  # 45 if only the weights were kept


@pytest.mark.parametrize("damage", ["model.pte", pytest.param("portable.json", marks=pytest.mark.slow)])
def test_a_damaged_entry_is_made_again(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("HWNAS_CACHE_DIR", str(tmp_path))
    model = conv_net().SerializeToString()
    RUNTIME.compile(model, RuntimeConfig()).close()
    (entry,) = (tmp_path / "executorch-cpu").iterdir()
    (entry / damage).write_bytes((entry / damage).read_bytes()[:1])
    RUNTIME.compile(model, RuntimeConfig()).close()


def run_alone(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing that the native libraries remark gets through
    return done.stdout


def test_a_program_in_the_cache_needs_no_compiler():
    """Nor the seconds that it takes to import it."""
    RUNTIME.compile(conv_net().SerializeToString(), RuntimeConfig()).close()
    run_alone("""
import sys

class NoCompiler:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("executorch.exir"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoCompiler())
from hwnas.runtimes import RuntimeConfig, load_runtime
from tests.runtimes.models import conv_net, noise
executable = load_runtime("executorch-cpu").compile(conv_net().SerializeToString(), RuntimeConfig())
assert executable.run({"images": noise((2, 3, 16, 16))})["logits"].shape == (2, 5)
""")


def test_what_is_open_at_a_time_has_one_number_of_threads():
    RUNTIME.compile(conv_net().SerializeToString(), RuntimeConfig()).close()
    said = run_alone("""
from hwnas.errors import InputError
from hwnas.runtimes import RuntimeConfig, load_runtime
from tests.runtimes.models import conv_net, noise
runtime, model, images = load_runtime("executorch-cpu"), conv_net().SerializeToString(), {"images": noise((2, 3, 16, 16))}
one = runtime.compile(model, RuntimeConfig(threads=1))
expected = one.run(images)["logits"]
bound = one.bind(images)
try:
    runtime.compile(model, RuntimeConfig(threads=2))
except InputError as error:
    print(error)
bound()
assert (bound.read_outputs()["logits"] == expected).all()
one.close()
two = runtime.compile(model, RuntimeConfig(threads=2))
assert abs(two.run(images)["logits"] - expected).max() < 1e-5
from executorch.extension.pybindings import _C
assert _C._threadpool_get_thread_count() == 2
""")
    assert "what is open has 1: close it before compiling for 2" in said
