"""What holds for every reference network and for random networks of every space: counts, and one meaning in every language."""

import functools
import math

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hwnas.errors import InputError
from hwnas.ir.costs import MacsCost, ParametersCost
from hwnas.ir.documents import space_from_dict
from hwnas.ir.network import Network
from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import random_weights
from hwnas.spaces import SPACES
from hwnas.spaces.networks import NETWORKS, load_network

torch.set_num_threads(1)

LARGE = ("nasnet-a-large", "pnasnet-5-large")  # counted, but not run: seconds each, and the same code as the mobile ones


@functools.cache
def space_of(name: str) -> Space:
    return SPACES[name]()


def counted_by_torch(network: Network) -> tuple[int, int]:
    """Multiply-accumulates and parameters of the lowered module, by PyTorch's own counters, without computing anything."""
    module = to_torch(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(1, *network.input_shape, device="meta"))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2, sum(parameter.numel() for parameter in module.parameters())


def assert_one_meaning(network: Network, tolerance: float = 1e-4) -> None:
    """PyTorch, ONNX Runtime and OpenVINO give the same numbers for random weights and a random image."""
    weights = random_weights(network, 3)
    image = np.random.default_rng(4).standard_normal((1, *network.input_shape)).astype(np.float32)
    with torch.inference_mode():
        expected = to_torch(network, weights).eval()(torch.from_numpy(image)).numpy()
    model = to_onnx(network, weights)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, {"images": image})[0]
    core = openvino.Core()
    exact = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    other = core.compile_model(core.read_model(content), "CPU", exact)({"images": image})[0]
    assert np.isfinite(expected).all() and np.ptp(expected) > 1e-2
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert np.abs(other - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_those_of_pytorch(name: str) -> None:
    network = NETWORKS[name].network
    assert counted_by_torch(network) == (network.macs, network.parameters)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LARGE])
def test_a_reference_network_means_the_same_everywhere(name: str) -> None:
    assert_one_meaning(NETWORKS[name].network)


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.architecture])
def test_a_network_that_is_a_path_is_what_the_path_gives(name: str) -> None:
    reference = NETWORKS[name]
    assert reference.architecture is not None
    architecture = reference.architecture()
    homes = [name for name in SPACES if space_of(name).hash == architecture.space_hash]
    assert homes, "a published space's path must be of a space that can be loaded by name"
    assert space_of(homes[0]).network(architecture) == reference.network


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_published_is_near_the_count_or_explained(name: str) -> None:
    reference = NETWORKS[name]
    for counted, published in ((reference.network.macs, reference.published.macs),
                               (reference.network.parameters, reference.published.parameters)):
        if published is None:
            continue
        printed = 0.5 * 10 ** (math.floor(math.log10(published)) - 1)  # half a unit of the second digit
        if abs(counted - published) > max(printed, 0.005 * published):
            assert reference.note, f"{counted:,} counted against {published:,} published: the note must say why"
    assert reference.published.source


def test_an_unknown_network_is_refused_with_what_may_be_meant() -> None:
    with pytest.raises(InputError, match=r"mobilenet-v2-2\.0.*did you mean.*mobilenet-v2-1\.0"):
        load_network("mobilenet-v2-2.0")


@pytest.mark.parametrize("name", SPACES)
def test_random_networks_of_a_space_are_counted_by_its_edges_and_by_pytorch(name: str) -> None:
    space = space_of(name)
    macs, parameters = Trellis(space, MacsCost()), Trellis(space, ParametersCost())
    for architecture in macs.sample(2, seed=5):
        network = space.network(architecture)
        assert (macs.cost(architecture), parameters.cost(architecture)) == (network.macs, network.parameters)
        assert counted_by_torch(network) == (network.macs, network.parameters)
        assert network.output_shape == (space.classes, 1, 1)


@pytest.mark.parametrize("name", [name for name in SPACES if "bits" not in name])  # those: tests/spaces/test_bit_widths.py
def test_a_random_network_of_a_space_means_the_same_everywhere(name: str) -> None:
    space = space_of(name)
    trellis = Trellis(space, MacsCost())
    assert_one_meaning(space.network(min(trellis.sample(16, seed=6), key=trellis.cost)))  # the largest take seconds


@pytest.mark.parametrize("name", SPACES)
def test_a_space_survives_its_document(name: str) -> None:
    space = space_of(name)
    again = space_from_dict(space.to_dict())
    assert again == space and again.hash == space.hash and again.size == space.size


@pytest.mark.parametrize("name", SPACES)
def test_spaces_for_a_cpu_say_so(name: str) -> None:
    space = space_of(name)
    assert space.name == name and space.description
    assert ("CPU-sized" in space.description) == (name.endswith(("-cpu", "-tiny")))
