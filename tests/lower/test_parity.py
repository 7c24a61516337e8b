"""The PyTorch and the ONNX lowering compute the same numbers, and ONNX Runtime and OpenVINO agree with both."""

from functools import cache

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.ir import blocks, layers
from hwnas.ir.block import block_network
from hwnas.ir.blocks import Head, Identity, MBConv, ShuffleUnit, Stem
from hwnas.ir.network import Network
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import Weights, random_weights
from tests.lower.networks import BLOCK_SHAPE, BLOCKS, PRIMITIVES, networks

torch.set_num_threads(1)

SPACE = SearchSpace("small", (3, 32, 32), (
    Fixed("stem", Stem(8)),
    Decision("a", {"narrow": MBConv(8, 3, 3), "gated": MBConv(8, 5, 2, 1, 0.5, "hardswish"), "skip": Identity()}),
    Decision("b", {"s3": ShuffleUnit(20, 3, 2), "s7": ShuffleUnit(20, 7, 2), "x": ShuffleUnit(20, 3, 2, xception=True)}),
    Decision("c", {"s3": ShuffleUnit(20, 3), "s5": ShuffleUnit(20, 5, mid_channels=7), "x": ShuffleUnit(20, 3, xception=True)}),
    Fixed("head", Head(10, 32, "silu", dropout=0.1))))


def images_for(network: Network, batch_size: int = 2) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((batch_size, *network.input_shape), np.float32)


def run_torch(network: Network, weights: Weights, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return to_torch(network, weights).eval()(torch.from_numpy(images.copy())).numpy()


def run_onnxruntime(model: bytes, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@cache
def _openvino_core() -> openvino.Core:
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    return core


def run_openvino(model: bytes, images: np.ndarray) -> np.ndarray:
    core = _openvino_core()
    return np.array(core.compile_model(core.read_model(model), "CPU")(images)[0])


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-4 of the expected values' range."""
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * max(np.ptp(expected), np.abs(expected).max(), 1e-3))


def assert_parity(network: Network, run=run_onnxruntime, seed: int = 0) -> None:
    weights = random_weights(network, seed)
    images = images_for(network)
    expected = run_torch(network, weights, images)
    assert expected.shape[1:] == (network.output_shape[:1] if network.output in network.vectors else network.output_shape)
    assert_close(run(to_onnx(network, weights, batch_size=2).SerializeToString(), images), expected)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_agrees(name: str) -> None:
    assert_parity(PRIMITIVES[name])


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_agrees(name: str) -> None:
    assert_parity(block_network(BLOCKS[name], BLOCK_SHAPE))


@pytest.mark.parametrize("name", ["slices of a shuffle by parity", "conv read twice, bn", "resolution after linear",
                                  "pool Pool(kind='avg', kernel=3, stride=2, padding=1)",
                                  *(f"conv, {activation}" for activation in layers.ACTIVATIONS)])
def test_openvino_agrees_on_primitives(name: str) -> None:
    assert_parity(PRIMITIVES[name], run_openvino)


@settings(max_examples=40, deadline=None)
@given(networks(), st.integers(0, 9))
def test_random_networks_agree(network: Network, seed: int) -> None:
    assert_parity(network, seed=seed)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_paths_of_a_space_agree_on_both_runtimes(choices: list[int]) -> None:
    network = SPACE.network(SPACE.architectures(np.array([choices]))[0])
    assert_parity(network)
    assert_parity(network, run_openvino)


def test_folding_survives_extreme_statistics() -> None:
    network = PRIMITIVES["conv with bias, bn"]
    weights = random_weights(network)
    weights["bn.running_var"] = np.array([0, 1e-12, 1e-3, 1, 1e6], np.float32)
    weights["bn.weight"] = np.array([1, -1, 0, 3, 100], np.float32)
    images = images_for(network)
    expected = run_torch(network, weights, images)
    actual = run_onnxruntime(to_onnx(network, weights, batch_size=2).SerializeToString(), images)
    for channel in range(5):
        assert_close(actual[:, channel], expected[:, channel])


def test_the_networks_above_leave_no_primitive_and_no_block_out() -> None:
    """A new layer or block needs a network in tests/lower/networks.py, so that the lowerings are compared on it."""
    nodes = [node for network in PRIMITIVES.values() for node in network.nodes]
    assert {type(node.layer) for node in nodes} == set(layers.Layer.__subclasses__())
    assert {block.kind for block in BLOCKS.values()} == set(blocks.BLOCKS)
