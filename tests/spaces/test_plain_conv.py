"""Plain convolutions: the exact number of networks with a legal resolution, and the cheapest and dearest of them."""

import itertools
import math

import pytest

from hwnas.errors import InputError
from hwnas.ir.costs import MacsCost, ParametersCost
from hwnas.ir.trellis import Trellis
from hwnas.spaces.plain_conv import FILTERS, KERNELS, build_plain_conv, build_plain_conv_cpu

SPACE = build_plain_conv()


def extremes(resolution: int, layers: int) -> tuple[int, int]:
    """Least and most multiply-accumulates of all legal networks, without the head: by width and resolution, layer by layer."""
    reached = {(3, resolution): (0, 0)}
    for _ in range(layers):
        onward: dict[tuple[int, int], tuple[int, int]] = {}
        for (channels, size), (least, most) in reached.items():
            for filters, kernel, stride in itertools.product(FILTERS, KERNELS, (1, 2)):
                if size < stride:
                    continue
                after = (size + 1) // 2 if stride == 2 else size
                macs = filters * channels * kernel**2 * after**2
                low, high = onward.get((filters, after), (least + macs, most + macs))
                onward[filters, after] = min(low, least + macs), max(high, most + macs)
        reached = onward
    return min(least for least, _ in reached.values()), max(most for _, most in reached.values())


def test_size_counts_the_networks_with_a_legal_resolution() -> None:
    """Eight strides of 2 bring 224 pixels to one: 112, 56, 28, 14, 7, 4, 2, 1."""
    assert SPACE.size == 12**20 * sum(math.comb(20, strides) for strides in range(9)) == 1_011_920_950_006_511_058_498_355_200
    assert SPACE.size < 24**20 == 4_019_988_717_840_603_673_710_821_376  # the lecture's count of combinations
    assert {len(decision.options) for decision in SPACE.decisions} == {24} and len(SPACE.decisions) == 20


@pytest.mark.parametrize(("resolution", "layers", "strides"), [(8, 3, 3), (8, 4, 3), (5, 4, 3), (2, 3, 1), (33, 2, 2)])
def test_sizes_of_small_chains_are_those_of_all_ways_to_stride(resolution: int, layers: int, strides: int) -> None:
    legal = 0
    for ways in itertools.product((1, 2), repeat=layers):
        sizes = [resolution]
        for stride in ways:
            sizes.append(-(-sizes[-1] // stride) if sizes[-1] >= stride else 0)
        legal += min(sizes) > 0
    assert legal == sum(math.comb(layers, count) for count in range(strides + 1))
    assert build_plain_conv(resolution, 10, layers).size == 12**layers * legal


@pytest.mark.parametrize("resolution", [224, 32])
def test_the_dearest_network_is_wide_and_never_strides(resolution: int) -> None:
    """Convolutions alone: 191,812,009,984 and 3,914,530,816 multiply-accumulates, 3,822,784 weights."""
    space = build_plain_conv(resolution)
    macs = Trellis(space, MacsCost())
    convolutions = {224: 191_812_009_984, 32: 3_914_530_816}[resolution]
    assert macs.max_cost() == convolutions + 64 * 1000 == extremes(resolution, 20)[1] + 64 * 1000
    assert set(macs.dearest().choices.values()) == {"f64_k7_s1"}
    network = space.network(macs.dearest())
    assert network.parameters_by_kind == {
        "weights": 3_822_784 + 64 * 1000, "batch_norm": 20 * 2 * 64, "biases": 1000, "quantizers": 0}
    assert network.macs == macs.max_cost() and Trellis(space, ParametersCost()).max_cost() == network.parameters


def test_the_cheapest_network_strides_while_it_can() -> None:
    """What 20 strides of 2 would cost if one pixel could be halved, 29,890,944, costs the same with the eight that are legal."""
    macs = Trellis(SPACE, MacsCost())
    assert macs.min_cost() == 29_890_944 + 24 * 1000 == extremes(224, 20)[0] + 24 * 1000
    cheapest = macs.cheapest().choices.values()
    assert {option[:6] for option in cheapest} == {"f24_k3"} and [option[-2:] for option in cheapest] == ["s2"] * 8 + ["s1"] * 12
    assert Trellis(SPACE, ParametersCost()).min_cost() == 99_144 + 20 * 2 * 24 + 24 * 1000 + 1000


def test_sampled_networks_keep_a_legal_resolution() -> None:
    for architecture in Trellis(SPACE, MacsCost()).sample(20, seed=1):
        network = SPACE.network(architecture)
        strides = sum(option.endswith("s2") for option in architecture.choices.values())
        size = 224
        for _ in range(strides):
            size = -(-size // 2)
        before = next(node for node in network.nodes if node.name == "head/global_pool").input_shapes[0]
        assert strides <= 8 and (before.height, before.width) == (size, size)


def test_a_ninth_stride_is_refused() -> None:
    options = dict.fromkeys((decision.name for decision in SPACE.decisions), "f24_k3_s2")
    legal = {name: option if int(name[5:]) <= 8 else "f24_k3_s1" for name, option in options.items()}
    assert SPACE.network(SPACE.architecture(legal)).output_shape == (1000, 1, 1)
    with pytest.raises(InputError, match=r"Decision 'layer20' .* may only choose f24_k3_s1, .*chooses 'f24_k3_s2'"):
        SPACE.architecture({**legal, "layer20": "f24_k3_s2"})


def test_images_of_one_pixel_leave_no_stride_to_choose() -> None:
    with pytest.raises(InputError, match=r"'f24_k3_s2' of decision 'layer1' .* never is"):
        build_plain_conv(1)


def test_the_cpu_space_is_the_same_on_small_images() -> None:
    space = build_plain_conv_cpu(7)
    assert space.size == 12**6 * (2**6 - 1) and space.classes == 7  # five strides of 2 bring 32 pixels to one
    assert Trellis(space, MacsCost()).max_cost() == extremes(32, 6)[1] + 64 * 7
    assert Trellis(space, MacsCost()).min_cost() == extremes(32, 6)[0] + 24 * 7
