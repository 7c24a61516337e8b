"""MNN beyond the contract: the networks it is for, a converter that keeps to itself, and what is refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
from onnx import helper, numpy_helper

from hwnas.errors import InputError
from hwnas.runtimes import RuntimeConfig
from hwnas.runtimes.mnn import MnnCpu
from tests.lower.networks import PRIMITIVES
from tests.runtimes.models import build_model, conv_net
from tests.runtimes.parity import SPACES, assert_parity, leaked_mib, random_network

RUNTIME = MnnCpu()
pytestmark = pytest.mark.skipif(not RUNTIME.availability().available, reason="MNN is not installed")


@pytest.mark.parametrize("space", [*SPACES, "plain-conv-cpu"])
def test_networks_agree_with_onnxruntime(space):
    assert_parity(RUNTIME, random_network(space), tolerance=2e-4)  # Winograd convolutions reach 5e-5


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives_agree_with_onnxruntime_or_are_refused(name):
    try:
        assert_parity(RUNTIME, PRIMITIVES[name])
    except InputError as error:
        assert "mnn-cpu cannot run the model" in str(error)
        assert name in {"round Quantize(bits=8, signed=False)", "round Round(format='bf16')"}


def test_memory_is_given_back():
    assert leaked_mib(RUNTIME) < 15  # 45 if only the weights were kept


def test_a_slow_converter_is_ended(monkeypatch, tmp_path):
    monkeypatch.setenv("HWNAS_CACHE_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"mnn-cpu .* did not finish within 0\.001 s"):
        MnnCpu(converter_timeout_s=0.001).compile(conv_net().SerializeToString(), RuntimeConfig())
    assert list((tmp_path / "mnn-cpu").iterdir()) == []


def test_a_damaged_entry_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("HWNAS_CACHE_DIR", str(tmp_path))
    model = conv_net().SerializeToString()
    RUNTIME.compile(model, RuntimeConfig()).close()
    (entry,) = (tmp_path / "mnn-cpu").iterdir()
    (entry / "model.mnn").write_bytes((entry / "model.mnn").read_bytes()[:100])
    RUNTIME.compile(model, RuntimeConfig()).close()


def test_shapes_that_contradict_each_other_are_refused_with_what_mnn_says():
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    model = build_model([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": [1, 4, 5, 5]}, {"y": [1, 8, 3, 3]}, [weight])
    with pytest.raises(InputError, match="filter channel count"):
        RUNTIME.compile(model.SerializeToString(), RuntimeConfig())


@pytest.fixture(scope="module")
def quiet_use(tmp_path_factory):
    """Compiles and runs a model in a process of its own, where every `pip` writes down that it was called."""
    folder = tmp_path_factory.mktemp("watched")
    for name in ("pip", "pip3"):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho called >> {folder}/pip-calls\n")
        program.chmod(0o755)
    program = ("import sys, numpy as np\n"
               "from hwnas.runtimes import RuntimeConfig, load_runtime\n"
               "from tests.runtimes.models import conv_net\n"
               "executable = load_runtime('mnn-cpu').compile(conv_net().SerializeToString(), RuntimeConfig())\n"
               "executable.run({'images': np.zeros((2, 3, 16, 16), np.float32)})\n"
               "print([name for name in sys.modules if name.startswith(('MNN.tools', 'aliyun'))])\n")
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HWNAS_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return folder, done.stdout


def test_nothing_is_installed_or_reported_behind_the_users_back(quiet_use):
    folder, printed = quiet_use
    assert not (folder / "pip-calls").exists()
    assert printed.splitlines()[-1] == "[]"


def test_standard_output_is_left_to_results(quiet_use):
    assert len(quiet_use[1].splitlines()) == 1
