"""What ncnn and MNN, which take models through a converter, are both tested for."""

import gc

import numpy as np
import onnxruntime
import psutil

from hwnas.ir.network import Network
from hwnas.ir.trellis import Trellis
from hwnas.lower.onnx import to_onnx
from hwnas.runtimes.base import Runtime, RuntimeConfig
from hwnas.spaces.load import load_space
from tests.runtimes.models import conv_net, noise

SPACES = ("mobile-cpu", "spos-cpu", "fbnet-cpu", "darts-cpu")  # of all kinds of layers


def random_network(space: str) -> Network:
    loaded = load_space(space)
    return loaded.network(Trellis(loaded).sample(1, seed=3)[0])


def assert_parity(runtime: Runtime, network: Network, *, precision: str = "fp32", tolerance: float = 1e-4) -> None:
    """Two images: within a share of ONNX Runtime's largest value."""
    model = to_onnx(network, seed=1, batch_size=2).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    images = noise((2, *network.input_shape))
    (expected,) = session.run(None, {"images": images})
    executable = runtime.compile(model, RuntimeConfig(precision=precision))
    (result,) = executable.run({"images": images}).values()
    executable.close()
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def leaked_mib(runtime: Runtime, compiles: int = 100) -> float:
    """Memory that compiling, binding and running models of half a MiB leaves taken."""
    model = conv_net(width=64, depth=4).SerializeToString()
    images = {"images": noise((2, 3, 16, 16))}

    def work(count: int) -> float:
        for _ in range(count):
            executable = runtime.compile(model, RuntimeConfig())
            bound = executable.bind(images)
            bound()
            bound.read_outputs()
            executable.close()
        gc.collect()
        return psutil.Process().memory_info().rss / 2**20

    return -work(20) + work(compiles)
