"""PyTorch on a GPU. The rest of the contract is in test_contract."""

import re

import numpy as np
import pytest

from hwnas.errors import UnavailableError
from hwnas.runtimes import RUNTIMES, RuntimeConfig
from hwnas.runtimes.nvidia import find_module
from hwnas.runtimes.torch_cuda import _why_not_for_gpus
from tests.runtimes.models import conv_net, noise
from tests.runtimes.parity import SPACES, assert_parity, leaked_mib, random_network
from tests.runtimes.test_nvidia import needs_no_gpu

RUNTIME = RUNTIMES["torch-cuda"]
IMAGES = {"images": noise((2, 3, 16, 16))}


@pytest.fixture
def gpu():
    found = RUNTIME.availability()
    if not found.available:
        pytest.skip(f"torch-cuda: {found.reason}")


def test_a_build_without_cuda_is_told_with_the_command_that_replaces_it():
    import torch

    if torch.version.cuda is None:
        reason = str(RUNTIME.availability().reason)
        # From pip's usual index it might be the same build again, or be taken for installed already.
        assert re.search(r"built without CUDA; run: pip uninstall --yes torch && "
                         r"pip install torch --index-url https://download\.pytorch\.org/whl/cu\d+(;|$)", reason)
    else:
        assert _why_not_for_gpus() is None


@needs_no_gpu
def test_without_a_gpu_every_reason_is_told_at_once_and_compiling_says_so_too():
    found = RUNTIME.availability()
    assert not found.available and found.version is None and "driver" in str(found.reason)
    if find_module("pynvml") is None:
        assert "pynvml is not installed; run: pip install onnx nvidia-ml-py" in str(found.reason)
    with pytest.raises(UnavailableError, match="torch-cuda is not usable here") as caught:
        RUNTIME.compile(conv_net().SerializeToString(), RuntimeConfig())
    assert caught.value.exit_code == 5
    assert RUNTIME.settings(RuntimeConfig(precision="bf16")) == {
        "gpu": "none", "execution": "eager, as a CUDA graph", "memory_format": "channels_last", "dtype": "bfloat16",
        "allow_tf32": False, "cudnn_benchmark": True, "num_threads": 1}


@pytest.mark.gpu
@pytest.mark.parametrize("space", SPACES)
def test_networks_agree_with_onnxruntime(gpu, space):
    network = random_network(space)
    assert_parity(RUNTIME, network, tolerance=1e-5)  # TF32 would be a hundred times off
    assert_parity(RUNTIME, network, precision="fp16", tolerance=1e-2)
    assert_parity(RUNTIME, network, precision="bf16", tolerance=5e-2)


@pytest.mark.gpu
def test_the_process_keeps_its_own_choices(gpu):
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    executable = RUNTIME.compile(conv_net().SerializeToString(), RuntimeConfig())
    executable.bind(IMAGES)()
    executable.close()
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)


@pytest.mark.gpu
def test_a_bound_inference_outlives_what_made_it(gpu):
    executable = RUNTIME.compile(conv_net().SerializeToString(), RuntimeConfig())
    expected = executable.run(IMAGES)["logits"]
    bound = executable.bind(IMAGES)
    others = [RUNTIME.compile(conv_net(seed).SerializeToString(), RuntimeConfig()) for seed in range(1, 5)]
    for other in others:
        other.bind(IMAGES)()
    bound()
    np.testing.assert_allclose(bound.read_outputs()["logits"], expected, atol=1e-6)


@pytest.mark.gpu
def test_memory_is_given_back(gpu):
    import torch

    leaked_mib(RUNTIME, 20)
    before = torch.cuda.memory_allocated()
    leaked_mib(RUNTIME, 50)
    assert torch.cuda.memory_allocated() - before < 2**20
