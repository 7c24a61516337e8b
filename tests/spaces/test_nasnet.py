"""NASNet-A: published counts, shapes, wiring as others transcribed it, equal numbers in both lowerings; and its space."""

import dataclasses
import math

import pytest

from hwnas.errors import InputError
from hwnas.ir.block import block_network
from hwnas.ir.cells import choices_of_pairs
from hwnas.ir.costs import MacsCost
from hwnas.ir.network import Network
from hwnas.ir.trellis import Trellis
from hwnas.spaces.nasnet import NETWORKS, NORMAL, OPERATIONS, REDUCTION, build_nasnet, build_nasnet_a, operation
from tests.lower.test_parity import assert_parity

MOBILE, LARGE = (network.network for network in NETWORKS)
SPACE = build_nasnet()


def shape_of(network: Network, name: str) -> tuple[int, ...]:
    return next(node.shape for node in network.nodes if node.name == name)


@pytest.mark.parametrize(("network", "macs", "weights", "batch_norm", "biases"), [
    (MOBILE, 563_638_816, 5_252_240, 36_738, 1_000), (LARGE, 23_783_418_690, 88_559_514, 196_668, 1_001)])
def test_counts_are_exact(network: Network, macs: int, weights: int, batch_norm: int, biases: int) -> None:
    assert network.macs == macs
    kinds = network.parameters_by_kind
    assert (kinds["weights"], kinds["batch_norm"], kinds["biases"]) == (weights, batch_norm, biases)
    assert network.parameters == weights + batch_norm + biases


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_counts_are_the_reported_ones(network) -> None:
    assert network.network.macs == pytest.approx(network.published.macs, rel=1e-3)
    assert network.network.parameters == pytest.approx(network.published.parameters, rel=2e-3)


def test_cells_have_the_published_shapes() -> None:
    assert {name: shape_of(MOBILE, name) for name in (
        "stem/bn", "stem1/concat", "stem2/concat", "group1_1/concat", "group1_4/concat", "reduction1/concat", "group2_1/concat",
        "reduction2/concat", "group3_4/concat")} == {
        "stem/bn": (32, 111, 111), "stem1/concat": (44, 56, 56), "stem2/concat": (88, 28, 28), "group1_1/concat": (264, 28, 28),
        "group1_4/concat": (264, 28, 28), "reduction1/concat": (352, 14, 14), "group2_1/concat": (528, 14, 14),
        "reduction2/concat": (704, 7, 7), "group3_4/concat": (1056, 7, 7)}
    assert shape_of(LARGE, "head/act") == (4032, 11, 11)


def test_previous_outputs_are_the_published_ones() -> None:
    mobile, large = ({node.name: node.inputs for node in network.nodes} for network in (MOBILE, LARGE))
    assert mobile["stem1/state2_2_separable_7x7/act1"] == ("stem/bn",)  # the first cell takes its input as it is
    assert mobile["stem2/previous/act"] == ("stem/bn",)
    assert mobile["group1_1/previous/act"] == ("stem1/concat",)
    assert mobile["reduction1/previous/act"] == ("group1_3/concat",)
    assert mobile["group2_1/previous/act"] == ("group1_4/concat",)
    assert large["group2_1/previous/act"] == ("group1_5/concat",)  # what the reduction cell took
    assert large["group2_2/previous/act"] == ("reduction1/concat",)


def test_the_cells_are_those_that_darts_compares_with() -> None:
    """`NASNet` in quark0/darts, cnn/genotypes.py, where 0 is the cell before and 1 the input: two pairs for each state."""
    normal = [("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 0), ("sep_conv_3x3", 0), ("avg_pool_3x3", 1),
              ("skip_connect", 0), ("avg_pool_3x3", 0), ("avg_pool_3x3", 0), ("sep_conv_3x3", 1), ("skip_connect", 1)]
    reduction = [("sep_conv_5x5", 1), ("sep_conv_7x7", 0), ("max_pool_3x3", 1), ("sep_conv_7x7", 0), ("avg_pool_3x3", 1),
                 ("sep_conv_5x5", 0), ("skip_connect", 3), ("avg_pool_3x3", 2), ("sep_conv_3x3", 2), ("max_pool_3x3", 1)]
    for genotype, pairs in ((NORMAL, normal), (REDUCTION, reduction)):
        ours = [(name.replace("separable", "sep_conv").replace("identity", "skip_connect"), {0: 1, 1: 0}.get(source, source))
                for node in genotype.nodes for name, source in node]
        assert ours == pairs


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("size", [64, 75])  # 31, 16, 8, 4, 2 and 37, 19, 10, 5, 3
def test_both_lowerings_agree(size: int, skip: bool) -> None:
    network = build_nasnet_a(size, 8, 1, 8, 5, skip)
    assert network.output_shape == (5, 1, 1)
    assert_parity(network)


@pytest.mark.parametrize("size", [13, 14])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_gives_the_cells_shape(name: str, stride: int, size: int) -> None:
    resolution = -(-size // stride)
    network = block_network(operation(name, 6, stride), (6, size, size))
    assert network.output_shape == (6, resolution, resolution)
    if stride == 2:  # only the first cell's second input has another width, and it is read with a stride
        assert block_network(operation(name, 6, 2), (9, size, size)).output_shape == (6, resolution, resolution)


def test_there_are_thirteen_operations_and_no_other() -> None:
    assert len(OPERATIONS) == len({operation(name, 6).signature for name in OPERATIONS}) == 13
    with pytest.raises(InputError, match=r"separable_7x7, but got 'separable_9x9'"):
        operation("separable_9x9", 6)


def test_size_is_any_two_states_and_operations_for_every_state_of_both_cells() -> None:
    """Every normal cell reads the one before it, and where the reduction cells do not, the normal cell after them reads both:
    a cell would have no reader otherwise."""
    cell = math.prod(states**2 * 13**2 for states in range(2, 7))
    assert cell**2 == 5_107_366_597_713_630_212_832_188_866_560_000
    without_one = math.prod((states - 1)**2 * 13**2 for states in range(2, 7))  # cells that never read one of their inputs
    assert SPACE.size == (cell - without_one) * cell - without_one**2


def test_nasnet_a_as_choices_lacks_what_its_published_output_keeps_of_states_that_are_read() -> None:
    """The space passes on the states that nothing reads. NASNet-A's figure has two more: its input before, and state 3."""
    architecture = SPACE.architecture(choices_of_pairs({"normal": NORMAL, "reduction": REDUCTION}))
    cells = SPACE.genotypes(architecture)
    assert (cells["normal"].concat, NORMAL.concat) == ((2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6))
    assert (cells["reduction"].concat, REDUCTION.concat) == ((4, 5, 6), (3, 4, 5, 6))
    assert (cells["normal"].nodes, cells["reduction"].nodes) == (NORMAL.nodes, REDUCTION.nodes)
    network = SPACE.network(architecture)
    assert network.macs == Trellis(SPACE, MacsCost()).cost(architecture) < MOBILE.macs
    kept = {"normal": dataclasses.replace(cells["normal"], concat=NORMAL.concat),
            "reduction": dataclasses.replace(cells["reduction"], concat=REDUCTION.concat)}
    assert SPACE.skeleton.network(kept) == MOBILE  # nothing else differs


def test_the_width_of_a_networks_output_is_the_number_of_its_loose_ends() -> None:
    """All five states in a row leave one end; five that read the inputs alone leave five."""
    names = {f"{kind}_{state}_{side}": "identity" for kind in ("normal", "reduction") for state in range(2, 7)
             for side in ("first", "second")}
    for chain, ends in ((True, 1), (False, 5)):
        inputs = {f"{kind}_{state}_inputs": f"{state - 1}-0" if chain else "0-1" for kind in ("normal", "reduction")
                  for state in range(2, 7)}
        network = SPACE.network(SPACE.architecture(names | inputs))
        assert shape_of(network, "head/act") == (ends * 176, 7, 7)
