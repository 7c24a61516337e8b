"""PNASNet-5: published counts, shapes, wiring, equal numbers in both lowerings; and its space."""

import math

import pytest

from hwnas.errors import InputError
from hwnas.ir.block import block_network
from hwnas.ir.cells import choices_of_pairs
from hwnas.ir.costs import MacsCost, ParametersCost
from hwnas.ir.network import Network
from hwnas.ir.trellis import Trellis
from hwnas.spaces.pnasnet import CELL, NETWORKS, OPERATIONS, build_pnasnet, build_pnasnet5, operation
from tests.lower.test_parity import assert_parity

MOBILE, LARGE = (network.network for network in NETWORKS)


def shape_of(network: Network, name: str) -> tuple[int, ...]:
    return next(node.shape for node in network.nodes if node.name == name)


@pytest.mark.parametrize(("network", "macs", "weights", "batch_norm", "biases"), [
    (MOBILE, 587_293_200, 5_029_823, 33_664, 1_000), (LARGE, 24_937_395_792, 85_879_680, 176_988, 1_000)])
def test_counts_are_exact(network: Network, macs: int, weights: int, batch_norm: int, biases: int) -> None:
    assert network.macs == macs
    kinds = network.parameters_by_kind
    assert (kinds["weights"], kinds["batch_norm"], kinds["biases"]) == (weights, batch_norm, biases)
    assert network.parameters == weights + batch_norm + biases


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_counts_are_close_to_the_reported_ones(network) -> None:
    assert network.network.macs == pytest.approx(network.published.macs, rel=3e-3)
    assert network.network.parameters == pytest.approx(network.published.parameters, rel=1e-2)


def test_cells_have_the_published_shapes() -> None:
    assert {name: shape_of(MOBILE, name) for name in (
        "stem/bn", "stem1/concat", "stem2/concat", "group1_3/concat", "group2_1/concat", "group3_3/concat")} == {
        "stem/bn": (32, 111, 111), "stem1/concat": (65, 56, 56), "stem2/concat": (135, 28, 28), "group1_3/concat": (270, 28, 28),
        "group2_1/concat": (540, 14, 14), "group3_3/concat": (1080, 7, 7)}
    assert shape_of(LARGE, "head/act") == (4320, 11, 11)


def test_the_cell_is_wired_as_published() -> None:
    inputs = {node.name: node.inputs for node in MOBILE.nodes}
    assert inputs["stem1/state2_2_max_pool_3x3/project"] == ("stem1/state2_2_max_pool_3x3/pool",)  # 32 to 13 channels
    assert inputs["stem1/state6_2_identity/act"] == ("stem1/current/bn",)  # a strided identity is a convolution
    assert inputs["group1_1/state6"] == ("group1_1/state6_1_separable_3x3/bn2", "group1_1/current/bn")
    assert inputs["group1_1/state5_1_separable_3x3/act1"] == ("group1_1/state4",)
    assert inputs["group1_1/concat"] == tuple(f"group1_1/state{state}" for state in range(2, 7))
    previous = {cell: inputs[f"{cell}/previous/act"] for cell in ("stem2", "group1_1", "group2_1", "group2_2")}
    assert previous == {"stem2": ("stem/bn",), "group1_1": ("stem1/concat",), "group2_1": ("group1_2/concat",),
                        "group2_2": ("group1_3/concat",)}


@pytest.mark.parametrize("size", [64, 75])  # 31, 16, 8, 4, 2 and 37, 19, 10, 5, 3
def test_both_lowerings_agree(size: int) -> None:
    network = build_pnasnet5(size, 10, 1, 8, 5)
    assert network.output_shape == (5, 1, 1)
    assert_parity(network)


def test_there_are_eight_operations_and_no_other() -> None:
    assert len(OPERATIONS) == len({operation(name, 6).signature for name in OPERATIONS}) == 8
    assert block_network(operation("dilated_3x3", 6, 2), (9, 13, 13)).output_shape == (6, 7, 7)
    with pytest.raises(InputError, match=r"dilated_3x3, but got 'conv_3x3'"):
        operation("conv_3x3", 6)


def test_size_is_any_two_states_and_operations_for_every_state() -> None:
    """All cells but those that never read the output before them, for which every other cell would be computed in vain."""
    space = build_pnasnet()
    cells = math.prod(len(decision.options) for decision in space.decisions)
    assert cells == math.prod(states**2 * 8**2 for states in range(2, 7)) == 556_627_761_561_600
    assert f"{cells:.1e}" == "5.6e+14"  # as the paper prints it
    assert space.size == cells - math.prod((states - 1)**2 * 8**2 for states in range(2, 7)) == 541_165_879_296_000


def test_pnasnet_5_is_a_path_of_the_space() -> None:
    space = build_pnasnet()
    architecture = space.architecture(choices_of_pairs({"cell": CELL}))
    assert space.genotypes(architecture) == {"cell": CELL}
    assert space.network(architecture) == MOBILE
    assert Trellis(space, MacsCost()).cost(architecture) == MOBILE.macs == 587_293_200
    assert Trellis(space, ParametersCost()).cost(architecture) == MOBILE.parameters
