"""PyTorch on the CPU beyond the contract: the networks it is for, its threads, its memory."""

import platform
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from hwnas.errors import InputError
from hwnas.lower.onnx import to_onnx
from hwnas.runtimes import RuntimeConfig
from hwnas.runtimes.torch_cpu import TorchCpu
from hwnas.spaces.networks import load_network
from tests.runtimes.models import build_model, conv_net, noise
from tests.runtimes.parity import SPACES, assert_parity, leaked_mib, random_network

ROOT = Path(__file__).parents[2]
RUNTIME = TorchCpu()
IMAGES = {"images": noise((2, 3, 16, 16))}


@pytest.mark.parametrize("space", [*SPACES, "one-shot-cpu", "ofa-cpu", "plain-conv-cpu", "spos-blocks-channels-cpu"])
def test_networks_agree_with_onnxruntime(space):
    network = random_network(space)
    assert_parity(RUNTIME, network, tolerance=1e-5)
    assert_parity(RUNTIME, network, precision="bf16", tolerance=5e-2)


# Where a float is rounded to few bits, the last bit of a sum decides now and then between two neighbours.
@pytest.mark.parametrize(("space", "tolerance"), [
    ("resnet-bits-cpu", 1e-3), ("mobile-cpu+int8+fp32", 1e-2), ("mobile-cpu+bf16+fp16", 1e-2)])
def test_networks_of_few_bits_agree_with_onnxruntime(space, tolerance):
    assert_parity(RUNTIME, random_network(space), tolerance=tolerance)


@pytest.mark.parametrize("name", ["mobilenet-v2-1.0", "shufflenet-v2-1.0", "mnasnet-a1", "resnet-18"])
def test_reference_networks_agree_with_onnxruntime(name):
    assert_parity(RUNTIME, load_network(name).network, tolerance=1e-5)


def test_threads_are_those_of_each_executable_and_the_process_keeps_its_own():
    before = torch.get_num_threads()
    seen = []
    executables = [RUNTIME.compile(conv_net().SerializeToString(), RuntimeConfig(threads=count)) for count in (1, 3, 2)]
    bounds = [executable.bind(IMAGES) for executable in executables]
    for executable in executables:
        executable._module.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(4)
        for bound in bounds:
            bound()
        assert seen == [1, 3, 2] and torch.get_num_threads() == 4
        with pytest.raises(RuntimeError, match="on purpose"):
            executables[0]._module.register_forward_pre_hook(_fail)
            bounds[0]()
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def _fail(*_: object) -> None:
    raise RuntimeError("on purpose")


def test_memory_is_given_back():
    assert leaked_mib(RUNTIME) < 15  # 45 if only the weights were kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's memory is what is adjusted")
def test_large_results_take_the_memory_of_those_before():
    """A block and the anchor in turns, as a session of 224x224 images has them: pages are made once, and not for every call."""
    assert RUNTIME.settings(RuntimeConfig())["freed_memory"] == "kept"
    program = textwrap.dedent("""
        import resource
        from itertools import pairwise
        from statistics import median

        from hwnas.profiling.anchor import anchor_model
        from hwnas.profiling.profiler import plan_blocks
        from hwnas.runtimes import RuntimeConfig
        from hwnas.spaces.load import load_space
        from tests.runtimes.models import noise
        from tests.runtimes.test_torch_cpu import RUNTIME

        models = [anchor_model("mobile-224/1"), plan_blocks(load_space("fbnet"), 1)[4].model()]
        executables = [RUNTIME.compile(model, RuntimeConfig()) for model in models]
        bounds = [one.bind({tensor.name: noise(tensor.shape) for tensor in one.inputs}) for one in executables]
        faults = []
        for _ in range(21):
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            for bound in bounds:
                bound()
        print(median(after - before for before, after in pairwise(faults[10:])))
    """)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    # Of some thousands that their results are on. Not their mean: a system short of memory may take some away in between.
    assert float(done.stdout) < 100


@pytest.mark.parametrize("space", [*SPACES, "ofa-cpu", "one-shot-cpu"])
def test_everything_is_laid_out_as_the_settings_say(space):
    """A layer computes in whatever layout reaches it, so that one that falls out of it slows all that follow."""
    executable = RUNTIME.compile(to_onnx(random_network(space)).SerializeToString(), RuntimeConfig())
    channel_strides = {}

    def watched(step):
        def function(*values):
            results = step.function(*values)
            for name, result in zip(step.outputs, results if isinstance(results, tuple | list) else [results], strict=True):
                if result.ndim == 4 and result.shape[1] > 1 and result[0, 0].numel() > 1:
                    channel_strides[name] = result.stride(1)
            return results

        return replace(step, function=function)

    executable._module._steps = tuple(map(watched, executable._module._steps))
    executable.run({tensor.name: noise(tensor.shape) for tensor in executable.inputs})
    assert len(channel_strides) > 10 and set(channel_strides.values()) == {1}


def test_nothing_is_recorded_for_gradients():
    executable = RUNTIME.compile(conv_net().SerializeToString(), RuntimeConfig())
    inferred = []
    executable._module.register_forward_hook(lambda module, inputs, results: inferred.append(results[0]))
    executable.run(IMAGES)
    assert inferred[0].is_inference() and not inferred[0].requires_grad


@pytest.mark.parametrize("shapes", [
    {"x": [2, 4], "w": [3, 4], "y": [2, 3]},  # cannot be multiplied
    {"x": [2, 4], "w": [4, 3], "y": [2, 5]},  # is not what the model promises
])
def test_shapes_that_do_not_fit_are_refused(shapes):
    inputs = {name: shapes[name] for name in ("x", "w")}
    model = build_model([helper.make_node("MatMul", ["x", "w"], ["y"])], inputs, {"y": shapes["y"]}, [])
    with pytest.raises(InputError, match="torch-cpu cannot compile the model"):
        RUNTIME.compile(model.SerializeToString(), RuntimeConfig())


def test_results_are_contiguous_whatever_the_layout_within():
    node = helper.make_node("Conv", ["images", "w"], ["y"])
    weight = numpy_helper.from_array(noise((8, 3, 1, 1)), "w")
    model = build_model([node], {"images": [2, 3, 16, 16]}, {"y": [2, 8, 16, 16]}, [weight])
    executable = RUNTIME.compile(model.SerializeToString(), RuntimeConfig())
    result = executable.run(IMAGES)["y"]
    assert result.flags.c_contiguous and result.flags.owndata
    expected = np.einsum("oc,nchw->nohw", noise((8, 3)), IMAGES["images"])
    np.testing.assert_allclose(result, expected, atol=1e-5)
