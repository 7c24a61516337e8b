"""ncnn beyond the contract: the networks it is for, its converter, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from hwnas.errors import InputError
from hwnas.runtimes import RuntimeConfig
from hwnas.runtimes.ncnn import NcnnCpu
from tests.lower.networks import PRIMITIVES
from tests.runtimes.models import build_model, conv_net, noise
from tests.runtimes.parity import SPACES, assert_parity, leaked_mib, random_network

RUNTIME = NcnnCpu()
pytestmark = pytest.mark.skipif(not RUNTIME.availability().available, reason="ncnn or pnnx is not installed")


@pytest.mark.parametrize("space", SPACES)
def test_networks_agree_with_onnxruntime(space):
    network = random_network(space)
    assert_parity(RUNTIME, network)
    assert_parity(RUNTIME, network, precision="fp16", tolerance=5e-3)


@pytest.mark.parametrize("name", ["pad Pad(top=-1, left=0, bottom=1, right=0)", "resize Resize(height=5, width=4)",
                                  "slices that overlap", "multiply by gate", "vector tail", "conv, hardsigmoid"])
def test_primitives_agree_with_onnxruntime(name):
    assert_parity(RUNTIME, PRIMITIVES[name])


def test_memory_is_given_back():
    assert leaked_mib(RUNTIME) < 15  # 45 if only the weights were kept


def test_a_slow_converter_is_ended(monkeypatch, tmp_path):
    monkeypatch.setenv("HWNAS_CACHE_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"ncnn-cpu .* did not finish within 0\.001 s"):
        NcnnCpu(converter_timeout_s=0.001).compile(conv_net().SerializeToString(), RuntimeConfig())
    assert list((tmp_path / "ncnn-cpu").iterdir()) == []


@pytest.mark.parametrize("damage", ["model.ncnn.param", "model.ncnn.bin", "model_ncnn.py"])
def test_a_damaged_entry_is_made_again(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("HWNAS_CACHE_DIR", str(tmp_path))
    model = conv_net().SerializeToString()
    RUNTIME.compile(model, RuntimeConfig()).close()
    (entry,) = (tmp_path / "ncnn-cpu").iterdir()
    (entry / damage).write_bytes((entry / damage).read_bytes()[:100])
    RUNTIME.compile(model, RuntimeConfig()).close()


def test_an_operator_that_ncnn_lacks_is_named():
    model = build_model([helper.make_node("Det", ["x"], ["y"])], {"x": [1, 4, 5, 5]}, {"y": [1, 4]}, [])
    with pytest.raises(InputError, match="ncnn has no Det"):
        RUNTIME.compile(model.SerializeToString(), RuntimeConfig())


def test_tensors_other_than_float32_are_refused():
    model = build_model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 4, 5, 5]}, {"y": [1, 4, 5, 5]}, [])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(InputError, match="'x' is float64"):
        RUNTIME.compile(model.SerializeToString(), RuntimeConfig())


def test_every_setting_is_an_option_of_ncnn_and_reaches_it():
    for precision in RUNTIME.precisions:
        settings = RUNTIME.settings(RuntimeConfig(threads=2, precision=precision))
        executable = RUNTIME.compile(conv_net().SerializeToString(), RuntimeConfig(threads=2, precision=precision))
        assert {name: getattr(executable._net.opt, name) for name in settings} == settings
        executable.close()


def test_without_the_converter_the_reason_names_it():
    program = ("import importlib.util, sys\n"
               "class NoPnnx:\n"
               "    def find_spec(self, name, path=None, target=None):\n"
               "        if name == 'pnnx': raise ModuleNotFoundError(name)\n"
               "sys.meta_path.insert(0, NoPnnx())\n"
               "from hwnas.runtimes.ncnn import NcnnCpu\n"
               "found = NcnnCpu().availability()\n"
               "print(found.available, found.reason)\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False pnnx") and "pip install ncnn pnnx" in done.stdout


def test_images_of_a_batch_do_not_mix():
    executable = RUNTIME.compile(conv_net().SerializeToString(), RuntimeConfig())
    images = noise((2, 3, 16, 16))
    swapped = executable.run({"images": images[::-1].copy()})["logits"]
    np.testing.assert_array_equal(swapped[::-1], executable.run({"images": images})["logits"])
    executable.close()
