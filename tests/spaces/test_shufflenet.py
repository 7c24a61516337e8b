"""ShuffleNetV2 against the published counts."""

import pytest

from hwnas.errors import InputError
from hwnas.spaces.shufflenet import NETWORKS, build_shufflenet_v2

NETWORK = {network.name: network for network in NETWORKS}


@pytest.mark.parametrize(("size", "macs", "weights", "batch_norm"), [
    ("0.5", 40_476_448, 1_357_840, 7_952),
    ("1.0", 145_814_296, 2_262_580, 16_180),
    ("1.5", 298_970_656, 3_483_280, 23_440),
    ("2.0", 590_783_000, 7_368_884, 33_716),
])
def test_counts(size, macs, weights, batch_norm):
    network = NETWORK[f"shufflenet-v2-{size}"].network
    assert network.macs == macs
    assert network.parameters_by_kind.items() >= {"weights": weights, "batch_norm": batch_norm, "biases": 1000}.items()
    assert network.parameters == weights + batch_norm + 1000
    assert network.output_shape == (1000, 1, 1)


def test_no_network_is_left_out():
    assert len(NETWORKS) == len(NETWORK) == 4


@pytest.mark.parametrize(("size", "macs"), [
    ("0.5", 40_476_448), ("1.0", 144_907_992), ("1.5", 295_759_392), ("2.0", 583_253_464)])
def test_the_other_stride_2_unit_would_cost_this_much(size, macs):
    """Equal halves in stage 2's first unit: 24 input channels, 56x56 to 28x28; half of the width from each branch."""
    network = build_shufflenet_v2(size)
    half = next(node.shape.channels for node in network.nodes if node.name == "stage2_1/concat") // 2
    released = half * (2 * half - 24) + 24 * 24  # last convolution of the main branch, and of the projection
    halves = half * half + 24 * half
    assert network.macs + (halves - released) * 28**2 == macs


def test_only_the_largest_has_dropout():
    for size, has_dropout in (("0.5", False), ("1.0", False), ("1.5", False), ("2.0", True)):
        assert ("head/dropout" in [node.name for node in build_shufflenet_v2(size).nodes]) == has_dropout


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_counts_are_the_published_figures_but_one(network):
    counted, published = network.network, network.published
    assert abs(counted.parameters - published.parameters) <= 50_000
    assert (abs(counted.macs - published.macs) <= 500_000) == (network.name != "shufflenet-v2-0.5") == (not network.note)


def test_the_guess_in_the_note_is_sound():
    pooled = next(node for node in NETWORK["shufflenet-v2-0.5"].network.nodes if node.name == "head/global_pool")
    total = NETWORK["shufflenet-v2-0.5"].network.macs + pooled.input_shapes[0].elements
    assert f"{total:,}" in NETWORK["shufflenet-v2-0.5"].note and round(total / 1e6) == 41


def test_an_unknown_size_is_refused():
    with pytest.raises(InputError, match=r"0\.5, 1\.0, 1\.5, 2\.0.*'3\.0'"):
        build_shufflenet_v2("3.0")
