"""Single Path One-Shot: the published networks by their ids, the spaces' sizes and extremes, and the widths inside blocks."""

import dataclasses
from fractions import Fraction

import pytest

from hwnas.errors import InputError
from hwnas.ir.blocks import ShuffleUnit
from hwnas.ir.network import Network, build_network
from hwnas.spaces.spos import (
    CHOICES,
    NETWORKS,
    RATIOS,
    build_spos,
    build_spos_blocks_channels,
    build_spos_blocks_channels_cpu,
    build_spos_channels,
    build_spos_cpu,
    channel_options,
    choice_block,
    spos_architecture,
)

NETWORK = {network.name: network for network in NETWORKS}
BLOCK_IDS = (0, 0, 3, 1, 1, 1, 0, 0, 2, 0, 2, 1, 1, 0, 2, 0, 2, 1, 3, 2)
SCALE_IDS = (6, 5, 3, 5, 2, 6, 3, 4, 2, 5, 7, 5, 4, 6, 7, 4, 4, 5, 4, 3)


def with_mid_channels(block_ids, rule) -> Network:
    """The network of these blocks whose mid channels are a function of half the width and the block's index."""
    space = build_spos()
    blocks, index = [], 0
    for name, block in space.blocks(spos_architecture(block_ids)):
        if isinstance(block, ShuffleUnit):
            block, index = dataclasses.replace(block, mid_channels=rule(block.out_channels // 2, index)), index + 1
        blocks.append((name, block))
    return build_network(space.input_shape, blocks)


@pytest.mark.parametrize(("name", "macs", "weights", "batch_norm"), [
    ("spos-block-search", 322_918_720, 3_529_312, 29_152),
    ("spos-block-channel-search", 327_857_920, 3_407_035, 25_544),
    ("spos-all-3x3", 295_842_496, 3_132_448, 22_432),
    ("spos-all-5x5", 313_654_976, 3_189_536, 22_432),
    ("spos-all-7x7", 340_373_696, 3_275_168, 22_432),
    ("spos-all-xception", 358_825_920, 3_830_400, 40_416),
    ("spos-mmrazor", 317_023_040, 3_353_104 - 25_760, 25_760),
])
def test_counts(name, macs, weights, batch_norm):
    network = NETWORK[name].network
    assert network.macs == macs
    assert network.parameters_by_kind.items() >= {"weights": weights, "batch_norm": batch_norm, "biases": 0}.items()
    assert network.parameters == weights + batch_norm
    assert network.output_shape == (1000, 1, 1)


def test_no_network_is_left_out():
    assert len(NETWORKS) == len(NETWORK) == 7


def test_networks_are_paths_of_the_spaces():
    for name, network in NETWORK.items():
        space = build_spos_blocks_channels() if "channel" in name else build_spos()
        assert space.network(space.check(network.architecture())) == network.network


def test_the_released_ids_make_the_released_network():
    assert spos_architecture(BLOCK_IDS, SCALE_IDS) == NETWORK["spos-block-channel-search"].architecture()
    mids = [block.mid_channels for _, block in build_spos_blocks_channels().blocks(spos_architecture(BLOCK_IDS, SCALE_IDS))
            if isinstance(block, ShuffleUnit)]
    assert mids == [44, 38, 25, 38, 48, 112, 64, 80, 96, 192, 256, 192, 160, 224, 256, 160, 320, 384, 320, 256]
    assert build_spos().network(spos_architecture(BLOCK_IDS)).macs == 318_729_024  # published as 319M


def test_mid_channels_are_cut_off():
    assert [choice_block("shuffle_3x3", 64, 1, ratio).mid_channels for ratio in RATIOS] == [
        6, 12, 19, 25, 32, 38, 44, 51, 57, 64]
    for width in (64, 160, 320, 640):
        for ratio in RATIOS:
            assert choice_block("xception", width, 1, ratio).mid_channels == int(Fraction(ratio, 10) * (width // 2))


def test_rounded_mid_channels_would_not_give_the_published_network():
    network = with_mid_channels(BLOCK_IDS, lambda half, index: round(Fraction(RATIOS[SCALE_IDS[index]], 10) * half))
    assert network.macs == 328_654_464
    assert f"{network.macs:,}" in NETWORK["spos-block-channel-search"].note


@pytest.mark.parametrize(("block", "name", "hundredths", "difference"), [
    (0, "3x3", 112, "-8.7%"), (1, "5x5", 103, "-2.3%"), (2, "7x7", 96, "+4.1%"), (3, "xception", 92, "+10.1%")])
def test_the_uniform_networks_notes(block, name, hundredths, difference):
    reference = NETWORK[f"spos-all-{name}"]
    assert f"{reference.network.macs:,} ({reference.network.macs / reference.published.macs - 1:+.1%})" in reference.note
    assert f"({difference})" in reference.note and f"ratio of about {hundredths / 100:.2f}" in reference.note
    adjusted = with_mid_channels([block] * 20, lambda half, _: half * hundredths // 100)
    assert abs(adjusted.macs / reference.published.macs - 1) < 0.01
    if name == "3x3":
        assert f"{adjusted.parameters_by_kind['weights'] / 1e6:.2f}M weights" in reference.note


@pytest.mark.parametrize(("build", "size", "decisions"), [
    (build_spos, 4**20, 20), (build_spos_channels, 10**20, 20), (build_spos_blocks_channels, 40**20, 20),
    (build_spos_cpu, 4**8, 8), (build_spos_blocks_channels_cpu, 12**8, 8)])
def test_sizes(build, size, decisions):
    space = build()
    assert (space.size, len(space.decisions)) == (size, decisions)


@pytest.mark.parametrize(("build", "content"), [
    (build_spos, "560f872121e866972142183bb8a27e01f0014b54c797a05dc6eea192c981fa58"),
    (build_spos_cpu, "1e8e317a4571958478c00f94dda7a86215b5405ade9e68a9882ed18763016cab")])
def test_a_committed_space_keeps_its_content(build, content):
    assert build().hash == content


@pytest.mark.parametrize(("block", "scale", "macs"), [(3, 9, 841_845_184), (0, 0, 101_890_000), (0, 9, 537_750_000)])
def test_extremes(block, scale, macs):
    """Exactly where the source prints all digits, to ten thousand where it prints five."""
    network = build_spos_blocks_channels().network(spos_architecture([block] * 20, [scale] * 20))
    assert network.macs == macs or (macs % 10_000 == 0 and round(network.macs, -4) == macs)


def test_the_channel_space_keeps_the_blocks_it_is_given():
    space = build_spos_channels(BLOCK_IDS)
    assert space.size == 10**20
    for block, decision in zip(BLOCK_IDS, space.decisions, strict=True):
        assert list(decision.options) == [f"{CHOICES[block]}_x{ratio:02}" for ratio in RATIOS]
    chosen = {decision.name: list(decision.options)[scale] for scale, decision in zip(SCALE_IDS, space.decisions, strict=True)}
    assert space.network(space.architecture(chosen)) == NETWORK["spos-block-channel-search"].network


def test_options_of_the_joint_space():
    options = build_spos_blocks_channels().decisions[0].options
    assert len(options) == 40 and dict(options) == channel_options(64, 2)
    assert options["shuffle_5x5_x14"] == ShuffleUnit(64, 5, 2, 44)
    assert options["xception_x02"] == ShuffleUnit(64, 3, 2, 6, xception=True)


def test_a_ratio_of_one_is_the_plain_block():
    plain, scaled = spos_architecture(BLOCK_IDS), spos_architecture(BLOCK_IDS, [RATIOS.index(10)] * 20)
    assert build_spos().network(plain) == build_spos_blocks_channels().network(scaled)


@pytest.mark.parametrize(("block_ids", "scale_ids", "words"), [
    ([0] * 19, None, "block id from 0 to 3"), ([0] * 19 + [4], None, "block id from 0 to 3"),
    ([-1] + [0] * 19, None, "block id"), ([0] * 20, [0] * 21, "scale id from 0 to 9"), ([0] * 20, [10] * 20, "scale id"),
    ([0] * 20, [], "scale id")])
def test_ids_that_do_not_exist_are_refused(block_ids, scale_ids, words):
    with pytest.raises(InputError, match=words):
        spos_architecture(block_ids, scale_ids)


def test_a_channel_space_of_unknown_blocks_is_refused():
    with pytest.raises(InputError, match="block id"):
        build_spos_channels([7] * 20)
